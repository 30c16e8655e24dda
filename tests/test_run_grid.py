"""The grid: what is planned, what is finished, what is refused; and two small runs of it, interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from examples.experiments import recipe, run_grid
from examples.experiments.recipe import list_variants
from examples.experiments.run_grid import add_result, has_result, is_finished, main, plan, read_lines


REPOSITORY = Path(__file__).parents[1]
SMALL = [
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "training.max_steps=3",
    "training.batch_size=4",
    "evaluation.num_examples=4",
    "evaluation.depths=[1,2]",
]


def write_result(run, **changes):
    """What train.py leaves behind, as far as the grid reads it."""
    run.output.mkdir(parents=True, exist_ok=True)
    results = {"recipe": run.recipe.preset, "variant": run.recipe.variant, "seed": run.seed, **run.recipe.settings}
    (run.output / "results.json").write_text(json.dumps({**results, **changes}))


def test_the_plan_is_every_variant_with_every_seed(tmp_path):
    runs = plan(["rule110-mini"], None, [0, 1], [], tmp_path)
    variants = list_variants("rule110-mini")
    assert [run.key() for run in runs] == [(variant, seed) for seed in (0, 1) for variant in variants]
    assert len({run.output for run in runs}) == len(runs)
    assert {run.results for run in runs} == {tmp_path / "rule110-mini.jsonl"}
    some = plan(["rule110-mini", "depo-mini"], ["N=1"], [5], [], tmp_path)
    assert [str(run) for run in some] == ["rule110-mini, N=1, seed 5", "depo-mini, N=1, seed 5"]


def test_a_plan_without_variants_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'rule110-demo' lists no variants"):
        plan(["rule110-demo"], None, [0], [], tmp_path)


def test_results_are_kept_in_order_and_are_what_is_finished(tmp_path):
    runs = plan(["rule110-mini"], ["N=1", "N=4"], [0, 1], [], tmp_path)
    assert not any(map(is_finished, runs))
    for run in (runs[3], runs[0], runs[1]):
        write_result(run)
        add_result(run)
    assert [(line["variant"], line["seed"]) for line in read_lines(runs[0].results)] == [
        ("N=1", 0),
        ("N=4", 0),
        ("N=4", 1),
    ]
    assert [is_finished(run) for run in runs] == [True, True, False, True]


def test_results_of_other_settings_are_never_mixed_in(tmp_path):
    (run,) = plan(["rule110-mini"], ["N=1"], [0], [], tmp_path)
    write_result(run)
    add_result(run)
    (longer,) = plan(["rule110-mini"], ["N=1"], [0], ["training.max_steps=17"], tmp_path)
    with pytest.raises(ValueError, match=r"holds 'rule110-mini, N=1, seed 0' with other settings.*section training"):
        is_finished(longer)


def test_a_run_that_outlived_its_grid_is_not_run_again(tmp_path):
    (run,) = plan(["rule110-mini"], ["N=1"], [0], [], tmp_path)
    write_result(run)
    command = ["rule110-mini", "--variants", "N=1", "--seeds", "0", "--output", str(tmp_path)]
    main([*command, "--dry-run"])
    assert not read_lines(run.results)  # looking changes nothing
    main(command)
    assert is_finished(run) and not (run.output / "log.txt").exists()
    assert [line["variant"] for line in read_lines(run.results)] == ["N=1"]
    (longer,) = plan(["rule110-mini"], ["N=1"], [1], ["training.max_steps=17"], tmp_path)
    write_result(longer, training={"max_steps": 3})  # another run's
    assert not is_finished(longer) and not has_result(longer)


def test_variants_that_a_recipe_no_longer_has_come_last(tmp_path):
    (run,) = plan(["rule110-mini"], ["N=1"], [0], [], tmp_path)
    run.results.write_text(json.dumps({"variant": "N=16", "seed": 0}) + "\n")
    write_result(run)
    add_result(run)
    assert [line["variant"] for line in read_lines(run.results)] == ["N=1", "N=16"]


def test_no_jobs_are_no_grid(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["rule110-mini", "--output", str(tmp_path), "--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err


def test_a_dry_run_runs_nothing(tmp_path, capsys):
    main(["rule110-mini", "--variants", "any N", "--seeds", "3", "--output", str(tmp_path), "--dry-run"])
    printed = capsys.readouterr().out
    assert "1 runs, 0 of them finished already" in printed
    assert "-m examples.experiments.train rule110-mini --variant 'any N' --seed 3" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.programs
def test_a_grid_is_interrupted_and_resumed(tmp_path, capsys):
    command = ["rule110-mini", "--variants", "N=1", "N=2", "--seeds", "0", "--output", str(tmp_path / "runs")]
    command += ["--results", str(tmp_path), "--set", *SMALL]
    command += ["--jobs", "2"]
    with pytest.raises(SystemExit, match="2 runs are not finished; the same command goes on"):
        main([*command, "--", "--cpu", "--minutes", "1e-9"])
    assert "stopped at step 1 of 3" in capsys.readouterr().out
    assert not (tmp_path / "rule110-mini.jsonl").exists()

    main([*command, "--", "--cpu"])
    lines = read_lines(tmp_path / "rule110-mini.jsonl")
    assert [line["variant"] for line in lines] == ["N=1", "N=2"]
    assert all([step for step, _ in line["losses"]] == [1, 2, 3] for line in lines)
    main(command)
    assert "2 runs, 2 of them finished already" in capsys.readouterr().out


def test_a_result_is_added_once(tmp_path):
    (run,) = plan(["rule110-mini"], ["N=1"], [0], [], tmp_path)
    write_result(run)
    for _ in range(2):  # the second time as by another grid that waited for the file
        add_result(run)
    assert len(read_lines(run.results)) == 1


def test_runs_take_the_gpus_in_turns(tmp_path, monkeypatch):
    shows = tmp_path / "shows.py"
    shows.write_text("import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    monkeypatch.setattr(recipe, "TRAIN", "shows")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(run_grid.torch.cuda, "device_count", lambda: 2)
    assert run_grid.devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert run_grid.devices() == ["5", "7"]

    def seen(*options):
        command = ["rule110-mini", "--variants", "N=1", "N=2", "N=4", "--seeds", "0", "--jobs", "3"]
        with pytest.raises(SystemExit, match="3 runs are not finished"):  # it leaves no results
            main([*command, "--output", str(tmp_path / "runs"), *options])
        logs = [run.output / "log.txt" for run in plan(["rule110-mini"], None, [0], [], tmp_path / "runs")]
        return [log.read_text().split()[-1] for log in logs if log.exists()]

    assert seen() == ["5", "7", "5"]
    assert seen("--launcher", sys.executable) == ["5,7"] * 3  # that is for the launcher to share
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(run_grid.torch.cuda, "device_count", lambda: 0)
    assert seen() == ["None"] * 3


@pytest.mark.programs
def test_a_grid_that_is_terminated_takes_its_runs_with_it(tmp_path):
    command = [sys.executable, "-m", run_grid.__name__, "rule110-mini", "--variants", "N=1", "--seeds", "0"]
    command += ["--output", str(tmp_path), "--set", *SMALL, "training.max_steps=100000", "--", "--cpu"]
    grid = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    lock = tmp_path / "rule110-mini" / "N=1-seed0" / "run.lock"
    deadline = time.monotonic() + 120
    while not lock.exists():
        assert grid.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(grid.pid, signal.SIGTERM)
    assert grid.communicate(timeout=60)[1].rstrip().endswith("stopped") and grid.returncode == 1
    with FileLock(lock, timeout=60):  # the run lets go of its folder
        pass


def test_two_grids_do_not_share_a_folder(tmp_path):
    with FileLock(tmp_path / "grid.lock"), pytest.raises(SystemExit, match="another grid is running in"):
        main(["rule110-mini", "--variants", "N=1", "--seeds", "0", "--output", str(tmp_path)])
    assert not (tmp_path / "rule110-mini").exists()


def test_a_failed_run_shows_the_end_of_its_log(tmp_path, capsys, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("print('step 1\\rstep 2'); raise SystemExit('the disk is full')")
    monkeypatch.setattr(recipe, "TRAIN", "broken")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="1 runs are not finished"):
        main(["rule110-mini", "--variants", "N=1", "--seeds", "0", "--output", str(tmp_path / "runs")])
    printed = capsys.readouterr().out
    assert "exit 1" in printed and "the disk is full" in printed and "step 1" not in printed
    assert sys.executable not in printed
