"""What a token costs beside a sliding window, by the length L of the window.

Both hold at most L tokens, so neither knows how long the text is. The sliding window keeps L keys and values at every
layer and copies them with every token; ours holds half a window in the mean, at every second layer. Token by token in
turns through one whole window of ours, as in Decoding; with our sleep, a token costs its share of it more.
"""

import copy
from functools import partial

from matplotlib.figure import Figure

from . import report
from .bench import Bench, Result, Row, named
from .decode import PASSES, OurStream, Stream, crossover, included
from .models import OURS, SLIDING, described


TITLE = "The sliding window, by its length"


def lengths(bench: Bench) -> list[int]:
    return [16, 32] if bench.quick else [2**i for i in (7, 8, 9, 10, 11)]


def measure(bench: Bench) -> Result:
    rows, data = [], {"ratios": {}}
    context = 4 * lengths(bench)[-1]
    for length in lengths(bench):
        wide = copy.copy(bench)
        wide.window_size = length
        ours, sliding = OurStream(wide, context), Stream(SLIDING, wide, context)
        rounds = bench.in_turn({"both": partial(ours.window, beside=sliding)}, f"window: {length}", min_rounds=3)
        for side in (OURS, *map(included, PASSES)):
            found = rounds.ratio(side, SLIDING)
            note = side.removeprefix(OURS)
            name = f"ms per token over that of {SLIDING} at {named(context)}{note}"
            rows.append(Row(name, described(wide), **found))
            data["ratios"].setdefault(side, {})[length] = found["ratio"]
    data["crossovers"] = {side: crossover([*found], [*found.values()]) for side, found in data["ratios"].items()}
    return Result(rows, data)


def tables(data: dict) -> str:
    """Ratios by L, and from where on we are ahead."""
    head = [f"L = {length}" for length in data["ratios"][OURS]]
    cells = {side: [f"{ratio:.2f}" for ratio in found.values()] for side, found in data["ratios"].items()}
    ahead = {
        side: ["not within what was measured" if since is None else f"L = {since:,.0f}"]
        for side, since in data["crossovers"].items()
    }
    return (
        f"Time per token over that of {SLIDING}:\n\n"
        + report.grid("over the sliding window", head, cells)
        + "\n\nLess time per token from this length on:\n\n"
        + report.grid("of", ["ahead from"], ahead)
    )


def plot(data: dict) -> Figure:
    figure, axes = report.figure()
    for number, (side, found) in enumerate(data["ratios"].items()):
        report.line(axes, [*map(int, found)], [*found.values()], side, number)
    axes.axhline(1, color="#999999", linestyle=":", label=SLIDING)
    report.finish(axes, "tokens in a window (L)", "time per token, over the sliding window", [*map(int, found)])
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)
    report.legend(figure)
    return figure
