"""The plans for tensor and fully sharded data parallelism, with two real processes on the CPU."""

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
