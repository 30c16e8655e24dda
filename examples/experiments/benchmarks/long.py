"""What a token of `generate` costs behind a text of up to a million tokens that was really read.

`model.read` reads the text once and leaves a memory at every length; `generate` then goes on from each of them, which
it is given with one new token. So time and bytes are those of the user's call, masks and the choice of the next token
included. Every memory has a full window, so that each call begins with a sleep of the same N.
"""

from functools import partial

from matplotlib.figure import Figure

from .. import figures
from . import report
from .bench import Bench, Result, Row, named, short
from .models import OURS, build, described


TITLE = "Long texts, through generate"
PASSES = 2
NEW = 64  # tokens per call


def contexts(bench: Bench) -> list[int]:
    return [32, 64, 256] if bench.quick else [1024 * n for n in (1, 10, 100, 1024)]


def measure(bench: Bench) -> Result:
    model, memories, memory = build(OURS, bench), {}, None
    for context in contexts(bench):
        text = bench.tokens(model.config.vocab_size, 1, context - (memory.tokens if memory else 0))
        memory = memories[context] = model.read(text, past_key_values=memory, sleep_passes=1)
    token, held = bench.tokens(model.config.vocab_size, 1, 1), {}

    def generate(context: int) -> float:
        output = {}

        def call():
            output["of"] = model.generate(
                token,
                past_key_values=memories[context],
                sleep_passes=PASSES,
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
            )

        seconds = bench.timed(call)
        held[context] = (memories[context].nbytes, output["of"].past_key_values.nbytes)
        return seconds / NEW

    rounds = bench.in_turn({str(context): partial(generate, context) for context in memories}, "long texts")
    first, *later = memories
    setting = f"{NEW} tokens a call, N = {PASSES}; {described(bench)}"
    rows = []
    for context in later:
        found = rounds.ratio(str(context), str(first))
        name = f"ms per token of generate at {named(context)} over {named(first)}"
        rows.append(Row(name, setting, target=1.05, **found))
    sizes = [size for pair in held.values() for size in pair[:1]]
    rows.append(
        Row(
            f"bytes remembered at {' / '.join(map(named, memories))} tokens, largest over smallest",
            setting,
            max(sizes) / min(sizes),
            target=1.0,
            absolute=" / ".join(f"{size:,}" for size in sizes) + " bytes",
        )
    )
    points = {
        context: {"ms": rounds.ms(str(context))["median"], "before": before, "behind": behind}
        for context, (before, behind) in sorted(held.items())
    }
    return Result(rows, {"points": points})


def tables(data: dict) -> str:
    """Milliseconds per token and bytes, by length of the text."""
    points = data["points"]
    cells = {
        "ms per token": [short(x["ms"]) for x in points.values()],
        "bytes before the call": [f"{x['before']:,}" for x in points.values()],
        "bytes behind it": [f"{x['behind']:,}" for x in points.values()],
    }
    return report.grid("by tokens in the context", [named(int(n)) for n in points], cells)


def plot(data: dict) -> Figure:
    figure, axes = figures.figure(panels=2)
    tokens = [*map(int, data["points"])]
    for panel, label, ys in (
        (axes[0], "ms per token of generate", [x["ms"] for x in data["points"].values()]),
        (axes[1], "remembered (KiB)", [x["before"] / 1024 for x in data["points"].values()]),
    ):
        figures.line(panel, tokens, ys, None, 0)
        report.finish(panel, "tokens in the context", label, tokens)
        panel.set_yscale("linear")
        panel.set_ylim(0, 1.5 * max(ys))
    return figure
