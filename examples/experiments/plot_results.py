"""What a run measured, as a picture: the share of right answers by depth and N, and the loss on the way there."""

from pathlib import Path

from . import figures


def plot_results(results: dict, path: Path):
    """
    Draw the results of a run.

    Parameters
    ----------
    results : dict
        With `counts` and `depth_name`, and `training` and `losses` if they were kept, as `train.py` writes
        them. Hollow is an N that was never trained.
    path : Path
        A PNG file.
    """
    losses = results.get("losses")
    figure, panels = figures.figure(2 if losses else 1, (9 if losses else 5.5, 3.2), squeeze=False)
    by_depth = panels[0, 0]
    numbers = list(dict.fromkeys(row["passes"] for row in results["counts"]))
    trained = results.get("training", {}).get("passes", numbers)
    for n in numbers:
        rows = [row for row in results["counts"] if row["passes"] == n]
        shares, look = [100 * row["exact_match"] for row in rows], figures.look_of_passes(n)
        if n not in trained:
            look |= {"markerfacecolor": "white"}
        by_depth.plot([row["depth"] for row in rows], shares, label=f"N = {n}", **look)
    figures.finish(by_depth, xlabel=results["depth_name"], ylabel="whole answer right (%)", ylim=(-3, 103))
    if losses:
        by_step = panels[0, 1]
        by_step.plot(*zip(*losses), color="0.3", linewidth=1)
        figures.finish(by_step, xlabel="optimizer steps", ylabel="training loss", yscale="log")
    figures.legend(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})  # without the version of who drew it
