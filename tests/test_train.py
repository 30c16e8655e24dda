"""Recipes, training and evaluation: settings, curriculum, drawn passes, controls, and that slices make a whole run."""

import dataclasses
import functools
import json
import shutil

import pytest
import torch
from filelock import FileLock

from examples.experiments import evaluate_run
from examples.experiments import recipe as recipe_module
from examples.experiments import train as train_module
from examples.experiments.controls import AmnesiacForCausalLM, AmnesiacModel
from examples.experiments.evaluation import evaluate_by_depth, predict_answers
from examples.experiments.flops import flops_per_example, training_flops
from examples.experiments.recipe import Phase, Training, draw_passes, list_variants, load_recipe, ramp
from examples.experiments.tasks import Rule110, TaskStream, make_dataset
from examples.experiments.tasks.task import IGNORE
from examples.experiments.train import build_model, loss_curve, main, train
from modeling_sleep import Sleep, SleepConfig, SleepForCausalLM, SleepModel
from modeling_sleep.hub_upload.__main__ import main as hub_upload
from modeling_sleep.hub_upload.card import model_card, table


SMALL = [
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "task.max_depth=3",
    "training.max_steps=6",
    "training.batch_size=8",
    "training.warmup_steps=2",
    "training.depth_ramp=0.5",
    "training.passes=[1,2,4]",
    "evaluation.num_examples=4",
    "evaluation.passes=[1,2]",
    "evaluation.depths=[1,3]",
]


# Recipes


def test_overrides_reach_their_section():
    recipe = load_recipe("rule110-mini", overrides=SMALL)
    assert (recipe.config.hidden_size, recipe.task.max_depth, recipe.training.max_steps) == (16, 3, 6)
    assert recipe.evaluation.passes == [1, 2]
    assert recipe.settings["training"]["passes"] == [1, 2, 4]
    assert load_recipe("rule110-mini").training.max_steps != 6  # the preset is as it was


def test_the_vocabulary_is_the_tasks():
    recipe = load_recipe("rule110-mini")
    assert recipe.config.vocab_size == len(recipe.task.tokenizer())
    assert recipe.config.pad_token_id == recipe.task.tokenizer().pad_token_id


@pytest.mark.parametrize(
    "preset, variant, overrides, message",
    [
        ("tiny", None, [], "'tiny' is a model without a recipe; there are recipes of depo, "),
        ("rule110-mini", "N=77", [], r"no variant 'N=77'; it has N=1, "),
        ("rule110-mini", None, ["max_steps=3"], "an override looks like training.max_steps=100, not 'max_steps=3'"),
        ("rule110-mini", None, ["optimizer.lr=3"], "has the sections model, task, training, evaluation, not 'opt"),
        ("rule110-mini", None, ["training.steps=3"], "'training' has no steps; it knows .*max_steps"),
        ("rule110-mini", None, ["model.hiden_size=3"], "'model' has no hiden_size"),
        ("rule110-mini", None, ["task.name=chess"], "name must be one of .*rule110.*, got 'chess'"),
        (
            "rule110-mini",
            None,
            ["task.width=20"],
            "windows of 13 tokens do not hold a whole number of the task's.* 21",
        ),
        ("rule110-mini", None, ["task.boundary=open"], "boundary must be one of"),
        ("rule110-mini", None, ["training.optimizer=sgd"], "'optimizer' expected one of .*, got sgd"),
        ("rule110-mini", None, ["training.passes=[0, 1]"], "passes must be some N of at least 1"),
        (
            "rule110-mini",
            None,
            ["training.passes=[1, 2.5]"],
            "Invalid item at index 1 in list 'passes'",
        ),
        ("rule110-mini", None, ["training.max_steps=1e3"], "'max_steps' expected int, got float .value: 1000.0"),
        ("rule110-mini", None, ["training.max_steps=0"], "max_steps must be at least 1, got 0"),
        ("rule110-mini", None, ["training.batch_size=true"], "'batch_size' expected int, got bool"),
        ("rule110-mini", None, ["training.warmup_steps=-1"], "warmup_steps must be at least 0, got -1"),
        ("rule110-mini", None, ["training.depth_ramp=2"], "depth_ramp must be from 0 to 1, got 2"),
        ("rule110-mini", None, ["training.weight_decay=x"], "'weight_decay' with value 'x' doesn't match any type"),
        ("rule110-mini", None, ["training.adjust_lr=no"], "'adjust_lr' expected one of .*'match_rms_adamw'.*, got no"),
        (
            "rule110-mini",
            "attention only",
            ["evaluation.passes=[1,2]"],
            r"evaluation.passes must be \[1\], as attention",
        ),
        ("rule110-mini", "attention only", ["training.passes=[2]"], r"training.passes must be \[1\], as attention"),
        ("rule110-mini", None, ["training.phases=4"], r"phases must be a list like \[.*, got 4"),
        ("rule110-mini", None, ["training.phases=[4]"], r"phases must be a list like \[.*, got \[4\]"),
        ("gsm-mini", None, ['training.phases=[{"begin": 0.1, "passes": [4]}]'], r"must begin at 0.* got \[0.1\]"),
        (
            "gsm-mini",
            None,
            ['training.phases=[{"begin": 0, "passes": [4]}, {"begin": 0, "passes": [1, 2]}]'],
            r"phases must begin at 0, and each after the one before, got \[0, 0\]",
        ),
        (
            "gsm-mini",
            None,
            ['training.phases=[{"begin": 0, "passes": [4, 8]}]'],
            r"all that the phases draw N from, \[4, 8\], got \[1, 2, 4\]",
        ),
        ("gsm-mini", None, ['training.phases=[{"start": 0}]'], r"'training.phases\[0\]' has no start; it knows begin"),
        ("gsm-mini", None, ['training.phases=[{"begin": 2, "passes": [4]}]'], "begin must be from 0 to 1, got 2"),
        ("rule110-mini", None, ["training.lr_schedule=cosine"], "lr_decay must be .* 0 with any other, got 0.25"),
        ("rule110-mini", None, ["training.lr_decay=0"], "lr_decay must be in .*, got 0 with"),
        (
            "rule110-mini",
            None,
            ["evaluation.passes=[0]"],
            r"section 'evaluation': (.|\s)*passes must be some N of at least 1, got \[0\]",
        ),
        ("rule110-mini", None, ["evaluation.passes=[]"], r"passes must be some N of at least 1, got \[\]"),
        ("rule110-mini", None, ["evaluation.depths=5"], "'depths' expected a list, got int"),
        ("rule110-mini", None, ["evaluation.depths=[0]"], "the number of steps, must be .*, got 0"),
        ("depo-mini", None, ["evaluation.depths=[1, 65]"], "the number of hops, must be in 1..64, got 65"),
        (
            "rule110-mini",
            None,
            ["evaluation.num_examples=0"],
            "num_examples must be at least 1, got 0",
        ),
    ],
)
def test_bad_recipes_are_refused(preset, variant, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(preset, variant, overrides)


@pytest.mark.parametrize("name", ["rule110", "depo-mini"])
def test_a_model_of_one_n_keeps_it(name):
    for variant in list_variants(name):
        recipe = load_recipe(name, variant)
        passes = set(recipe.training.passes)
        assert recipe.config.sleep_passes == (passes.pop() if len(passes) == 1 else 4), variant


# What a step sees


def test_a_ramp_rises_from_one_to_its_maximum():
    depths = [ramp(step, max_steps=1000, share=0.6, maximum=6) for step in range(1000)]
    assert depths == sorted(depths)
    assert depths[0] == 1 and depths[599] == 5 and depths[600] == depths[-1] == 6
    assert ramp(0, max_steps=1000, share=0.0, maximum=6) == 6
    assert [ramp(step, 10, 0.5, 2, minimum=0) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_the_learning_rate_falls_at_the_end_alone(run):
    overrides = ["max_steps=10", "warmup_steps=2", "lr_schedule=warmup_stable_decay", "lr_decay=0.3"]
    _, _, trainer = run(*(f"training.{override}" for override in overrides))
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    full = max(rates)
    assert rates[:8] == [0, full / 2, *[full] * 6]
    assert full > rates[8] > rates[9] > 0


def test_passes_are_a_function_of_seed_and_step():
    drawn = [draw_passes(step, seed=0, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert drawn == [draw_passes(step, seed=0, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert drawn != [draw_passes(step, seed=1, passes=[1, 2, 2, 4]) for step in range(2000)]
    assert 0.45 < drawn.count(2) / 2000 < 0.55 and set(drawn) == {1, 2, 4}


def test_longer_sleep_comes_with_a_curriculum():
    training = Training(passes=[1, 2, 2, 4], passes_ramp=0.5, batch_size=8, max_steps=12)
    allowed = [training.allowed_passes(step) for step in range(12)]
    assert allowed == [*[[1]] * 2, *[[1, 2, 2]] * 4, *[[1, 2, 2, 4]] * 6]
    training = dataclasses.replace(training, passes=[4, 8])
    assert [training.allowed_passes(step) for step in (0, 5, 6)] == [[4], [4], [4, 8]]  # nothing else is allowed


PHASES = [{"begin": 0, "passes": [4]}, {"begin": 0.5, "passes": [1, 2, 4, 4], "lr_scale": 0.25}]


def test_phases_draw_from_their_own():
    phases = [Phase(**phase) for phase in PHASES]
    training = Training(passes=[1, 2, 4], phases=phases, batch_size=8, max_steps=7)
    assert [training.allowed_passes(step) for step in range(7)] == [*[[4]] * 4, *[[1, 2, 4, 4]] * 3]
    assert [training.phase_at(step).lr_scale for step in range(7)] == [*[1] * 4, *[0.25] * 3]
    training = dataclasses.replace(training, passes_ramp=1.0, max_steps=8)  # a curriculum holds within a phase, too
    assert [training.allowed_passes(step) for step in range(8)] == [*[[4]] * 4, *[[1, 2]] * 4]
    assert dataclasses.replace(training, phases=[]).phase_at(3).lr_scale == 1


def test_few_passes_are_asked_for_what_they_can_answer():
    phases = [Phase(begin=0, passes=[4]), Phase(begin=0.5, passes=[1, 2, 4], depth_by_passes=True)]
    training = Training(passes=[1, 2, 4], phases=phases, batch_size=8, max_steps=40)
    asked = [training.deepest_asked(step, seed=3) for step in range(40)]
    assert asked[:20] == [None] * 20 and set(asked[20:]) == {1, 2, 4}
    assert asked[20:] == [training.passes_at(step, seed=3) for step in range(20, 40)]


def test_writes_are_dropped_where_there_are_passes_to_spare():
    phases = [Phase(begin=0, passes=[8]), Phase(begin=0.5, passes=[7, 8, 12], write_dropout=0.3)]
    training = Training(passes=[7, 8, 12], phases=phases, batch_size=8, max_steps=40)
    sleeps = [training.sleep_at(step, seed=3, max_depth=4) for step in range(40)]
    assert sleeps[:20] == [Sleep(8)] * 20
    assert set(sleeps[20:]) == {Sleep(7), Sleep(8, write_dropout=0.3), Sleep(12, write_dropout=0.3)}
    with pytest.raises(ValueError, match="write_dropout must be from 0 to 0.99, got 1"):
        load_recipe(
            "paths-mini", overrides=['training.phases=[{"begin": 0, "passes": [1, 2, 4], "write_dropout": 1}]']
        )


# Training


@pytest.fixture
def run(tmp_path):
    """Train a model of seconds, and return recipe, model and trainer."""

    def run(*overrides, seed=0, **options):
        recipe = load_recipe("rule110-mini", overrides=[*SMALL, *overrides])
        model = build_model(recipe, seed)
        return recipe, model, train(recipe, model, tmp_path / "run", seed, cpu=True, **options)

    return run


def test_an_interrupted_run_is_the_same_run(run, tmp_path, monkeypatch):
    _, model, trainer = run(save_steps=3)
    shutil.move(tmp_path / "run", tmp_path / "whole")
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 6

    _, _, trainer = run(deadline=0.0)  # a slice ends after its first step
    assert trainer.state.global_step == 1
    _, _, trainer = run(deadline=0.0)
    assert trainer.state.global_step == 2
    written = []
    block = TaskStream.block
    monkeypatch.setattr(TaskStream, "block", lambda self, index: written.append(index) or block(self, index))
    _, resumed, trainer = run()
    assert trainer.state.global_step == 6
    assert min(written) == 2  # what was seen is not written again
    assert [log["loss"] for log in trainer.state.log_history if "loss" in log] == losses
    for (name, a), b in zip(model.named_parameters(), resumed.parameters()):
        assert a.equal(b), name
    seconds = [log["seconds"] for log in trainer.state.log_history if "seconds" in log]
    assert seconds == sorted(seconds)


def test_a_phase_changes_passes_and_learning_rate(run, tmp_path, monkeypatch):
    """And an interrupted run goes on in the phase that it was in."""
    schedule = ["training.lr_schedule=constant_with_warmup", "training.lr_decay=0"]
    overrides = [f"training.phases={json.dumps(PHASES)}", *schedule]
    drawn, draw = [], draw_passes
    monkeypatch.setattr(recipe_module, "draw_passes", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    _, model, trainer = run(*overrides)
    assert drawn == [4, 4, 4, *(draw(step, 0, [1, 2, 4, 4]) for step in (3, 4, 5))]
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([0, max(rates) / 2, max(rates), *[max(rates) / 4] * 3])

    shutil.rmtree(tmp_path / "run")
    for steps in (1, 2, 3, 4):
        _, _, trainer = run(*overrides, deadline=0.0)
        assert trainer.state.global_step == steps
    _, resumed, trainer = run(*overrides)
    assert [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log] == rates
    for (name, a), b in zip(model.named_parameters(), resumed.parameters()):
        assert a.equal(b), name


def test_a_run_ends_where_its_loss_is_no_number_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    recipe = load_recipe("rule110-mini", overrides=SMALL)
    model, passes_at = build_model(recipe, 0), Training.passes_at

    def overflow(training, step, seed):
        if step == 4:
            next(model.parameters()).data.fill_(torch.nan)
        return passes_at(training, step, seed)

    monkeypatch.setattr(Training, "passes_at", overflow)
    with pytest.raises(FloatingPointError, match="The loss is nan at step 5.*last checkpoint is whole"):
        train(recipe, model, tmp_path / "run", 0, cpu=True, save_steps=1)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_slice_logs_what_it_has_done(run):
    """Between two logs of the run, which are five steps apart: loss and seconds of a slice are not lost."""
    overrides = ("training.max_steps=500", "training.passes=[1]")
    for steps in (1, 2):
        _, _, trainer = run(*overrides, deadline=0.0)
        logs = trainer.state.log_history
        assert [log["step"] for log in logs if "loss" in log] == [*range(1, steps + 1)]
        seconds = [log["seconds"] for log in logs if "loss" in log]
        assert seconds == sorted(seconds)


def test_a_slice_does_not_bend_the_curve():
    losses = [8.0, 6.0, 4.0, 2.0, 1.0, 3.0]  # of single steps
    whole = [{"step": 3, "loss": 6.0}, {"step": 3, "eval_loss": 9.0}, {"step": 6, "loss": 2.0}, {"train_loss": 4.0}]
    sliced = [{"step": 1, "loss": 8.0}, {"step": 2, "loss": 6.0}, {"step": 3, "loss": 4.0}, {"step": 5, "loss": 1.5}]
    sliced.append({"step": 6, "loss": 3.0})
    assert loss_curve(whole, 3) == loss_curve(sliced, 3) == [[3, sum(losses[:3]) / 3], [6, sum(losses[3:]) / 3]]


def test_a_run_interrupted_behind_its_last_step_is_not_trained_further(run):
    _, model, _ = run("training.lr_schedule=constant", "training.lr_decay=0")
    _, again, trainer = run("training.lr_schedule=constant", "training.lr_decay=0")
    assert trainer.state.global_step == 6 and trainer.state.log_history[-1]["seconds"] > 0
    for (name, a), b in zip(model.named_parameters(), again.parameters()):
        assert a.equal(b), name


def test_workers_write_the_same_examples(run, tmp_path):
    _, model, _ = run()
    shutil.rmtree(tmp_path / "run")
    _, other, _ = run(workers=2)
    for (name, a), b in zip(model.named_parameters(), other.named_parameters()):
        assert a.equal(b[1]), name


def test_what_recipes_cannot_be_trained_on_is_refused(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match="FSDP shards them. Use configuration/presets/ddp.yaml"):
            run()
    with monkeypatch.context() as patch:
        patch.setattr(train_module.TrainingArguments, "n_gpu", 2)
        with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
            run()
    monkeypatch.setattr(train_module.TrainingArguments, "world_size", 3)
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared evenly by 3 processes"):
        run()


def test_training_draws_passes_and_evaluation_does_not(run, monkeypatch):
    seen = []
    forward = SleepForCausalLM.forward

    @functools.wraps(forward)  # the trainer reads the signature
    def spy(self, *args, sleep_passes=None, **kwargs):
        seen.append((self.training, sleep_passes))
        return forward(self, *args, sleep_passes=sleep_passes, **kwargs)

    monkeypatch.setattr(SleepForCausalLM, "forward", spy)
    recipe, _, trainer = run("training.passes_ramp=1.0", seed=3)
    allowed = [[1], [1], [1, 2], [1, 2], [1, 2], [1, 2]]
    assert seen == [(True, Sleep(draw_passes(step, 3, passes))) for step, passes in enumerate(allowed)]
    seen.clear()
    trainer.evaluate(make_dataset(recipe.task, 2, split="eval"))
    assert seen == [(False, None)]


def test_adamw_alone_and_a_log_for_tensorboard(run, tmp_path):
    _, model, trainer = run("training.optimizer=adamw", report_to="tensorboard")
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
    assert len(trainer.optimizer.state) == len(list(model.parameters()))
    assert any(path.stat().st_size for path in tmp_path.rglob("events.out.tfevents*"))


def test_the_curriculum_follows_the_step(run, monkeypatch):
    depths = []
    block = TaskStream.block

    def spy(self, index):
        examples = block(self, index)
        depths.append(max(depth for example in examples for depth in example["depths"]))
        return examples

    monkeypatch.setattr(TaskStream, "block", spy)
    run("training.batch_size=64")
    assert depths[:6] == [1, 1, 2, 3, 3, 3]


def test_the_command_leaves_a_model_and_its_evidence(tmp_path, capsys):
    command = ["rule110-mini", "--output", str(tmp_path / "run"), "--cpu", "--seed", "1"]
    main([*command, "--set", *SMALL])
    printed = capsys.readouterr().out
    assert "6 steps, 1,248 tokens, " in printed and "GPU hours at 50 sustained TFLOP/s" in printed
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["recipe"], results["variant"], results["seed"], results["tokens"]) == (
        "rule110-mini",
        None,
        1,
        1248,
    )
    assert results["training"]["max_steps"] == 6 and results["task"]["max_depth"] == 3
    assert [(row["passes"], row["depth"], row["total"]) for row in results["counts"]] == [
        (1, 1, 4), (1, 3, 4), (2, 1, 4), (2, 3, 4)
    ]  # fmt: skip
    assert [step for step, _ in results["losses"]] == [1, 2, 3, 4, 5, 6]
    assert results["flops"] > 6 * 141_400 and results["seconds"] > 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| passes N | steps = 1 | steps = 3 |" in card and str(tmp_path) not in card
    assert card == model_card(tmp_path / "run") and "![results](results.png)" in card
    assert (tmp_path / "run" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert hub_upload(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").read_text() == card
    model = SleepForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.use_cache
    problem = results["example"]
    assert len(Rule110().tokenizer()(problem["problem"])["input_ids"]) == 14 and problem["answer_tokens"] == 12


def test_a_model_that_would_load_with_a_memory_is_not_saved(tmp_path, capsys):
    main(["rule110-mini", "--output", str(tmp_path), "--cpu", "--variant", "amnesia", "--set", *SMALL])
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "results.json", "run.lock"}
    with pytest.raises(SystemExit, match="2"):
        evaluate_run.main([str(tmp_path), "--cpu"])
    assert "holds results alone: a model with amnesia is not saved" in capsys.readouterr().err


def test_no_run_goes_on_from_another_ones_checkpoints(tmp_path, capsys):
    command = ["rule110-mini", "--output", str(tmp_path / "run"), "--cpu", "--set", *SMALL]
    main([*command, "--minutes", "1e-9"])
    with pytest.raises(
        ValueError, match=r"checkpoints of another run \(what differs: training\): give another --output"
    ):
        main([*command, "training.lr_muon=0.5", "--minutes", "1e-9"])
    with pytest.raises(ValueError, match=r"what differs: seed"):
        main([*command, "--seed", "1", "--minutes", "1e-9"])
    main([*command, "--minutes", "1e-9"])  # its own are welcome
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    with FileLock(tmp_path / "run" / "run.lock"), pytest.raises(SystemExit, match="1"):
        main(command)
    assert "another process is at the run in" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoint-3").mkdir()  # cut off while it was saved
    main([*command, "--minutes", "1e-9"])
    assert (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").exists()


def test_a_finished_run_stays_as_it_is(tmp_path, capsys, monkeypatch):
    command = ["rule110-mini", "--output", str(tmp_path), "--cpu", "--set", *SMALL]
    monkeypatch.setattr(train_module, "commit", lambda: "one")
    main([*command, "--minutes", "1e-9"])
    monkeypatch.setattr(train_module, "commit", lambda: "two")
    main([*command, "evaluation.num_examples=5"])  # how it will be evaluated may still change
    results = (tmp_path / "results.json").read_text()
    assert json.loads(results)["commit"] == "one, two" and json.loads(results)["counts"][0]["total"] == 5
    capsys.readouterr()
    main([*command, "evaluation.num_examples=5"])
    assert capsys.readouterr().out == f"finished already: {tmp_path / 'results.json'}\n"
    with pytest.raises(ValueError, match="has results of another run .what differs: training.: give another --output"):
        main([*command, "training.lr_muon=0.5"])
    with pytest.raises(ValueError, match="has results of another evaluation of this run"):
        main(command)
    assert (tmp_path / "results.json").read_text() == results


# Evaluation


def test_a_finished_run_can_be_asked_more(tmp_path, capsys):
    run = tmp_path / "run"
    main(["rule110-mini", "--variant", "any N", "--output", str(run), "--cpu", "--set", *SMALL])
    results = (run / "results.json").read_text()
    capsys.readouterr()
    evaluate_run.main([str(run), "--cpu", "--output", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["counts"] == json.loads(results)["counts"] and again["task"] == json.loads(results)["task"]
    assert again["run"]["variant"] == "any N"
    more = ["--passes", "1", "8", "--depths", "1", "2", "--num-examples", "3", "--seed", "5"]
    evaluate_run.main([str(run), "--cpu", "--output", str(tmp_path / "more"), *more])
    more = json.loads((tmp_path / "more.json").read_text())
    assert [(x["passes"], x["depth"], x["total"]) for x in more["counts"]] == [
        (1, 1, 3),
        (1, 2, 3),
        (8, 1, 3),
        (8, 2, 3),
    ]
    assert (tmp_path / "more.png").read_bytes().startswith(b"\x89PNG")
    assert "| 8, never trained |" in capsys.readouterr().out
    assert (run / "results.json").read_text() == results


def test_a_run_can_be_asked_without_its_memory(tmp_path):
    run = tmp_path / "run"
    main(["rule110-mini", "--output", str(run), "--cpu", "--set", *SMALL])
    evaluate_run.main([str(run), "--cpu", "--amnesia", "--num-examples", "40", "--output", str(tmp_path / "amnesia")])
    recipe = load_recipe("rule110-mini", overrides=SMALL)
    expected = AmnesiacForCausalLM.from_pretrained(run)
    asked = json.loads((tmp_path / "amnesia.json").read_text())
    assert asked["amnesia"] and type(expected.model) is AmnesiacModel
    evaluation = dataclasses.asdict(dataclasses.replace(recipe.evaluation, num_examples=40))
    assert asked["counts"] == evaluate_by_depth(expected, recipe.task, seed=0, **evaluation)
    by_passes = [{x["depth"]: x["correct"] for x in asked["counts"] if x["passes"] == n} for n in (1, 2)]
    assert by_passes[0] == by_passes[1]  # a sleep without memory changes nothing


def test_what_cannot_be_asked_is_said_first(tmp_path):
    run = tmp_path / "run"
    alone = ["training.passes=[1]", "evaluation.passes=[1]"]
    main(["rule110-mini", "--variant", "attention only", "--output", str(run), "--cpu", "--set", *SMALL, *alone])
    with pytest.raises(ValueError, match=r"evaluation.passes must be \[1\], as attention layers alone"):
        evaluate_run.main([str(run), "--cpu", "--passes", "1", "2"])
    with pytest.raises(ValueError, match="depth"):
        evaluate_run.main([str(run), "--cpu", "--depths", "1", "-1"])


def test_what_is_no_run_cannot_be_asked(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate_run.main([str(tmp_path)])
    assert "is not the folder of a finished run: it has no results.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint():
    folder = "examples/checkpoints/rule110-demo"
    return SleepForCausalLM.from_pretrained(folder).eval()


def test_one_forward_decides_what_greedy_decoding_answers(checkpoint):
    task = Rule110(rows=1)
    examples = task.examples(range(64), split="eval", depth=5)
    for passes in (1, 4):
        answers = predict_answers(checkpoint, task.collator()(examples), passes)
        right = [predicted == reference for predicted, reference in answers]
        assert 0 < sum(right) < 64
        for example, (predicted, reference), is_right in zip(examples, answers, right):
            assert reference == example["question_ids"][1:]
            prompt = torch.tensor([example["context_ids"] + example["question_ids"][:1]])
            decoded = checkpoint.generate(prompt, max_new_tokens=12, do_sample=False, sleep_passes=passes)[0, 14:]
            assert (decoded.tolist() == reference) == is_right
            assert decoded.tolist() == predicted or not is_right


def test_several_answers_per_row_are_told_apart(checkpoint):
    task = Rule110(rows=3, max_depth=2)
    batch = task.collator()(task.examples(range(5)))
    answers = predict_answers(checkpoint, batch, 1)
    assert len(answers) == 15 and {len(reference) for _, reference in answers} == {12}
    assert sum((reference for _, reference in answers), []) == batch["labels"][batch["labels"] != IGNORE].tolist()


def test_evaluation_by_depth(checkpoint):
    checkpoint.train()
    results = evaluate_by_depth(
        checkpoint, Rule110(), passes=[1, 4], depths=[1, 6], num_examples=60, batch_size=25, progress=False
    )
    assert checkpoint.training
    checkpoint.eval()
    assert [(row["passes"], row["depth"], row["total"]) for row in results] == [
        (1, 1, 60), (1, 6, 60), (4, 1, 60), (4, 6, 60)
    ]  # fmt: skip
    easy, hard = results[2], results[3]
    assert easy["exact_match"] == 1.0 and hard["exact_match"] < 0.6
    assert easy["low"] < 1.0 and hard["low"] < hard["exact_match"] < hard["high"]
    lines = table(results, "t", trained=[1]).splitlines()
    assert lines[0] == "| passes N | t = 1 | t = 6 |"
    assert lines[2].startswith("| 1 | ") and lines[3].startswith("| 4, never trained | 100.0 % | ")


# Controls and counted operations


def test_controls_begin_with_the_weights_of_their_seed():
    weights = [build_model(load_recipe("rule110-mini", name), 5).state_dict() for name in ("N=1", "amnesia", "N=4")]
    for others in weights[1:]:
        torch.testing.assert_close(others, weights[0], rtol=0, atol=0)


def test_amnesia_answers_without_memory(monkeypatch):
    torch.manual_seed(0)
    forgotten, forget = [], AmnesiacModel._forget
    monkeypatch.setattr(
        AmnesiacModel, "_forget", lambda *args, **kwargs: forgotten.append(1) or forget(*args, **kwargs)
    )
    config = SleepConfig.from_preset("tiny", window_size=8)
    model = AmnesiacForCausalLM(config).double().eval()
    ids = torch.randint(0, config.vocab_size, (2, 24))
    alone = torch.cat([model(window).logits for window in ids.split(8, dim=1)], dim=1)
    torch.testing.assert_close(model(ids, sleep_passes=3).logits, alone, rtol=0, atol=1e-12)
    assert len(forgotten) == 2 and hasattr(SleepModel, "_forget")  # the model calls what amnesia overrides
    remembers = SleepForCausalLM(config).double().eval()
    remembers.load_state_dict(model.state_dict())
    torch.testing.assert_close(remembers(ids).logits[:, :8], alone[:, :8])
    assert (remembers(ids).logits[:, 8:] - alone[:, 8:]).abs().max() > 1e-3


def test_operations_are_those_of_the_matrices():
    """Projections cost 6 operations per parameter and token, what else is counted little, and every pass the same."""
    task = Rule110(width=12)
    config = SleepConfig.from_preset("rule110-mini", hidden_size=128, intermediate_size=512)
    model = SleepForCausalLM(config)
    one, two, three = (flops_per_example(model, task, n) for n in (1, 2, 3))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    assert 6 * 26 * matrices <= one <= 1.15 * 6 * 26 * matrices
    assert (
        0.4 * one / 2 < two - one <= one / 2
    )  # one window of the two is replayed, the last time as far as its last S
    assert three - two == pytest.approx(one / 2, rel=0.1)
    training = Training(passes=[1, 2, 2], batch_size=10, max_steps=7)
    assert training_flops(model, task, training) == pytest.approx(70 * (one + 2 * two) / 3)
    ramped = dataclasses.replace(training, passes_ramp=0.5, max_steps=8)  # N = 1 alone for four steps
    assert training_flops(model, task, ramped) == pytest.approx(10 * (4 * one + 4 * (one + 2 * two) / 3))
    phases = [Phase(begin=0, passes=[2]), Phase(begin=0.75, passes=[1, 1, 2])]
    phased = dataclasses.replace(training, phases=phases, max_steps=8)
    assert training_flops(model, task, phased) == pytest.approx(10 * (6 * two + 2 * (2 * one + two) / 3))


@pytest.mark.parametrize("variant", list_variants("rule110-mini"))
def test_every_variant_trains(variant, run):
    recipe = load_recipe("rule110-mini", variant, [x for x in SMALL[2:] if "passes" not in x])
    model = build_model(recipe, 0)
    batch = recipe.task.collator()(recipe.task.examples(range(2)))
    loss = model(**batch, sleep_passes=max(recipe.training.passes)).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("preset, variant", [("rule110", "N=4"), ("depo", "N=4"), ("gsm", "N=1")])
def test_recipes_of_the_papers_size_start(preset, variant, tmp_path, capsys):
    """Their first 50 steps, as they are but for the batch, and at full depth from the first."""
    small = ["training.max_steps=50", "training.batch_size=1", "training.depth_ramp=0", "training.warmup_steps=5"]
    command = [preset, "--variant", variant, "--output", str(tmp_path), "--cpu"]
    main([*command, "--set", *small, "evaluation.num_examples=2", "evaluation.batch_size=1"])
    assert "GPU hours" in capsys.readouterr().out
    losses = [loss for _, loss in json.loads((tmp_path / "results.json").read_text())["losses"]]
    assert len(losses) == 50 and sum(losses[-10:]) < sum(losses[:10])
