"""What a run measured, as a picture: the share of right answers by depth and N, and the loss on the way there."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def plot_results(results: dict, path: Path):
    """
    Draw the results of a run.

    Parameters
    ----------
    results : dict
        With `counts` and `depth_name`, and `training` and `losses` if they were kept, as `examples/train.py` writes
        them. Dashed is an N that was never trained.
    path : Path
        A PNG file.
    """
    losses = results.get("losses")
    figure = Figure(figsize=(8 if losses else 5.5, 3.2), layout="constrained")
    panels = figure.subplots(ncols=2 if losses else 1, squeeze=False)[0]
    by_depth = panels[0]
    numbers = list(dict.fromkeys(row["passes"] for row in results["counts"]))
    trained = results.get("training", {}).get("passes", numbers)
    for i, n in enumerate(numbers):
        rows = [row for row in results["counts"] if row["passes"] == n]
        color = matplotlib.colormaps["viridis"](0.9 * i / max(1, len(numbers) - 1))
        shares = [100 * row["exact_match"] for row in rows]
        line = "o-" if n in trained else "o--"
        by_depth.plot([row["depth"] for row in rows], shares, line, color=color, markersize=4, label=f"N = {n}")
    by_depth.set(xlabel=results["depth_name"], ylabel="whole answer right (%)", ylim=(-3, 103))
    if losses:
        by_depth.legend(frameon=False, fontsize=8)
        by_step = panels[1]
        by_step.plot(*zip(*losses), color="0.3", linewidth=1)
        by_step.set_yscale("log")
        by_step.set(xlabel="optimizer steps", ylabel="training loss")
    else:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})  # without the version of who drew it
