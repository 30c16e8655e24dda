"""Turn results into tables and plots: `python -m examples.experiments.report docs/results/*.jsonl`.

A results file holds the finished runs of one recipe, one per line. Beside it, or in `--output`, come a page,
`<recipe>.md`, and plots, `<recipe>-accuracy.png`, `-flops.png` and `-loss.png`.

What is notable:
- a row of a table is a variant and the N it was evaluated at; a variant's spread is that over its seeds, and of a
  single seed the 95 % interval that its number of answers leaves
- minutes are those of the fastest seed, as a machine with other work makes any run slower and none faster
- what is missing stays visible: `–` for a depth never evaluated, `2 of 3` where seeds are missing
- what cannot be averaged is an error that names file and line: a run twice, a variant whose size changes with the seed
- a page that is there already is kept but for its table, between `<!-- table -->` and `<!-- end -->`
- `--check` writes nothing and fails if a page is not what it would write; plots differ between releases of matplotlib
"""

import argparse
import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from modeling_sleep.configuration_sleep import MAX_SLEEP_PASSES
from modeling_sleep.markdown_table import markdown_table

from . import figures


ANY = "any N"
GROWING = ("N grows", "N grows, write dropout", "N grows, input injection")
CONTROLS = ("amnesia", "full cache", "deeper", "longer", "attention only")
FIELDS = {
    **dict.fromkeys(("recipe", "variant", "depth_name", "commit", "device"), str),
    **dict.fromkeys(("seed", "threads", "parameters"), int),
    **dict.fromkeys(("flops", "seconds"), (int, float)),
    **dict.fromkeys(("counts", "losses"), list),
}
MARK = "<!-- table -->\n"
BLOCK = re.compile(f"{MARK}.*?(?=<!-- end -->)", re.S)
NEW_PAGE = "# {0}\n\n" + MARK + "<!-- end -->\n\n![Whole answers right by {1}]({0}-accuracy.png)\n"


class ReportError(ValueError):
    """What is wrong with the input, with file and line, for whoever has to mend it."""


@dataclasses.dataclass
class Results:
    """
    The runs of one recipe.

    runs : one row per run, with the fields of the file and `where`, its file and line.
    points : one row per run, passes and depth, with `share` right and `own`: is it the N that the variant is about?
    """

    recipe: str
    depth_name: str
    runs: pd.DataFrame
    points: pd.DataFrame


def rank(variant: str) -> tuple[int, float]:
    """Order of variants: a model per N, then any N (at once, after one N, after a growing N), then controls."""
    if match := re.fullmatch(r"N=([1-9]\d*)( first)?", variant):
        return (1 if match[2] else 0), int(match[1])
    if variant == ANY:
        return 1, 0
    if variant in GROWING:
        return 1, MAX_SLEEP_PASSES + 1 + GROWING.index(variant)  # behind those that begin with one N
    if variant in CONTROLS:
        return 2, CONTROLS.index(variant)
    known = ", ".join((ANY, *GROWING, *CONTROLS))
    raise ValueError(f"unknown variant {variant!r}; there are N=1, N=2, ..., N=1 first, N=2 first, ..., {known}")


def is_any(variant: str) -> bool:
    """Whether one model was trained for any N."""
    return rank(variant)[0] == 1


def own(variant: str, passes: int) -> bool:
    """Whether `variant` is shown at N = `passes` in plots: every N for any N, 1 for controls, else the model's own."""
    return is_any(variant) or passes == (1 if variant in CONTROLS else rank(variant)[1])


def parse(line: str) -> dict:
    """One run. Raises AttributeError, TypeError or ValueError if it is not one."""
    run = json.loads(line)
    for name, kind in FIELDS.items():
        if not isinstance(run.get(name), kind):
            raise TypeError(f"{name} is {run.get(name)!r}")
    rank(run["variant"])
    for count in run["counts"]:
        numbers = [count.get(name) for name in ("passes", "depth", "correct", "total")]
        interval = [count.get(name) for name in ("low", "high")]
        if not all(isinstance(number, int) for number in numbers) or not 0 <= numbers[2] <= numbers[3] > 0:
            raise ValueError(f"impossible count {count}")
        if not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in interval):
            raise ValueError(f"no interval in {count}")
    if not 0 < len({(count["passes"], count["depth"]) for count in run["counts"]}) == len(run["counts"]):
        raise ValueError("counts are empty, or have the same passes and depth twice")
    run["losses"] = [(int(step), float(loss)) for step, loss in run["losses"]]
    return run


def read(path: Path) -> Results:
    """Read the results file of one recipe."""
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            run = {**parse(line), "where": where}
        except (AttributeError, TypeError, ValueError) as error:
            raise ReportError(f"{where}: not a run: {error}") from error
        for other in runs:
            alike = run["variant"] == other["variant"]
            if alike and run["seed"] == other["seed"]:
                raise ReportError(f"{where}: {run['variant']!r}, seed {run['seed']} is in {other['where']} already")
            for name in ("recipe", "depth_name", *["parameters", "flops"] * alike):
                if run[name] != other[name]:
                    raise ReportError(f"{where}: {name} is {run[name]!r}, but {other[name]!r} in {other['where']}")
        runs.append(run)
    if not runs:
        raise ReportError(f"{path}: no runs")
    runs.sort(key=lambda run: (rank(run["variant"]), run["seed"]))
    about = ("variant", "seed", "flops")
    points = [{**count, **{name: run[name] for name in about}} for run in runs for count in run["counts"]]
    points.sort(key=lambda point: (rank(point["variant"]), point["passes"], point["depth"]))
    points = pd.DataFrame(points)
    points["share"] = 100 * points.correct / points.total
    points["own"] = [own(*pair) for pair in zip(points.variant, points.passes)]
    return Results(runs[0]["recipe"], runs[0]["depth_name"], pd.DataFrame(runs), pd.DataFrame(points))


def pretty(variant: str) -> str:
    """A variant as it is written."""
    return variant.replace("=", " = ")


def cell(points: pd.DataFrame, seeds: int) -> str:
    """Mean over seeds and, if they differ, the lowest and the highest; of a single seed its interval."""
    if points.empty:
        return "–"
    shares = points.share
    if len(shares) == seeds == 1:
        low, high = 100 * points.low.iloc[0], 100 * points.high.iloc[0]
        return f"{shares.iloc[0]:.1f} [{low:.0f}–{high:.0f}]"
    low, high = f"{shares.min():.1f}", f"{shares.max():.1f}"
    notes = [f"{low}–{high}"] if low != high else []
    notes += [f"{len(shares)} of {seeds}"] if len(shares) < seeds else []
    return f"{shares.mean():.1f}" + (f" ({'; '.join(notes)})" if notes else "")


def table(results: Results) -> str:
    """The Markdown table, and a line under it that says what it shows."""
    runs, points, depth_name = results.runs, results.points, results.depth_name
    depths = sorted(points.depth.unique())
    base = runs.flops[runs.variant == "N=1"].mean()  # nan without that variant
    head = ["variant", "N", *(f"{depth_name} = {depth}" for depth in depths)]
    head += ["seeds", "FLOPs / N = 1", "parameters", "minutes"]
    rows = []
    for (variant, passes), group in points.groupby(["variant", "passes"], sort=False):
        its_runs = runs[runs.variant == variant]
        seeds, flops = group.seed.nunique(), its_runs.flops.mean() / base
        cells = [pretty(variant), passes, *(cell(group[group.depth == depth], seeds) for depth in depths)]
        cells += [seeds, "–" if math.isnan(flops) else f"{flops:.2f}"]
        rows.append([*cells, f"{its_runs.parameters.iloc[0]:,}", f"{its_runs.seconds.min() / 60:.1f}"])
    totals = sorted({points.total.min(), points.total.max()})
    machines = sorted({f"{run.device} ({run.threads} thread{'s'[: run.threads > 1]})" for run in runs.itertuples()})
    answers = "–".join(f"{total:,}" for total in totals)
    # A run in slices may name several.
    commits = sorted({commit for names in runs.commit.replace("", "unknown") for commit in names.split(", ")})
    caption = (
        f"Whole answers right in % by {depth_name}: mean over seeds (lowest–highest seed), of a single seed [95 % "
        f"interval]. N: passes when evaluated. {answers} answers per seed and depth. "
        f"FLOPs: of a training; minutes: of the fastest, on {', '.join(machines)}. Commit {', '.join(commits)}."
    )
    return f"{markdown_table(head, rows)}\n\n{caption}\n"


def style(variant: str, passes: int) -> dict:
    """The look of a variant at N = `passes`: hollow for any N, half of it if one N came first, greys for controls."""
    kind, n = rank(variant)
    if kind == 2:
        dashes = ((1, 1), (5, 1), (4, 1, 1, 1), (2, 2), (6, 3))[n]
        return dict(color=str((0.25, 0.5, 0.35, 0.6, 0.45)[n]), linestyle=(0, dashes), marker="Xv<P*"[n], markersize=5)
    look = figures.look_of_passes(passes)
    if kind == 1:
        look |= {"fillstyle": "left"} if n else {"markerfacecolor": "white"}
    return look


def panels_of(points: pd.DataFrame, size: float) -> tuple[Figure, list]:
    """A figure, and (axes, points) of its panels: on the left a model per N with the controls, then each for any N."""
    parts = [("a model per N, and controls", ~points.variant.map(is_any))]
    parts += [
        (f"one model, {pretty(name)}", points.variant == name) for name in filter(is_any, points.variant.unique())
    ]
    parts = [(title, points[chosen]) for title, chosen in parts if chosen.any()] or [("", points)]
    figure, panels = figures.figure(len(parts), (2.2 + size * len(parts), 4), sharey=True, squeeze=False)
    for axes, (title, _) in zip(panels[0], parts):
        axes.set_title(title, fontsize=10)
    panels[0][0].set_ylabel("whole answer right (%)")
    return figure, [(axes, part) for axes, (_, part) in zip(panels[0], parts)]


def label_of(variant: str, passes: int) -> str:
    """In the legend of a panel, which names a model for any N."""
    return pretty(variant) if variant in CONTROLS else f"N = {passes}"


def plot_accuracy(results: Results) -> Figure:
    """Accuracy by depth."""
    points, depths = results.points, sorted(results.points.depth.unique())
    figure, panels = panels_of(points[points.own], 3.7)
    figure.suptitle(results.recipe)
    for axes, part in panels:
        for (variant, passes), group in part.groupby(["variant", "passes"], sort=False):
            look = style(variant, passes)
            mean = group.groupby("depth").share.mean()
            axes.plot(mean.index, mean, label=label_of(variant, passes), **look)
            if group.seed.nunique() > 1:
                axes.scatter(group.depth, group.share, color=look["color"], s=9, alpha=0.35, linewidths=0)
        if depths and depths[0] > 0 and depths[-1] > 8:
            axes.set_xscale("log", base=2)
        if len(depths) <= 10:
            axes.set_xticks(depths, labels=depths)
            axes.minorticks_off()
        figures.finish(axes, xlabel=results.depth_name, ylim=(-3, 103))
    return figure


def telling_depth(points: pd.DataFrame) -> int:
    """The depth at which means differ most, controls apart unless there is too little else to compare."""
    means = points.groupby(["variant", "passes", "depth"]).share.mean().unstack()
    ours = means[~means.index.get_level_values("variant").isin(CONTROLS)]
    means = ours if len(ours) > 1 else means
    return (means.max() - means.min()).idxmax()


def plot_flops(results: Results) -> Figure:
    """Accuracy over the FLOPs of the training, a point per run and N."""
    shown = results.points[results.points.own]
    base = results.runs.flops[results.runs.variant == "N=1"].mean()
    unit, suffix = (1, "") if math.isnan(base) else (base, " / N = 1")
    title = results.recipe
    if len(shown):
        depth = telling_depth(shown)
        shown = shown[shown.depth == depth]
        title += f"\nat {results.depth_name} = {depth}, where variants (controls apart) differ most"
    figure, panels = panels_of(shown, 2.7)
    figure.suptitle(title, fontsize=10)
    limits = dict(xlim=(0, 1.06 * results.runs.flops.max() / unit), ylim=(-3, 103))
    for axes, part in panels:
        for (variant, passes), group in part.groupby(["variant", "passes"], sort=False):
            look = {**style(variant, passes), "linestyle": "none"}
            axes.plot(group.flops / unit, group.share, label=label_of(variant, passes), alpha=0.8, **look)
        figures.finish(axes, xlabel="FLOPs of the training" + suffix, **limits)
    return figure


def plot_loss(results: Results) -> Figure:
    """Loss over steps, a line per variant: mean over seeds, lightly smoothed; a curriculum makes it a saw."""
    figure, axes = figures.figure(size=(6.4, 4))
    for variant, runs in results.runs.groupby("variant", sort=False):
        losses = pd.DataFrame(runs.losses.sum(), columns=["step", "loss"])
        mean = losses.groupby("step").loss.mean()
        mean = mean.rolling(1 + len(mean) // 50, center=True, min_periods=1).mean()
        kind, n = rank(variant)
        look = style(variant, n or 1) | {"markevery": 1 + len(mean) // 8, "markersize": 4}
        if kind == 1:  # which has no N of its own, so none of the colours of an N
            place = list(filter(is_any, results.runs.variant.unique())).index(variant)
            look |= {"color": figures.COLOURS[1 + place], "linestyle": "-"}
        axes.plot(mean.index, mean, label=pretty(variant), linewidth=1.2, **look)
    values = [loss for losses in results.runs.losses for _, loss in losses] or [0]
    if 0 < 20 * min(values) < max(values):
        axes.set_yscale("log")
    figures.finish(axes, title=results.recipe, xlabel="optimizer steps", ylabel="training loss, smoothed")
    return figure


def fill(page: Path, results: Results) -> str:
    """The text of `page`, or of a new one, with the table between its markers renewed."""
    new = NEW_PAGE.format(results.recipe, results.depth_name)
    text = page.read_text(encoding="utf-8") if page.exists() else new
    if len(BLOCK.findall(text)) != 1 or text.count(MARK) != 1:
        raise ReportError(f"{page}: its table belongs between the lines `{MARK.strip()}` and `<!-- end -->`, once")
    return BLOCK.sub(lambda _: f"{MARK}\n{table(results)}\n", text)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Turn results into tables and plots.")
    parser.add_argument("results", type=Path, nargs="+", help="files with a finished run per line")
    parser.add_argument("--output", type=Path, help="folder of pages and plots (default: beside each file)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    args = parser.parse_args(argv)
    try:
        everything = {}
        for path in args.results:
            results = read(path)
            if results.recipe in everything:
                raise ReportError(f"{path}: {results.recipe!r} is in another file too")
            everything[results.recipe] = (args.output or path.parent, results)
        pages = {folder / f"{recipe}.md": results for recipe, (folder, results) in everything.items()}
        texts = {page: fill(page, results) for page, results in pages.items()}
    except (ReportError, OSError) as error:
        parser.error(str(error))  # exits with 2

    if args.check:
        old = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        sys.exit("\n".join(f"out of date: {path}" for path in old) or 0)
    for recipe, (folder, results) in everything.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name, plot in (("accuracy", plot_accuracy), ("flops", plot_flops), ("loss", plot_loss)):
            figure = plot(results)
            figures.legend(figure, fontsize=8)
            figure.savefig(folder / f"{recipe}-{name}.png", dpi=150)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
