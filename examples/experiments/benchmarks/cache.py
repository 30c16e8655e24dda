"""What is remembered of a text, by its length: bytes of keys, values, kept hidden states, fast weights and the
convolution's inputs.

This model reads the text; into the caches of peers it is laid (`models.py`). A window of ours is full at every length.
This stack with its cache kept also keeps what a sleep would replay, a fifth of its bytes.
"""

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import DynamicCache

from .. import figures
from . import report
from .bench import Bench, Result, Row, named
from .models import FULL, MODELS, OURS, PEERS, build, described, filled, fits, held_bytes, tensors


TITLE = "Cache"


def contexts(bench: Bench) -> list[int]:
    return [32, 64, 256] if bench.quick else [2**i for i in (8, 10, 12, 14, 16)]


def kinds(cache: DynamicCache) -> dict[str, int]:
    return {kind: held_bytes(cache, kind) for kind in tensors(cache)}


@torch.no_grad()
def read(model, bench: Bench, lengths: list[int]) -> dict[int, dict[str, int]]:
    """Bytes by kind whenever as many tokens have been read."""
    cache, found = DynamicCache(config=model.config), {}
    for end in tqdm(range(bench.window_size, lengths[-1] + 1, bench.window_size), desc="   cache", leave=False):
        tokens = bench.tokens(model.config.vocab_size, 1, bench.window_size)
        model.model(tokens, past_key_values=cache, sleep_passes=2)
        if end in lengths:
            found[end] = kinds(cache)
    return found


def measure(bench: Bench) -> Result:
    lengths = [bench.window_size, *contexts(bench)]
    data = {"bytes": {OURS: read(build(OURS, bench), bench, lengths)}}
    for peer in PEERS:
        model = build(peer, bench)
        found = {n: kinds(filled(model, bench, n)) for n in contexts(bench) if fits(peer, bench, n)}
        data["bytes"][peer] = found
    totals = {name: {n: sum(x.values()) for n, x in found.items()} for name, found in data["bytes"].items()}
    ours, longest, setting = totals[OURS], lengths[-1], described(bench)
    rows = [
        Row(
            f"cache bytes at {' / '.join(map(named, lengths))} tokens, largest over smallest",
            setting,
            max(ours.values()) / min(ours.values()),
            target=1.0,
            absolute=" / ".join(f"{size:,}" for size in ours.values()) + " bytes",
        )
    ]
    for peer in PEERS:
        if longest in totals[peer]:
            name = f"cache bytes over those of {peer} at {named(longest)}"
            text = f"{ours[longest]:,} over {totals[peer][longest]:,} bytes"
            rows.append(Row(name, setting, ours[longest] / totals[peer][longest], absolute=text))
    return Result(rows, data)


def tables(data: dict) -> str:
    """KiB by length, and what they are of."""
    points = [*data["bytes"][OURS]]
    head = [named(int(n)) for n in points]
    totals, last = {}, {}
    for name, found in data["bytes"].items():
        totals[name] = [f"{sum(found[n].values()) / 1024:,.0f}" if n in found else "–" for n in points]
        longest = [*found][-1]
        last[f"{name} at {named(int(longest))}"] = [f"{size / 1024:,.0f}" for size in found[longest].values()]
    of = [*next(iter(data["bytes"][OURS].values()))]
    return (
        "KiB by tokens in the context:\n\n"
        + report.grid("KiB", head, totals)
        + "\n\nOf what, in KiB:\n\n"
        + report.grid("KiB", of, last)
    )


def plot(data: dict) -> Figure:
    figure, axes = figures.figure()
    for name, found in data["bytes"].items():
        mib = [sum(x.values()) / 2**20 for x in found.values()]
        figures.line(axes, [*map(int, found)], mib, name, MODELS.index(name))
    report.finish(axes, "tokens in the context", "cache (MiB)", [*map(int, data["bytes"][FULL])])
    figures.legend(figure)
    return figure
