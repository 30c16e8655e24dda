"""How deep every N answers: `python -m examples.experiments.depth_answered docs/results/tried/more-passes/*.json`.

The files are those of `evaluate_run.py --output`, each of another run of one recipe. A depth is answered if it and all
shallower ones that were asked are right in 90 % (`--share`). `--output NAME` (default: depth-answered, beside the
first file) becomes NAME.md, with a row for every variant and N, and NAME.png.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from modeling_sleep.markdown_table import markdown_table

from . import figures
from .report import ReportError, cell, pretty, rank


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """
    Read what runs were asked.

    Returns
    -------
    pd.DataFrame
        One row per run, N and depth, as `counts` have them, with `share` right in %, whether that N `is_trained`, and
        the run's `recipe`, `variant`, `seed`, `depth_name` and `max_depth` in training (nan in files that do not say).

    Raises
    ------
    ReportError
        If a file is not of `evaluate_run.py`, of another recipe, or of a run that an earlier file is of.
    """
    rows, seen = [], {}
    for path in paths:
        try:
            asked = json.loads(path.read_text(encoding="utf-8"))
            about = {name: asked["run"][name] for name in ("recipe", "variant", "seed")}
            about |= {"depth_name": asked["depth_name"], "max_depth": asked.get("task", {}).get("max_depth")}
            rank(about["variant"])
            new = [{**count, **about, "share": 100 * count["correct"] / count["total"]} for count in asked["counts"]]
            trained = asked["training"]["passes"]
            rows += [{**row, "is_trained": row["passes"] in trained} for row in new]
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"{path}: not what evaluate_run.py keeps: {error!r}") from error
        run = (about["variant"], about["seed"])
        if run in seen:
            raise ReportError(f"{path}: {run[0]!r}, seed {run[1]} is in {seen[run]} already")
        if about["recipe"] != rows[0]["recipe"]:
            raise ReportError(f"{path}: the recipe is {about['recipe']!r}, but {rows[0]['recipe']!r} in {paths[0]}")
        seen[run] = path
    rows.sort(key=lambda row: (rank(row["variant"]), row["passes"], row["seed"], row["depth"]))
    return pd.DataFrame(rows)


def depth_answered(points: pd.DataFrame, percent: float) -> int:
    """The deepest of one run's depths with one N up to which all are right in `percent`; 0 if none is."""
    points = points.sort_values("depth")
    return points.depth[(points.share >= percent).cummin()].max() if points.share.iloc[0] >= percent else 0


def answered_by_run(points: pd.DataFrame, percent: float) -> pd.DataFrame:
    """One row per variant, N and seed, in this order: `answered`."""
    rows = [
        {"variant": variant, "passes": passes, "seed": seed, "answered": depth_answered(group, percent)}
        for (variant, passes, seed), group in points.groupby(["variant", "passes", "seed"], sort=False)
    ]
    return pd.DataFrame(rows)


def table(points: pd.DataFrame, percent: float) -> str:
    """The Markdown table, and a line under it that says what it shows."""
    depth_name, depths = points.depth_name.iloc[0], sorted(points.depth.unique())
    head = ["variant", "N", *(f"{depth_name} = {depth}" for depth in depths), f"answered at {percent:g} %", "seeds"]
    rows = []
    answered = answered_by_run(points, percent).groupby(["variant", "passes"])["answered"]
    for (variant, passes), group in points.groupby(["variant", "passes"], sort=False):
        seeds, of_seeds = group.seed.nunique(), answered.get_group((variant, passes))
        deepest = f"{of_seeds.mean():.1f}" + (
            f" ({of_seeds.min()}–{of_seeds.max()})" if of_seeds.nunique() > 1 else ""
        )
        cells = [pretty(variant), str(passes) + ("" if group.is_trained.any() else ", never trained")]
        rows.append([*cells, *(cell(group[group.depth == depth], seeds) for depth in depths), deepest, seeds])
    totals = sorted({points.total.min(), points.total.max()})
    caption = (
        f"Whole answers right in % by {depth_name}: mean over seeds (lowest–highest seed), of a single seed [95 % "
        f"interval]. Answered: the depth up to which all asked are right in {percent:g} %, 0 if none is. "
        f"{'–'.join(f'{total:,}' for total in totals)} answers per seed and depth."
    )
    return f"{markdown_table(head, rows)}\n\n{caption}\n"


def plot(points: pd.DataFrame, percent: float) -> Figure:
    """The depth answered over N, a line per variant: mean over seeds, and a thin one for every seed."""
    figure, axes = figures.figure(size=(7.5, 4))
    answered = answered_by_run(points, percent)
    for number, (variant, group) in enumerate(answered.groupby("variant", sort=False)):
        mean = group.groupby("passes").answered.mean()
        is_trained = points[points.variant == variant].groupby("passes").is_trained.any()
        seeds = group.seed.nunique()
        label = f"{pretty(variant)} ({seeds} seed{'s'[: seeds > 1]})"
        figures.line(axes, mean.index, mean, label, number, markevery=list(is_trained))
        hollow = dict(linestyle="none", markerfacecolor="white", markevery=list(~is_trained))
        figures.line(axes, mean.index, mean, None, number, **hollow)
        for _, of_seed in group.groupby("seed"):
            axes.plot(of_seed.passes, of_seed.answered, color=figures.COLOURS[number], alpha=0.4, linewidth=0.7)
    if points.max_depth.notna().any():
        axes.axhline(points.max_depth.max(), color=figures.GREY, linestyle=":", label="deepest in training")
    numbers, deepest = sorted(answered.passes.unique()), points.depth.max()
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, labels=numbers)
    axes.minorticks_off()
    axes.set_yticks(range(deepest + 1))
    labels = dict(xlabel="N, passes when asked (hollow: never trained)", ylim=(-0.2, deepest + 0.2))
    figures.finish(axes, ylabel=f"{points.depth_name.iloc[0]} answered at {percent:g} %", **labels)
    return figure


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description="Say how deep every N answers, as a table and a plot.")
    parser.add_argument("files", type=Path, nargs="+", help="what evaluate_run.py kept, one file per run")
    parser.add_argument("--output", type=Path, metavar="NAME", help="of NAME.md and NAME.png")
    parser.add_argument("--share", type=float, default=0.9, help="of right answers that a depth takes")
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {args.share}")
    try:
        points = read(args.files)
    except (ReportError, OSError) as error:
        parser.error(str(error))
    output, percent = args.output or args.files[0].parent / "depth-answered", 100 * args.share
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name(output.name + ".md").write_text(table(points, percent), encoding="utf-8")
    figure = plot(points, percent)
    figures.legend(figure)
    figure.savefig(output.with_name(output.name + ".png"), dpi=150)
    print(output.with_name(output.name + ".md"))


if __name__ == "__main__":
    main()
