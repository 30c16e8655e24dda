"""`make gpu`: that its steps run, are written one by one, and are not done twice. Tried on a CPU with tiny sizes."""

import json

import pytest
import torch

from examples.experiments.benchmarks import gpu
from examples.experiments.benchmarks.gpu import Log, Run, in_order, main


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.programs
def test_two_steps_and_where_they_were_left(tmp_path, capsys):
    command = ["--tiny", "--device", "cpu", "--output", str(tmp_path), "--only", "sleep", "rule110 N=1"]
    main([*command, "--steps", "1"])
    (measured,) = lines(tmp_path)
    assert (measured["step"], measured["machine"]) == ("sleep", "CPU, tiny")
    for sides in measured["result"].values():
        assert [*sides] == ["reading", "N = 2", "N = 4"]
        for side in sides.values():
            assert side["ms"] > 0 and side["TFLOP/s"] > 0 and side["share of matmul"] > 0 and side["share of copy"] > 0
    assert "next: rule110 N=1; the same command goes on with it" in capsys.readouterr().out

    main(command)
    before, trained = lines(tmp_path)
    assert before == measured
    assert trained["result"]["counts"] and trained["result"]["parameters"] > 0
    assert (tmp_path / "rule110" / "N=1" / "results.json").exists()
    said = capsys.readouterr().out
    assert "==> sleep" not in said and "next:" not in said and "| N = 4 |" in said

    main(command)
    assert lines(tmp_path) == [measured, trained]
    assert "==>" not in capsys.readouterr().out


def test_a_step_that_fails_leaves_its_reason_and_the_others_run(tmp_path, capsys, monkeypatch):
    tried = []

    def breaks(run):
        tried.append(run.device)
        gpu.execute(["-c", "print('out of memory'); raise SystemExit(3)"])

    monkeypatch.setattr(gpu, "STEPS", {"tests": breaks, "kernels": lambda run: {"left out": "no kernels"}})
    command = ["--tiny", "--device", "cpu", "--output", str(tmp_path), "--only", "tests", "kernels"]
    main(command)
    failed, other = lines(tmp_path)
    assert failed["failed"] == "exit code 3: out of memory" and other["result"] == {"left out": "no kernels"}
    said = capsys.readouterr().out
    assert "failed: exit code 3: out of memory" in said and "next: tests; " in said
    main(command)
    assert tried == ["cpu", "cpu"] and len(lines(tmp_path)) == 2


def test_a_step_may_not_take_longer_than_it_may(monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 1)
    with pytest.raises(gpu.StepFailed, match="took longer than"):
        gpu.execute(["-c", "import time; time.sleep(60)"])


def test_slices_take_turns_over_many_commands(tmp_path):
    steps, order = ["tests", "N=4", "N=1"], []
    for _ in range(8):
        log = Log(tmp_path / "steps.jsonl", "a GPU")
        if (step := next(in_order(steps, log), None)) is None:
            break
        order.append(step)
        done = order.count(step)
        log.add(
            step, result={"counts": []} if done == 3 or step == "tests" else {"unfinished": {"step": done, "of": 3}}
        )
    assert order == ["tests", "N=4", "N=1"] + ["N=4", "N=1"] * 2
    assert next(in_order(steps, Log(log.path, "another GPU"))) == "tests"
    log.forget(["tests"])
    assert next(in_order(steps, log)) == "tests"


@pytest.mark.programs
def test_the_tests_marked_cuda_are_counted(tmp_path):
    result = gpu.STEPS["tests"](Run(tmp_path, "cpu", tiny=True))
    assert result == {"passed": 3, "failed": {}, "skipped": {}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_asks_for_a_gpu(capsys):
    for argv in ([], ["--device", "cuda", "--tiny"]):
        with pytest.raises(SystemExit):
            main(argv)
        assert "no GPU is visible to torch" in capsys.readouterr().err
