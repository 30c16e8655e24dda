"""Two real processes on the CPU: tensor, data and fully sharded data parallelism, and the training scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from packaging import version
from safetensors.torch import load_file

from examples.experiments.train import main
from modeling_sleep import SleepConfig, SleepForCausalLM


REPOSITORY = Path(__file__).parents[1]
# As for a process that was started there, which finds `examples`.
PATHS = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
MODEL_BEFORE_GROUP = str(Path(__file__).parent / "model_before_group.py")
FROM_THE_ROOT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}

WHOLE_GRADIENTS = version.parse(transformers.__version__) >= version.parse("5.20")
needs_whole_gradients = pytest.mark.skipif(
    not WHOLE_GRADIENTS,
    reason="older releases shard into plain tensors, whose gradients cannot be put together again",
)


TINY = SleepConfig.from_preset("tiny", initializer_range=0.1, sleep_passes=3, loop_span=(1, 4))
FAMILY = SleepConfig(
    base_config=dict(
        model_type="qwen3_5_text",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        layer_types=["full_attention", "linear_attention"] * 2,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    window_size=8,
    sleep_passes=3,
    loop_span=(1, 4),
)
# Programs that older releases cannot run are not among them there.
CONFIGS = {"ddp": TINY}
if WHOLE_GRADIENTS:
    CONFIGS |= {"tensor": TINY, "data": TINY, "tensor of a family": FAMILY, "data of a family": FAMILY}
    CONFIGS |= {"fsdp2": TINY, "checkpoint": TINY}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By program, what each of two processes has found. They are started once, as the start is what takes long."""
    folder = tmp_path_factory.mktemp("models")
    for program, config in CONFIGS.items():
        torch.manual_seed(0)
        SleepForCausalLM(config).save_pretrained(folder / program)
    path = Path(__file__).parent / "distributed_program.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path)]
    run = subprocess.run(
        [*command, str(folder), *CONFIGS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = {
        program: [json.loads((folder / program / f"results-{rank}.json").read_text()) for rank in range(2)]
        for program in CONFIGS
    }
    for results in found.values():
        assert [result["processes"] for result in results] == [2, 2]
    return found


@pytest.mark.programs
@needs_whole_gradients
@pytest.mark.parametrize("layers, tolerance", [("", 1e-6), (" of a family", 1e-5)], ids=["ours", "of a family"])
@pytest.mark.parametrize("parallelism", ["tensor", "data"])
def test_two_processes_equal_one(parallelism, layers, tolerance, found):
    """As far as float32 goes, in which transformers computes losses, and families their norms."""
    for result in found[parallelism + layers]:
        assert result["shard"] == 0.5
        assert result["tokens equal"]
        for checkpointing in (False, True):
            assert result[f"loss, checkpointing {checkpointing}"] < tolerance
            assert result[f"gradients, checkpointing {checkpointing}"] < tolerance


@pytest.mark.programs
@pytest.mark.parametrize("program", ["ddp", pytest.param("fsdp2", marks=needs_whole_gradients)])
def test_texts_of_different_lengths_do_not_hang_and_change_nobodys_loss(program, found):
    for result in found[program]:
        differences = {name: x for name, x in result.items() if name.startswith(("loss", "gradients"))}
        assert len(differences) == 16 and max(differences.values()) < 1e-6, differences
        if program == "fsdp2":
            assert all(result[name] for name in result if " equal, " in name)
            assert "must be the same in all processes" in result["error"] and "got 2 to 3" in result["error"]


@pytest.mark.programs
@needs_whole_gradients
def test_a_sharded_checkpoint_comes_back(found):
    for result in found["checkpoint"]:
        assert result["before"] > 0.01 and result["shards"] == 0 and result["whole"] < 1e-9
        assert result["files"] == 2


@pytest.mark.programs
@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.18"),
    reason="older releases cannot load an optimizer's state in several processes on CPUs",
)
def test_a_recipe_trains_alike_in_two_processes(tmp_path, capsys):
    """Each process writes and evaluates its own half of the examples; a slice ends for both when it does for one."""
    train = [MODEL_BEFORE_GROUP, "examples.experiments.train"]
    arguments = ["rule110-mini", "--cpu", "--set", "model.hidden_size=16", "model.intermediate_size=32"]
    arguments += ["training.max_steps=4", "training.batch_size=8", "evaluation.num_examples=9"]
    arguments += ["evaluation.depths=[1,2]", "--output"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    a_slice = tmp_path / "a_slice.py"  # whose second process alone is past its deadline
    a_slice.write_text(
        "import os, sys\n"
        "from examples.experiments.train import main\n"
        "main([*sys.argv[1:], '--minutes', '1e-9' if os.environ['RANK'] == '1' else '60'])\n"
    )

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            env=FROM_THE_ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("4 steps, ") == 1  # said once
        return done.stdout

    main([*arguments, str(tmp_path / "one")])
    assert capsys.readouterr().out.count("4 steps, ") == 1
    assert run(*two, a_slice, *arguments, tmp_path / "two").count("stopped at step 1 of 4") == 1
    said = run(*two, *train, *arguments, tmp_path / "two")
    assert said.count("no model outlives its group") == 2
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert [row["total"] for row in two["counts"]] == [9] * 8
    assert one["counts"] == two["counts"]
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-3)


# The loop on Accelerate, launched with the files that we ship.

PRESETS = REPOSITORY / "configuration" / "presets"
SMALL_LOOP = ["--cpu", "--steps", "5", "--batch-size", "8", "--examples", "4"]


def launch(words, output):
    command = [*words, *SMALL_LOOP, "--output", str(output)]
    run = subprocess.run(command, env=FROM_THE_ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count(f"saved to {output}") == 1
    return run.stdout, load_file(output / "model.safetensors")


def accelerate_launch(preset, *script):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(PRESETS / preset)]
    return [*launcher, "--num_processes", "2", "--mixed_precision", "no", *script]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    script = REPOSITORY / "examples" / "train_accelerate.py"
    return launch([sys.executable, str(script)], tmp_path_factory.mktemp("one"))[1]


@pytest.mark.programs
@pytest.mark.parametrize("preset", ["ddp.yaml", "fsdp2.yaml"])
def test_the_loop_trains_alike_in_two_processes(preset, one_process, tmp_path):
    script = [MODEL_BEFORE_GROUP, "examples.train_accelerate"]
    if preset == "fsdp2.yaml":
        script = [str(Path(__file__).parent / "accelerate_fsdp2_on_cpu.py")]
    said, weights = launch(accelerate_launch(preset, *script), tmp_path)
    assert said.count("no model outlives its group") == (2 if preset == "ddp.yaml" else 0)
    assert said.count("2 process(es) on cpu") == 1
    assert said.count("of 2 holds a shard") == (2 if preset == "fsdp2.yaml" else 0)
    assert weights.keys() == one_process.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, one_process[name], atol=1e-4, rtol=0, msg=name)


def test_the_files_for_accelerate_are_what_they_are_called():
    files = {path.stem: load_config_from_file(str(path)) for path in PRESETS.glob("*.yaml")}
    assert {name: str(config.distributed_type) for name, config in files.items()} == {
        "ddp": "DistributedType.MULTI_GPU",
        "fsdp2": "DistributedType.FSDP",
        "deepspeed_zero3": "DistributedType.DEEPSPEED",
    }
    assert files["fsdp2"].fsdp_config["fsdp_version"] == 2
    # Accelerate finds the layers to wrap in the model, ours or a family's.
    assert "fsdp_transformer_layer_cls_to_wrap" not in files["fsdp2"].fsdp_config
    assert files["deepspeed_zero3"].deepspeed_config["zero_stage"] == 3
