"""The metric exact_match_by_depth: counts and intervals by hand, in one go and in pieces, loaded without a network."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch


METRIC = Path(__file__).parents[1] / "examples" / "experiments" / "metrics" / "exact_match_by_depth"
ANSWERS = {
    "predictions": [[1, 2], [1, 2], [1], [1, 2, 3], [7], [], [0, 0, 5]],
    "references": [[1, 2], [1, 3], [1, 2], [1, 2], [7], [7], [0, 0, 5]],
    "depths": [4, 4, 4, 4, 1, 1, 16],
}

FRESH = """
import evaluate, json
metric = evaluate.load("examples/experiments/metrics/exact_match_by_depth")
print(json.dumps(metric.compute(predictions=[[1, 2], [3]], references=[[1, 2], [4]], depths=[2, 8])))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def metric(folder):
    return evaluate.load(str(METRIC), cache_dir=folder)


def by_depth(result) -> dict:
    return {row["depth"]: (row["correct"], row["total"]) for row in result["by_depth"]}


def test_an_answer_is_right_as_a_whole_or_wrong(metric):
    """One token wrong, one too few, one too many, none at all: all wrong."""
    result = metric.compute(**ANSWERS)
    assert by_depth(result) == {1: (1, 2), 4: (1, 4), 16: (1, 1)}
    assert [row["depth"] for row in result["by_depth"]] == [1, 4, 16]
    assert [row["exact_match"] for row in result["by_depth"]] == [0.5, 0.25, 1.0]
    assert (result["correct"], result["total"], result["exact_match"]) == (3, 7, 3 / 7)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "correct, total, low, high",
    [
        # Wilson: (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, so z² = 3.841459.
        (0, 10, 0.0, 3.841459 / 13.841459),  # both terms are z²/2n
        (10, 10, 10 / 13.841459, 1.0),
        (5, 10, 0.236593, 0.763407),  # 0.5 ± 1.959964 √(0.025 + 0.00960365) / 1.3841459 = 0.5 ± 0.263407
        (1, 4, 0.045587, 0.699358),  # (0.730182 ± 1.959964 √(0.046875 + 0.0600228)) / 1.960365
    ],
)
def test_interval(metric, correct, total, low, high):
    answers = [[1]] * correct + [[2]] * (total - correct)
    result = metric.compute(predictions=answers, references=[[1]] * total, depths=[3] * total)
    for row in (result, *result["by_depth"]):
        assert (row["correct"], row["total"]) == (correct, total)
        assert math.isclose(row["low"], low, abs_tol=2e-6) and math.isclose(row["high"], high, abs_tol=2e-6)


def test_confidence_level(metric):
    # z = 1 at the level of one standard deviation: 0 of 3 lies between 0 and 1 / (3 + 1).
    level = math.erf(1 / math.sqrt(2))
    result = metric.compute(predictions=[[2]] * 3, references=[[1]] * 3, depths=[1] * 3, confidence_level=level)
    assert result["low"] == 0 and math.isclose(result["high"], 0.25)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_in_pieces_as_at_once(metric, folder, size):
    """Also with another metric open at the same time, as in an evaluation at several N."""
    other = evaluate.load(str(METRIC), cache_dir=folder)
    for begin in range(0, len(ANSWERS["depths"]), size):
        metric.add_batch(**{name: column[begin : begin + size] for name, column in ANSWERS.items()})
        other.add(prediction=[1], reference=[2], depths=5)
    assert metric.compute() == evaluate.load(str(METRIC), cache_dir=folder).compute(**ANSWERS)
    assert other.compute()["correct"] == 0


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_takes_arrays(metric, kind):
    answers, depths = kind([[1, 2], [3, 4]]), kind([1, 2])
    metric.add_batch(predictions=answers, references=answers, depths=depths)
    metric.add_batch(predictions=[kind([5])], references=[kind([5, 6])], depths=kind([2]))
    assert by_depth(metric.compute()) == {1: (1, 1), 2: (1, 2)}


def test_bad_input_is_refused_and_forgotten(metric):
    with pytest.raises(ValueError, match="at least one answer"):
        metric.compute(predictions=[], references=[], depths=[])
    with pytest.raises(ValueError, match="call `add` or `add_batch` at least once"):
        metric.compute()
    with pytest.raises(ValueError, match="inputs are missing: .'depths'"):
        metric.compute(predictions=[[1]], references=[[1]])
    with pytest.raises(ValueError, match="confidence_level"):
        metric.compute(predictions=[[1]], references=[[1]], depths=[1], confidence_level=95)
    assert by_depth(metric.compute(predictions=[[1]], references=[[1]], depths=[1])) == {1: (1, 1)}


@pytest.mark.programs
def test_loads_in_a_fresh_process_without_a_network(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    process = subprocess.run(
        [sys.executable, "-c", FRESH],
        cwd=METRIC.parents[3],
        env={**kept, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert by_depth(json.loads(process.stdout)) == {2: (1, 1), 8: (0, 1)}
    assert any(tmp_path.rglob("exact_match_by_depth.py"))  # the copy that ran


def test_the_card_shows_what_comes_out(metric):
    metric.add_batch(predictions=[[5, 7], [5, 7]], references=[[5, 7], [5, 8]], depths=[1, 2])
    metric.add_batch(predictions=[[5]], references=[[5, 8]], depths=[2])
    result = metric.compute()
    rounded = {key: round(value, 3) for key, value in result.items() if key != "by_depth"}
    rows = [{key: round(value, 3) for key, value in row.items()} for row in result["by_depth"]]
    shown = "".join((METRIC / "README.md").read_text(encoding="utf-8").split())
    assert "".join(str({**rounded, "by_depth": rows}).split()) in shown
