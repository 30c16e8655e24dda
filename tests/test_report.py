"""The report: tables against numbers by hand, gaps that stay visible, input it refuses, plots that exist."""

import json
from pathlib import Path

import pytest

from examples.experiments.report import main, plot_accuracy, plot_flops, plot_loss, read, table


def run(variant: str, seed: int, shares: dict, *, flops=2e12, seconds=120.0, parameters=1234, **fields) -> dict:
    """A finished run with invented numbers; `shares` maps (passes, depth) to right answers of 200."""
    interval = {"low": 0.1, "high": 0.9}
    counts = [{"passes": n, "depth": d, "correct": c, "total": 200, **interval} for (n, d), c in shares.items()]
    losses = [[step, 2 ** (-step / 100) + 0.01 * seed] for step in range(10, 1010, 10)]
    about = {"recipe": "toy", "variant": variant, "seed": seed, "task": {"name": "toy"}, "depth_name": "t"}
    cost = {"parameters": parameters, "tokens": 10, "flops": flops, "seconds": seconds, "device": "cpu", "threads": 1}
    rest = {"config": {}, "training": {}, "evaluation": {}, "commit": "abc1234", "versions": {}}
    return {**about, **cost, **rest, "counts": counts, "losses": losses, **fields}


RUNS = [
    run("deeper", 0, {(1, 1): 100, (1, 2): 1}, flops=9e12, parameters=2000),
    run("any N", 1, {(1, 1): 180, (4, 1): 190, (4, 2): 100}, flops=5e12, seconds=300.0),
    run("any N", 0, {(4, 2): 120, (4, 1): 190, (1, 1): 200}, flops=5e12, seconds=360.0),
    run("N=4", 0, {(4, 1): 200, (4, 2): 150}, flops=7e12, commit="abc1234, def5678"),  # in two slices
    run("N=1", 0, {(1, 1): 200, (1, 2): 20}, commit="def5678"),
    run("N=1", 1, {(1, 1): 198, (1, 2): 30, (2, 2): 31}),
]

TABLE = """\
| variant | N | t = 1 | t = 2 | seeds | FLOPs / N = 1 | parameters | minutes |
|---|---:|---:|---:|---:|---:|---:|---:|
| N = 1 | 1 | 99.5 (99.0–100.0) | 12.5 (10.0–15.0) | 2 | 1.00 | 1,234 | 2.0 |
| N = 1 | 2 | – | 15.5 [10–90] | 1 | 1.00 | 1,234 | 2.0 |
| N = 4 | 4 | 100.0 [10–90] | 75.0 [10–90] | 1 | 3.50 | 1,234 | 2.0 |
| any N | 1 | 95.0 (90.0–100.0) | – | 2 | 2.50 | 1,234 | 5.0 |
| any N | 4 | 95.0 | 55.0 (50.0–60.0) | 2 | 2.50 | 1,234 | 5.0 |
| deeper | 1 | 50.0 [10–90] | 0.5 [10–90] | 1 | 4.50 | 2,000 | 2.0 |

Whole answers right in % by t: mean over seeds (lowest–highest seed), of a single seed [95 % interval]. N: passes \
when evaluated. 200 answers per seed and depth. FLOPs: of a training; minutes: of the fastest, on cpu (1 thread). \
Commit abc1234, def5678.
"""

PAGE = "# Toys\n\n<!-- table -->\nold\n<!-- end -->\n\nwords\n"


@pytest.fixture
def write(tmp_path):
    """Write runs, or lines as they are, into a results file."""

    def write(runs: list, name: str = "toy.jsonl") -> Path:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in runs]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def refused(capsys, *argv) -> str:
    """What is said on the way out with status 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def plots(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.png")}


def test_table_and_plots(write, tmp_path, recwarn):
    main([str(write(RUNS))])
    page = (tmp_path / "toy.md").read_text(encoding="utf-8")
    accuracy = "![Whole answers right by t](toy-accuracy.png)"
    assert page == f"# toy\n\n<!-- table -->\n\n{TABLE}\n<!-- end -->\n\n{accuracy}\n"
    sizes = plots(tmp_path)
    assert set(sizes) == {"toy-accuracy.png", "toy-flops.png", "toy-loss.png"} and min(sizes.values()) > 15_000
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_a_missing_seed_is_counted(write):
    runs = [run("N=2", seed, {(2, 1): 100 + seed, (2, 2): 50, (2, 3): (0, 60, 0)[seed]}) for seed in range(3)]
    del runs[1]["counts"][1], runs[2]["counts"][0]
    lines = table(read(write(runs))).splitlines()
    assert (
        lines[2] == "| N = 2 | 2 | 50.2 (50.0–50.5; 2 of 3) | 25.0 (2 of 3) | 10.0 (0.0–30.0) | 3 | – | 1,234 | 2.0 |"
    )


def test_what_the_plots_show(write):
    results = read(write(RUNS))
    panels = plot_accuracy(results).axes
    lines = [{line.get_label(): list(line.get_ydata()) for line in axes.lines} for axes in panels]
    assert lines == [
        {"N = 1": [99.5, 12.5], "N = 4": [100, 75], "deeper": [50, 0.5]},  # not N = 1 at 2 passes
        {"N = 1": [95], "N = 4": [95, 55]},
    ]
    figure = plot_flops(results)
    assert "at t = 2, " in figure.get_suptitle()  # at t = 1 only the control is far off
    points, any_n = (
        {line.get_label(): (list(line.get_xdata()), sorted(line.get_ydata())) for line in axes.lines}
        for axes in figure.axes
    )
    assert any_n["N = 4"] == ([2.5, 2.5], [50, 60])
    assert points["N = 1"] == ([1, 1], [10, 15]) and points["deeper"] == ([4.5], [0.5])
    losses = {line.get_label(): line.get_ydata() for line in plot_loss(results).axes[0].lines}
    assert list(losses) == ["N = 1", "N = 4", "any N", "deeper"]
    assert losses["N = 1"] - losses["N = 4"] == pytest.approx(0.005)  # of two seeds, one lies 0.01 higher


@pytest.mark.parametrize(
    "runs",
    [
        [run("N=1", 0, {(1, 1): 5})],
        [run("any N", 0, {(n, d): 10 * n for n in (1, 2, 4, 8) for d in (1, 2, 4, 8, 16, 32, 64)})],
        [run("N=1", 0, {(1, 2): 5}), run("full cache", 0, {(1, 4): 7}, losses=[], commit="")],
        [run("N=8", 0, {(1, 0): 5}), run("longer", 0, {(2, 4): 7})],  # neither at the N that it is about
        [run("N=16", s, {(16, d): 200 - d for d in range(40)}, losses=[[1, 0.0], [2, 1.0]]) for s in (0, 1)],
    ],
)
def test_little_is_enough(write, tmp_path, recwarn, runs):
    main([str(write(runs)), "--output", str(tmp_path / "new" / "folder")])
    assert len(plots(tmp_path / "new" / "folder")) == 3 and not plots(tmp_path)
    assert not [warning for warning in recwarn if issubclass(warning.category, (UserWarning, RuntimeWarning))]


def test_any_n_after_one_n_is_a_model_of_its_own(write):
    counts = {(n, 1): 50 * n for n in (1, 2, 4)}
    names = ("N grows, input injection", "N grows, write dropout", "N grows", "N=4 first")
    runs = [run(name, seed, counts, flops=6e12) for name in names for seed in (0, 1)]
    results = read(write([*RUNS, *runs]))
    assert "| N = 4 first | 2 | 50.0 | – | 2 | 3.00 |" in table(results)
    growing = ["N grows", "N grows, write dropout", "N grows, input injection"]
    order = ["N=1", "N=4", "any N", "N=4 first", *growing, "deeper"]
    assert list(dict.fromkeys(results.points.variant)) == order
    panels = plot_accuracy(results).axes
    assert [axes.get_title() for axes in panels[1:]] == [f"one model, {x}" for x in ("any N", "N = 4 first", *growing)]
    looks = [{line.get_label(): line.get_fillstyle() for line in axes.lines} for axes in panels]
    assert looks[2] == looks[3] == {f"N = {n}": "left" for n in (1, 2, 4)} and "left" not in looks[1].values()
    colours = [line.get_color() for line in plot_loss(results).axes[0].lines]
    assert len(set(colours)) == len(colours)


def test_the_same_run_twice(write, capsys):
    path = write([*RUNS, run("N=4", 0, {(4, 1): 199})])
    assert f"{path}:7: 'N=4', seed 0 is in {path}:4 already" in refused(capsys, path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "not a run: Expecting value"),
        ("[1, 2]", "not a run"),
        ('{"recipe": "toy"}', "variant is None"),
        (run("N=0", 0, {(1, 1): 1}), "unknown variant 'N=0'"),
        (run("wider", 0, {(1, 1): 1}), "unknown variant 'wider'"),
        (run("N=2", 0, {}), "counts are empty"),
        (run("N=2", 0, {(2, 1): 201}), "impossible count"),
        (run("N=2", 0, {(2, 1): 1}, counts=[{"passes": 2, "depth": 1, "correct": 0, "total": 0}]), "impossible count"),
        (run("N=2", 0, {(2, 1): 1}, counts=[{"passes": 2, "depth": 1}]), "impossible count"),
        (run("N=2", 0, {(2, 1): 1}, counts=run("", 0, {(2, 1): 1})["counts"] * 2), "same passes and depth twice"),
        (run("N=2", 0, {(2, 1): 1}, counts=[{"passes": 2, "depth": 1, "correct": 0, "total": 9}]), "no interval"),
        (run("N=2", 0, {(2, 1): 1}, losses=[1, 2]), "not a run"),
        (run("N=2", 0, {(2, 1): 1}, flops="many"), "flops is 'many'"),
        (run("N=2", 0, {(2, 1): 1}, recipe="other"), "recipe is 'other', but 'toy' in"),
        (run("N=2", 0, {(2, 1): 1}, depth_name="hops"), "depth_name is 'hops', but 't' in"),
        (run("N=4", 1, {(4, 1): 1}, flops=7e12, parameters=1235), "parameters is 1235, but 1234 in"),
        (run("N=4", 1, {(4, 1): 1}, flops=8e12), "flops is 8000000000000.0, but 7000000000000.0 in"),
    ],
)
def test_a_line_that_is_no_run(write, tmp_path, capsys, line, message):
    path = write([*RUNS[:4], line, *RUNS[4:]])
    error = refused(capsys, path)
    assert f"{path}:5: " in error and message in error
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_that_cannot_be_reported(write, tmp_path, capsys):
    (tmp_path / "empty.jsonl").touch()
    assert "no runs" in refused(capsys, tmp_path / "empty.jsonl")
    assert "missing.jsonl" in refused(capsys, tmp_path / "missing.jsonl")
    assert "in another file too" in refused(capsys, write(RUNS[:1]), write(RUNS[1:], "more.jsonl"))


def test_a_page_is_kept_but_for_its_table(write, tmp_path):
    page = tmp_path / "toy.md"
    page.write_text(PAGE, encoding="utf-8")
    for _ in range(2):  # once more changes nothing
        main([str(write(RUNS))])
        text = page.read_text(encoding="utf-8")
        assert text == f"# Toys\n\n<!-- table -->\n\n{TABLE}\n<!-- end -->\n\nwords\n"


@pytest.mark.parametrize("text", [PAGE.replace("<!-- end", ""), PAGE.replace("<!-- table", ""), 2 * PAGE, ""])
def test_a_page_with_bad_markers(write, tmp_path, capsys, text):
    page = tmp_path / "toy.md"
    page.write_text(text, encoding="utf-8")
    message = f"{page}: its table belongs between the lines `<!-- table -->` and `<!-- end -->`"
    assert message in refused(capsys, write(RUNS))
    assert page.read_text(encoding="utf-8") == text and not plots(tmp_path)


def test_check(write, tmp_path):
    page = tmp_path / "toy.md"
    page.write_text(PAGE, encoding="utf-8")
    command = [str(write(RUNS))]

    def check() -> str | int:
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit) as stop:
            main([*command, "--check"])
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        return stop.value.code  # a text is printed, and the status is 1

    assert check() == f"out of date: {page}"
    main(command)
    assert check() == 0
    for name in plots(tmp_path):
        (tmp_path / name).unlink()
    assert check() == 0
    page.write_text(page.read_text(encoding="utf-8").replace("12.5", "13.5"), encoding="utf-8")
    assert check() == f"out of date: {page}"
    write([*RUNS, run("N=1", 2, {(1, 1): 200})])
    assert check() == f"out of date: {page}"


def test_the_committed_tables_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    files = sorted(map(str, Path("docs/results").glob("*.jsonl")))
    assert files
    with pytest.raises(SystemExit) as exit:
        main([*files, "--check"])
    assert exit.value.code == 0
    for path in Path("docs/results/tried").glob("*/*.jsonl"):
        assert read(path).recipe == path.stem
