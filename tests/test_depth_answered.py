"""The depth answered over N: a table against numbers by hand, what the plot shows, input it refuses."""

import json
import re
from pathlib import Path

import pytest

from examples.experiments.depth_answered import main, plot, read


def asked(variant: str, seed: int, shares: dict, **fields) -> dict:
    """What evaluate_run.py keeps of a run; `shares` maps N to the right answers of 200 at depths 1, 2, 3."""
    counts = [
        {"passes": n, "depth": depth, "correct": correct, "total": 200, "low": 0.1, "high": 0.9}
        for n, of_depths in shares.items()
        for depth, correct in enumerate(of_depths, start=1)
    ]
    run = {"recipe": "toy", "variant": variant, "seed": seed, "commit": "abc1234"}
    about = {"run": run, "seed": 0, "evaluation": {}, "depth_name": "t", "training": {"passes": [1, 4]}}
    return {**about, "counts": counts, **fields}


FILES = [
    asked("any N", 0, {1: (100, 90, 80), 4: (200, 180, 179), 8: (200, 200, 200)}),
    asked("any N", 1, {8: (200, 170, 200), 1: (180, 90, 80), 4: (200, 200, 190)}, task={"max_depth": 2}),
    asked("N=4", 0, {4: (200, 180, 20)}),
]

TABLE = """\
| variant | N | t = 1 | t = 2 | t = 3 | answered at 90 % | seeds |
|---|---:|---:|---:|---:|---:|---:|
| N = 4 | 4 | 100.0 [10–90] | 90.0 [10–90] | 10.0 [10–90] | 2.0 | 1 |
| any N | 1 | 70.0 (50.0–90.0) | 45.0 | 40.0 | 0.5 (0–1) | 2 |
| any N | 4 | 100.0 | 95.0 (90.0–100.0) | 92.2 (89.5–95.0) | 2.5 (2–3) | 2 |
| any N | 8, never trained | 100.0 | 92.5 (85.0–100.0) | 100.0 | 2.0 (1–3) | 2 |

Whole answers right in % by t: mean over seeds (lowest–highest seed), of a single seed [95 % interval]. Answered: the \
depth up to which all asked are right in 90 %, 0 if none is. 200 answers per seed and depth.
"""


@pytest.fixture
def write(tmp_path):
    """Write files as evaluate_run.py does."""

    def write(*files: dict) -> list[Path]:
        paths = [tmp_path / f"{number}.json" for number in range(len(files))]
        for path, file in zip(paths, files):
            path.write_text(json.dumps(file), encoding="utf-8")
        return paths

    return write


def test_table_and_plot(write, tmp_path, capsys):
    main(list(map(str, write(*FILES))))
    assert (tmp_path / "depth-answered.md").read_text(encoding="utf-8") == TABLE
    assert (tmp_path / "depth-answered.png").read_bytes().startswith(b"\x89PNG")
    main([*map(str, write(*FILES)), "--output", str(tmp_path / "new" / "half"), "--share", "0.5"])
    assert "| any N | 1 | 70.0 (50.0–90.0) | 45.0 | 40.0 | 1.0 | 2 |" in (tmp_path / "new" / "half.md").read_text()
    assert str(tmp_path / "new" / "half.md") in capsys.readouterr().out


def test_what_the_plot_shows(write):
    axes = plot(read(write(*FILES)), 90).axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["N = 4 (1 seed)", "any N (2 seeds)", "deepest in training"]
    means = lines["any N (2 seeds)"]
    assert list(means.get_xdata()) == [1, 4, 8] and list(means.get_ydata()) == [0.5, 2.5, 2.0]
    assert means.get_markevery() == [True, True, False]  # hollow beyond
    assert list(lines["deepest in training"].get_ydata()) == [2, 2]
    of_seeds = [tuple(line.get_ydata()) for line in axes.lines if line.get_linewidth() == 0.7]
    assert of_seeds == [(2,), (0, 2, 3), (1, 3, 1)]


@pytest.mark.parametrize(
    "file, message",
    [
        ({}, "0.json: not what evaluate_run.py keeps: KeyError"),
        (asked("wider", 0, {}), "not what evaluate_run.py keeps: .*unknown variant 'wider'"),
        (asked("any N", 1, {1: (1, 1, 1)}), r"1.json: 'any N', seed 1 is in .*0.json already"),
        (
            asked("N=4", 0, {}) | {"run": {"recipe": "other", "variant": "N=4", "seed": 0}},
            "the recipe is 'other', but 't",
        ),
    ],
)
def test_files_that_cannot_be_compared(write, capsys, file, message):
    paths = write(file) if not file else write(FILES[1], file)
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, paths)))
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.split())  # argparse breaks lines
    assert re.search(message, said)


def test_an_impossible_share(write, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, write(*FILES)), "--share", "90"])
    assert "--share must be above 0 and at most 1, got 90.0" in capsys.readouterr().err
