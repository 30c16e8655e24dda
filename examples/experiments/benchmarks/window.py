"""What a token costs beside a sliding window, by the length L of the window and by the width of the model.

Both hold at most L tokens, so neither knows how long the text is. The sliding window keeps L keys and values at every
layer and copies them with every token; ours holds half a window in the mean, at every second layer, but calls more and
smaller operations, which counts in a narrow model. Token by token in turns through one whole window of ours, as in
Decoding; with our sleep, a token costs its share of it more.

Compiled, a token is one graph: ours as by `generate(compile_config=...)`, the sliding window in transformers' static
cache, the fastest that it can be had. By width, models are built four times, either first in turn: where its weights
come to lie in memory shifts a model's time by some per cent.
"""

import copy
from functools import partial

import torch
from matplotlib.figure import Figure

from .. import figures
from . import report
from .bench import Bench, Result, Rounds, Row, named
from .compiled import CompiledStream, StaticStream
from .decode import AHEAD_FROM, PASSES, OurStream, SlidingStream, crossover, included, together
from .models import OURS, SLIDING, described, sizes


TITLE = "The sliding window, by its length and by the width"
COMPILED = "both compiled"
PAIRS = {
    OURS: {"ours": OurStream, "sliding": SlidingStream},
    COMPILED: {"ours": CompiledStream, "sliding": StaticStream},
}


def lengths(bench: Bench) -> list[int]:
    return [16, 32] if bench.quick else [2**i for i in (7, 8, 9, 10, 11)]


def widths(bench: Bench) -> list[int]:
    """Times the width of the other sections."""
    return [1, 2] if bench.quick else [1, 2, 4]


def sum_of_builds(bench: Bench, other: Bench, kinds: dict[str, type], label: str) -> Rounds:
    """The rounds of `kinds` side by side, built several times, either first."""
    builds = []
    for number in range(1 if bench.quick else 4):
        torch.compiler.reset()  # models share what is compiled, which is limited
        streams = {name: kinds[name](other, AHEAD_FROM) for name in (kinds if number % 2 else reversed(kinds))}
        builds.append(bench.in_turn({"both": partial(together, **streams)}, f"{label}, build {number}", min_rounds=3))
    return sum(builds[1:], builds[0])


def measure(bench: Bench) -> Result:
    rows, data = [], {"length": {}, "width": {}}
    context = 4 * lengths(bench)[-1]
    for length in lengths(bench):
        other = copy.copy(bench)
        other.window_size = length
        ours, sliding = OurStream(other, context), SlidingStream(other, context)
        rounds = bench.in_turn({"both": partial(ours.window, beside=sliding)}, f"window: L = {length}", min_rounds=3)
        for side in (OURS, *map(included, PASSES)):
            found = rounds.ratio(side, SLIDING)
            note = side.removeprefix(OURS)
            name = f"ms per token over that of {SLIDING} at {named(context)}{note}"
            rows.append(Row(name, described(other), **found))
            data["length"].setdefault(side, {})[length] = found["ratio"]
    for width in widths(bench):
        other = copy.copy(bench)
        other.width = width
        hidden_size = sizes(other)["hidden_size"]
        for side, kinds in PAIRS.items():
            rounds = sum_of_builds(bench, other, kinds, f"window: {side}, d = {hidden_size}")
            found = rounds.ratio("ours", "sliding")
            note = "" if side == OURS else f", {side}"
            name = f"ms per token over that of {SLIDING} at {named(AHEAD_FROM)}{note}"
            rows.append(Row(name, described(other), target=1.0, **found))
            data["width"].setdefault(side, {})[hidden_size] = found["ratio"]
    data["crossovers"] = {
        way: {side: crossover([*found], [*found.values()]) for side, found in data[way].items()}
        for way in ("length", "width")
    }
    return Result(rows, data)


def tables(data: dict) -> str:
    """Ratios by L and by width, and from where on we are ahead."""
    parts = []
    for way, symbol, words in (("length", "L", "this length"), ("width", "d", "this width")):
        head = [f"{symbol} = {size}" for size in data[way][OURS]]
        cells = {side: [f"{ratio:.2f}" for ratio in found.values()] for side, found in data[way].items()}
        ahead = {
            side: ["not within what was measured" if since is None else f"{symbol} = {since:,.0f}"]
            for side, since in data["crossovers"][way].items()
        }
        parts += [
            f"Time per token over that of {SLIDING}:",
            report.grid("over the sliding window", head, cells),
            f"Less time per token from {words} on:",
            report.grid("of", ["ahead from"], ahead),
        ]
    return "\n\n".join(parts)


def plot(data: dict) -> Figure:
    figure, axes = figures.figure(panels=2)
    words, sides = {"length": "tokens in a window (L)", "width": "hidden size (d)"}, [OURS, *map(included, PASSES)]
    top = 1.05 * max(ratio for way in words for found in data[way].values() for ratio in found.values())
    for panel, (way, label) in zip(axes, words.items(), strict=True):
        for side, found in data[way].items():
            once = side if side == COMPILED or way == "length" else None  # in the legend
            figures.line(panel, [*map(int, found)], [*found.values()], once, [*sides, COMPILED].index(side))
        panel.axhline(1, color=figures.GREY, linestyle=":", label=SLIDING if way == "width" else None)
        report.finish(panel, label, "time per token, over the sliding window", [*map(int, found)])
        panel.set_yscale("linear")
        panel.set_ylim(0, top)
    figures.legend(figure)
    return figure
