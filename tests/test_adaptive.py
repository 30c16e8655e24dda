"""Sleep until S settles, measured on a trained model: it agrees with the fixed N that it amounts to."""

import json
import shutil
from pathlib import Path

import pytest

from examples.experiments.adaptive import main


RUN = Path(__file__).parents[1] / "examples" / "checkpoints" / "rule110-demo"
FEW = ["--depths", "1", "5", "--num-examples", "40", "--batch-size", "20"]


def test_an_until_that_is_met_at_once_or_never_is_a_fixed_number_of_passes(tmp_path, capsys):
    sleeps = ["--passes", "4", "--fixed", "2", "--until", "1e9", "1e-12", "0.2"]
    main([str(RUN), *sleeps, *FEW, "--output", str(tmp_path / "new" / "adaptive")])
    kept = json.loads((tmp_path / "new" / "adaptive.json").read_text(encoding="utf-8"))
    assert [run["recipe"] for run in kept["runs"]] == ["rule110-demo"]
    by_sleep = {}
    for row in kept["rows"]:
        by_sleep.setdefault((row["until"], row["passes"]), {})[row["depth"]] = row
    assert set(by_sleep) == {(None, 2), (None, 4), (1e9, 4), (1e-12, 4), (0.2, 4)}
    for until, fixed in ((1e9, 2), (1e-12, 4)):
        for depth in (1, 5):
            row, same = by_sleep[until, 4][depth], by_sleep[None, fixed][depth]
            assert row["windows"] == same["windows"] == row["total"] == 40
            assert row["taken"] == same["taken"] == 40 * fixed
            assert (row["correct"], row["flops"]) == (same["correct"], same["flops"])
    assert by_sleep[None, 2][5]["flops"] < by_sleep[None, 4][5]["flops"]
    assert all(80 <= row["taken"] <= 160 for row in by_sleep[0.2, 4].values())
    assert by_sleep[None, 4][1]["correct"] == 40  # one step, which this checkpoint always gets right
    text = (tmp_path / "new" / "adaptive.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.startswith("| passes | steps = 1 | steps = 5 | operations |\n")
    assert "| always 4 | 100.0; 4.0 |" in text and "| until 1e+09, at most 4 | 100.0; 2.0 |" in text


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    for command, message in (
        ([str(tmp_path)], "is not the folder of a finished run"),
        (
            [str(RUN), "--num-examples", "30", "--batch-size", "20"],
            "--num-examples must be a multiple of --batch-size",
        ),
        ([str(RUN), "--until", "0"], "must be above 0"),
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert message in capsys.readouterr().err
    other = shutil.copytree(RUN, tmp_path / "other")
    results = json.loads((other / "results.json").read_text(encoding="utf-8"))
    results["task"]["max_depth"] += 1
    (other / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with pytest.raises(SystemExit):
        main([str(RUN), str(other), *FEW])
    assert "is of another task" in capsys.readouterr().err
