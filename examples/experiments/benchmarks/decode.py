"""What a token costs, by how many came before it.

Token by token through `forward`, under `no_grad` as in `generate`, whose own work on a token (masks, positions, the
choice of the next) comes on top for all alike. Our sleeps are taken between two tokens and timed apart; with them, a
token costs its share of a sleep more. The context is not read but laid into the cache (`models.py`). A peer's ratio
comes from rounds of one window of ours, and as many tokens of the peer's as take a similar time. The ratio to the
sliding window of L, which is about as fast, is measured more closely: both take turns token by token, which slows
both, as their weights displace each other in the processor's cache. What a peer pays includes the copy of its
`DynamicCache` that every new token makes.
"""

import copy
import math
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import figures
from . import report
from .bench import Bench, Result, Row, named, short
from .models import FULL, MODELS, OURS, PEERS, SLIDING, build, described, filled, fits, parameters


TITLE = "Decoding"
PASSES = (2, 4)
AHEAD_FROM = 4096  # of every peer
SLEEP_INCLUDED_FROM = 16384  # ahead of full attention at N = 4
BURST = 0.4  # seconds of a peer per round


def asleep(passes: int) -> str:
    return f"sleep of N = {passes}"


def included(passes: int) -> str:
    return f"{OURS}, sleep of N = {passes} included"


class Stream:
    """A text that a model is in the middle of."""

    def __init__(self, name: str, bench: Bench, context: int):
        self.name, self.bench = name, bench
        self.model = self.call = build(name, bench)
        self.cache = filled(self.model, bench, context)
        self.token = bench.tokens(self.model.config.vocab_size, 1, 1)

    def inputs(self) -> dict:
        """Of a new token."""
        return {"input_ids": self.token, "past_key_values": self.cache}

    @torch.no_grad()
    def decode(self, count: int) -> float:
        """Seconds per token, the median of so many."""
        return float(np.median([self.bench.timed(self.call, **self.inputs()) for _ in range(count)]))

    def burst(self) -> float:
        """Seconds per token of a peer: of few tokens where they are slow."""
        first = self.decode(1)
        return self.decode(max(2, min(self.bench.window_size, int(BURST / first))))


class OurStream(Stream):
    """Ours, which stands at the beginning of a window."""

    def __init__(self, bench: Bench, context: int):
        super().__init__(OURS, bench, context)
        self.model.sleep(self.cache, sleep_passes=2)

    def window(self, beside: Stream | None = None) -> dict[str, float]:
        """
        Seconds per token through one whole window, of a sleep after it, and of a token with its share of that.

        `beside` is a peer about as fast, which takes a token of its own for each of ours.
        """
        streams = {stream.name: stream for stream in (self, beside) if stream is not None}
        seconds = by_turns(streams, self.bench.window_size)
        awake = seconds[OURS]
        for passes in PASSES:
            cache = self.cache if passes == PASSES[-1] else copy.deepcopy(self.cache)
            sleep = self.bench.timed(self.model.sleep, cache, sleep_passes=passes)
            seconds |= {asleep(passes): sleep, included(passes): awake + sleep / self.bench.window_size}
        return seconds


class SlidingStream(Stream):
    """A text of the sliding window's."""

    def __init__(self, bench: Bench, context: int):
        super().__init__(SLIDING, bench, context)


def by_turns(streams: dict[str, Stream], tokens: int) -> dict[str, float]:
    """Seconds per token of texts that are gone through side by side, token by token."""
    seconds = {name: [] for name in streams}
    for position in range(tokens):
        for name in streams if position % 2 else reversed(streams):
            seconds[name].append(streams[name].decode(1))
    return {name: float(np.median(found)) for name, found in seconds.items()}


def together(**streams: Stream) -> dict[str, float]:
    """Seconds per token through a window of texts of which some are ours; these sleep after it."""
    seconds = by_turns(streams, next(iter(streams.values())).bench.window_size)
    for stream in streams.values():
        if isinstance(stream, OurStream):
            stream.model.sleep(stream.cache, sleep_passes=2)
    return seconds


def contexts(bench: Bench) -> list[int]:
    return [64, 128] if bench.quick else [2**i for i in (10, 12, 14, 16, 17, 20)]


def crossover(points: list[int], ratios: list[float]) -> float | None:
    """The context from which on a ratio stays below 1, by a straight line between the logarithms."""
    if not ratios or ratios[-1] >= 1:
        return None
    last = max((i for i, ratio in enumerate(ratios) if ratio >= 1), default=None)
    if last is None:
        return float(points[0])
    (a, b), (y, z) = np.log2(points[last : last + 2]), np.log2(ratios[last : last + 2])
    return float(2 ** (a + (b - a) * y / (y - z)))


def measure(bench: Bench) -> Result:
    rows, data = [], {"ms": {}, "ratios": {}, "left out": []}
    data["parameters"] = {name: parameters(build(name, bench)) for name in MODELS}
    setting = described(bench)

    first, *_, last = [context for context in contexts(bench) if context <= 2**16]
    late, early = OurStream(bench, last), OurStream(bench, first)
    rounds = bench.in_turn(
        {"both": partial(together, late=late, early=early)}, f"decode: {named(last)} and {named(first)}"
    )
    name = f"ms per token at {named(last)} over {named(first)}, sleep apart"
    rows.append(Row(name, setting, target=1.05, **rounds.ratio("late", "early")))

    def unseen() -> float:
        with torch.inference_mode():
            return late.window()[OURS]

    rounds = bench.in_turn({"inference_mode": unseen, "no_grad": lambda: early.window()[OURS]}, "decode: modes")
    name = "ms per token under inference_mode, over no_grad"
    rows.append(Row(name, setting, **rounds.ratio("inference_mode", "no_grad")))

    for context in contexts(bench):
        ours, pairs = OurStream(bench, context), []
        for peer in PEERS:
            if not fits(peer, bench, context):
                data["left out"].append(f"{peer} at {named(context)}")
                continue
            stream = Stream(peer, bench, context)
            sides = {OURS: ours.window, peer: stream.burst}
            rounds = bench.in_turn(sides, f"decode: {peer}, {named(context)}")
            pairs.append(rounds)
            data["ms"].setdefault(peer, {})[context] = rounds.ms(peer)
            if peer == SLIDING:
                sides = {"both": partial(ours.window, beside=stream)}
                rounds = bench.in_turn(sides, f"decode: {peer}, {named(context)}, token by token")
            del stream, sides  # its cache may be most of the memory
            wanted = {OURS: AHEAD_FROM}
            if peer == FULL:
                wanted |= {included(2): math.inf, included(4): SLEEP_INCLUDED_FROM}
            for side, since in wanted.items():
                found = rounds.ratio(side, peer)
                note = side.removeprefix(OURS)
                name = f"ms per token over that of {peer} at {named(context)}{note}"
                rows.append(Row(name, setting, target=1.0 if context >= since else None, **found))
                data["ratios"].setdefault(peer + note, {})[context] = found["ratio"]
        ours = sum(pairs[1:], pairs[0])
        for side in ours.seconds:
            data["ms"].setdefault(side, {})[context] = ours.ms(side)
    data["crossovers"] = {name: crossover([*found], [*found.values()]) for name, found in data["ratios"].items()}
    return Result(rows, data)


def tables(data: dict) -> str:
    """Milliseconds per token, tokens per second, and from where on we are ahead."""
    ms = data["ms"]
    points = [*ms[OURS]]
    head = [named(int(context)) for context in points]
    cells = {
        name: [short(found[context]["median"]) if context in found else "–" for context in points]
        for name, found in ms.items()
    }
    per_second = {
        name: [short(1000 / found[context]["median"]) if context in found else "–" for context in points]
        for name, found in ms.items()
        if not name.startswith("sleep")
    }
    ahead = {}
    for name, since in data["crossovers"].items():
        ahead[name] = "not within what was measured" if since is None else f"{since:,.0f} tokens"
        if since == min(map(int, data["ratios"][name])):
            ahead[name] = f"{since:,.0f} tokens, the shortest measured"
    sizes = {name: [f"{number:,}"] for name, number in data["parameters"].items()}
    parts = [
        "Milliseconds per token (and, last, of a sleep) by tokens in the context, medians:\n\n"
        + report.grid("ms", head, {name: cells[name] for name in sorted(cells, key=lambda x: x.startswith("sleep"))}),
        "Tokens per second:\n\n" + report.grid("tokens/s", head, per_second),
        "This model takes less time per token from this context on:\n\n"
        + report.grid("than", ["ahead from"], {name: [text] for name, text in ahead.items()}),
        "Sizes:\n\n" + report.grid("model", ["parameters"], sizes),
    ]
    if data["left out"]:
        parts.append(f"Left out, as it does not fit into memory: {', '.join(data['left out'])}.")
    return "\n\n".join(parts)


def plot(data: dict) -> Figure:
    figure, axes = figures.figure()
    ms = data["ms"]
    for name in (*MODELS, included(4)):
        found = ms.get(name, {})
        number, dashes = (MODELS.index(name), "-") if name in MODELS else (0, "--")
        medians = [x["median"] for x in found.values()]
        figures.line(axes, [*map(int, found)], medians, name, number, linestyle=dashes)
    report.finish(axes, "tokens in the context", "ms per token", [*map(int, ms[OURS])])
    figures.legend(figure)
    return figure
