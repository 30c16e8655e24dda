"""Two real processes on the CPU: tensor and fully sharded data parallelism, and the training script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging import version

from modeling_sleep import SleepConfig, SleepForCausalLM


@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.20"),
    reason="older releases shard into plain tensors, whose gradients cannot be put together again",
)
@pytest.mark.parametrize("parallelism", ["tensor", "data"])
def test_two_processes_equal_one(parallelism, tmp_path):
    config = SleepConfig.from_preset("tiny", initializer_range=0.1, sleep_passes=3, loop_span=(1, 4))
    torch.manual_seed(0)
    SleepForCausalLM(config).save_pretrained(tmp_path)
    program = Path(__file__).parent / "distributed_program.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    run = subprocess.run(
        [*command, parallelism, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results = [json.loads(line.split("RESULTS ")[1]) for line in run.stdout.splitlines() if "RESULTS " in line]
    assert len(results) == 2
    for result in results:
        assert result["processes"] == 2 and result["shard"] == 0.5
        assert result["tokens equal"]
        for checkpointing in (False, True):
            assert result[f"loss, checkpointing {checkpointing}"] < 1e-6  # transformers' loss is float32
            assert result[f"gradients, checkpointing {checkpointing}"] < 1e-6


def test_a_recipe_trains_alike_in_two_processes(tmp_path):
    """Each process writes and evaluates its own half of the examples."""
    command = [Path(__file__).parents[1] / "examples" / "train.py", "rule110-mini", "--cpu", "--set"]
    command += ["model.hidden_size=16", "model.intermediate_size=32", "training.max_steps=4", "training.batch_size=8"]
    command += ["evaluation.num_examples=9", "evaluation.depths=[1,2]", "--output"]
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    results = {}
    for name, launcher in launchers.items():
        run = subprocess.run(
            [sys.executable, *launcher, *command, tmp_path / name],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        assert run.stdout.count("4 steps, ") == 1  # said once
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    one, two = results["one"], results["two"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert [row["total"] for row in two["counts"]] == [9] * 8
    assert one["counts"] == two["counts"]
    # Muon rounds to bfloat16 inside.
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-3)
