"""The training script: curriculum, drawn passes, settings, and that an interrupted run is the same run."""

import functools
import json
import shlex
import shutil

import pytest
import torch
from tasks.rule110 import make_dataset
from train_rule110 import command_line, evaluate, model_card, parse_args, passes_at, rollout_at, train

from modeling_sleep import SleepConfig, SleepForCausalLM


def test_rollout_rises_from_one_to_its_maximum():
    rollouts = [rollout_at(step, max_steps=1000, max_rollout=6, ramp=0.6) for step in range(1000)]
    assert rollouts == sorted(rollouts)
    assert rollouts[0] == 1 and rollouts[599] == 5 and rollouts[600] == rollouts[-1] == 6
    assert rollout_at(0, max_steps=1000, max_rollout=6, ramp=0.0) == 6


def test_passes_are_a_function_of_seed_and_step():
    drawn = [passes_at(step, seed=0, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert drawn == [passes_at(step, seed=0, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert drawn != [passes_at(step, seed=1, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert 0.45 < drawn.count(2) / 2000 < 0.55 and set(drawn) == {1, 2, 4}


def test_options_override_the_preset(tmp_path):
    recipe = SleepConfig.load_preset("rule110-mini")["training"]
    args = parse_args(["--output", str(tmp_path)])
    assert (args.max_steps, args.passes, args.lr_adamw) == (
        recipe["max_steps"],
        recipe["passes"],
        recipe["lr_adamw"],
    )
    args = parse_args(["--output", str(tmp_path), "--steps", "7", "--passes", "3"])
    assert (args.max_steps, args.passes, args.lr_adamw) == (7, [3], recipe["lr_adamw"])


def test_the_recorded_command_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--output runs/a --steps 9 --seed 0 --lr-muon 0.01 --cpu --resume --save-steps 3"
    args = parse_args(options.split(" "))
    command = command_line(args)
    assert command.startswith("python examples/train_rule110.py ")
    again = parse_args(shlex.split(command)[2:])
    assert {**vars(args), "resume": False} == vars(again)  # it starts from the beginning
    elsewhere = parse_args(["--output", "/somewhere/private/name"])
    assert "private" not in command_line(elsewhere)


@pytest.fixture
def small_run(tmp_path):
    """Arguments and model of a run of seconds."""

    def make(*more):
        arguments = (
            f"--output {tmp_path} --steps 6 --batch-size 8 --warmup-steps 2 --save-steps 3 --max-rollout 3 "
            "--eval-examples 4 --eval-passes 1 2 --cpu"
        )
        args = parse_args([*arguments.split(), *more])
        torch.manual_seed(args.seed)
        return args, SleepForCausalLM(SleepConfig.from_preset("rule110-mini", hidden_size=16, intermediate_size=32))

    return make


def test_an_interrupted_run_is_the_same_run(small_run):
    args, model = small_run()
    trainer = train(args, model)
    assert trainer.state.global_step == 6
    shutil.rmtree(args.output / "checkpoint-6")

    args, resumed = small_run("--resume")
    trainer = train(args, resumed)
    assert trainer.state.global_step == 6
    for (name, a), b in zip(model.named_parameters(), resumed.parameters()):
        assert a.equal(b), name


def test_training_draws_passes_and_evaluation_does_not(small_run, monkeypatch):
    seen = []
    forward = SleepForCausalLM.forward

    @functools.wraps(forward)  # the trainer reads the signature
    def spy(self, *args, sleep_passes=None, **kwargs):
        seen.append(sleep_passes)
        return forward(self, *args, sleep_passes=sleep_passes, **kwargs)

    monkeypatch.setattr(SleepForCausalLM, "forward", spy)
    args, model = small_run("--seed", "3")
    trainer = train(args, model)
    assert seen == [passes_at(step, 3, args.passes) for step in range(6)]
    seen.clear()
    trainer.evaluate(make_dataset(2, split="eval"))
    assert seen == [None]


def test_model_card_renders_from_results(small_run):
    args, model = small_run()
    results = {
        "accuracy": evaluate(args, model),
        "command": command_line(args),
        "config": model.config.to_dict(),
        "parameters": model.num_parameters(),
        "train_seconds": 90.0,
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2", "transformers": "5"},
        "example": "t=1 0 1 <query>",
        "answer_tokens": 12,
    }
    json.dumps(results)
    card = model_card(args, results)
    assert results["command"] in card
    assert "| passes N | t = 1 | t = 2 | t = 3 |" in card
    assert str(args.output) not in card
