"""What reading a prompt costs, until its next token is known; and what a sleep costs over reading a window.

A prompt is read in one call that gives the logits of its last token, so its time is the time to the first new token;
tokens per second are the prompt's tokens over it. A sleep of N passes is held against N - 1 readings of the window
that it replays, through the base model, so that neither touches the head.
"""

from functools import partial

import torch
from matplotlib.figure import Figure
from transformers import DynamicCache

from .. import figures
from . import report
from .bench import Bench, Result, Row, named, short
from .models import FULL, MODELS, OURS, PEERS, build, described


TITLE = "Reading a prompt, and sleeping"
PASSES = (1, 2, 4)


def lengths(bench: Bench) -> list[int]:
    return [32, 64] if bench.quick else [1024, 4096, 8192]


def ours(passes: int) -> str:
    return f"{OURS}, N = {passes}"


@torch.no_grad()
def measure(bench: Bench) -> Result:
    rows, data = [*sleeps(bench), without_logits(bench)], {"ms": {}}
    model = build(OURS, bench)
    peers = {name: build(name, bench) for name in PEERS}
    for length in lengths(bench):
        tokens = bench.tokens(model.config.vocab_size, 1, length)

        def read(reader, tokens=tokens, **kwargs) -> float:
            cache = DynamicCache(config=reader.config)
            return bench.timed(reader, tokens, past_key_values=cache, logits_to_keep=1, **kwargs)

        sides = {ours(n): partial(read, model, sleep_passes=n) for n in PASSES}
        sides |= {name: partial(read, peer) for name, peer in peers.items()}
        rounds = bench.in_turn(sides, f"prefill: {named(length)}", min_rounds=3)
        for side in sides:
            data["ms"].setdefault(side, {})[length] = rounds.ms(side)
        setting = f"prompt of {length // bench.window_size} windows; {described(bench)}"
        for passes in PASSES:
            name = f"time to the first token at {named(length)}, N = {passes}, over that of {FULL}"
            rows.append(Row(name, setting, **rounds.ratio(ours(passes), FULL)))
    return Result(rows, data)


def sleeps(bench: Bench) -> list[Row]:
    """A prefill fills the window, the sleep then empties it."""
    model, rows = build(OURS, bench).model, []
    window = bench.tokens(model.config.vocab_size, 1, bench.window_size)
    for passes in (2, 4, 8):

        def one_round(passes=passes) -> dict[str, float]:
            # The cache is not fresh: like every window but the first, this one begins with an S.
            cache = model(window, use_cache=True).past_key_values
            model.sleep(cache, sleep_passes=1)
            prefill = bench.timed(model, window, past_key_values=cache)
            return {"prefill": prefill, "sleep": bench.timed(model.sleep, cache, sleep_passes=passes)}

        rounds = bench.in_turn({"both": one_round}, f"sleep: N = {passes}")
        name = f"sleep of N = {passes} over {passes - 1} x the window's prefill"
        rows.append(Row(name, described(bench), target=1.05, **rounds.ratio("sleep", "prefill", passes - 1)))
    return rows


def without_logits(bench: Bench) -> Row:
    """What it saves that a prompt's logits, but for the last, are not computed."""
    vocabulary = 5_000 if bench.quick else 50_000
    model = build(OURS, bench, vocab_size=vocabulary)
    tokens = bench.tokens(vocabulary, 1, 4 * bench.window_size)
    sides = {
        name: partial(bench.timed, model, tokens, logits_to_keep=keep) for name, keep in (("last", 1), ("all", 0))
    }
    rounds = bench.in_turn(sides, "prefill: logits")
    setting = f"4 windows, N = {model.config.sleep_passes}, vocabulary {vocabulary:,}; {described(bench)}"
    return Row("reading with the last token's logits, over all logits", setting, **rounds.ratio("last", "all"))


def tables(data: dict) -> str:
    """Seconds to the first token, and tokens per second."""
    points = [*next(iter(data["ms"].values()))]
    head = [named(int(n)) for n in points]
    ms = {name: [short(found[n]["median"]) for n in points] for name, found in data["ms"].items()}
    rates = {name: [short(1000 * int(n) / found[n]["median"]) for n in points] for name, found in data["ms"].items()}
    return (
        "Milliseconds to the first token by length of the prompt:\n\n"
        + report.grid("ms", head, ms)
        + "\n\nTokens per second:\n\n"
        + report.grid("tokens/s", head, rates)
    )


def plot(data: dict) -> Figure:
    figure, axes = figures.figure()
    for name, found in data["ms"].items():
        known = name in MODELS
        dashes = "-" if known else {1: "-", 2: "--", 4: ":"}[int(name[-1])]
        rates = [1000 * int(n) / x["median"] for n, x in found.items()]
        number = MODELS.index(name) if known else 0
        figures.line(axes, [*map(int, found)], rates, name, number, linestyle=dashes)
    report.finish(axes, "tokens of the prompt", "tokens per second", [*map(int, found)])
    figures.legend(figure)
    return figure
