"""What it costs that the texts of a batch differ in length, and that they are packed instead of padded.

Lengths spread evenly over a factor of four, so that hardly two rows sleep together. They are held against as many rows
and tokens in texts of one length: the reading and training of texts of two to eight windows, and generation of two
windows' tokens behind prompts of half a window to two. Packed, the documents of a batch stand one after the other in
one row, where `position_ids` that begin anew tell them apart; padded, each has a row. Peak memory is that of a
training step in a process of its own (`memory.py`).
"""

from functools import partial

import torch
from matplotlib.figure import Figure

from .. import figures
from . import memory, report
from .bench import Bench, Result, Row, short
from .memory import Step
from .models import OURS, build, described


TITLE = "Rows of different lengths"
PASSES = (1, 2)
TARGET = 1.25


def lengths(bench: Bench) -> tuple[int, ...]:
    """Of the texts of a batch, the longest four times the shortest."""
    rows = 4 if bench.quick else 8
    return tuple(bench.window_size * (2 * (rows - 1) + 6 * i) // (rows - 1) for i in range(rows))


def even(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """As many texts and tokens, but for less than a token each, of one length."""
    return (sum(lengths) // len(lengths),) * len(lengths)


@torch.no_grad()
def read(model, inputs: dict, passes: int) -> None:
    model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, sleep_passes=passes)


def generate(model, inputs: dict, passes: int) -> None:
    """Two windows' tokens for every row."""
    model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        sleep_passes=passes,
        max_new_tokens=2 * model.config.window_size,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )


def train(model, inputs: dict, passes: int) -> None:
    memory.run(model, Step(passes=passes), inputs)


def measure(bench: Bench) -> Result:
    rows, data = [], {}
    texts = lengths(bench)
    prompts = tuple(length // 4 for length in texts)
    ways = {
        "reading": (read, texts, False),
        "generation": (generate, prompts, False),
        "training": (train, texts, True),
    }
    for way, (run, given, is_training) in ways.items():
        model = build(OURS, bench).train(is_training)
        setting = f"{min(given)} to {max(given)} tokens; {described(bench, len(given))}"
        layouts = {
            "ragged": memory.inputs(model, Step(lengths=given), bench),
            "even": memory.inputs(model, Step(lengths=even(given)), bench),
        }
        if is_training:
            layouts["packed"] = memory.inputs(model, Step(lengths=given, packed=True), bench)
        for passes in PASSES:
            sides = {name: partial(bench.timed, run, model, inputs, passes=passes) for name, inputs in layouts.items()}
            rounds = bench.in_turn(sides, f"ragged: {way}, N = {passes}")
            name = f"{way} with N = {passes}"
            found = rounds.ratio("ragged", "even")
            rows.append(Row(f"{name}, ragged over even", setting, target=TARGET, **found))
            data[name] = {"ms": {side: rounds.ms(side)["median"] for side in sides}, "ratio": found["ratio"]}
            if is_training:
                found = rounds.ratio("packed", "ragged")
                rows.append(Row(f"{name}, packed over padded", setting, **found))
                data[name]["packed"] = found["ratio"]
    for passes in PASSES:
        steps = [Step(passes=passes, lengths=texts, packed=packed) for packed in (True, False)]
        name = f"peak memory of a step with N = {passes}, packed over padded"
        rows.append(memory.compare(bench, name, setting, None, *steps))
    return Result(rows, data)


def tables(data: dict) -> str:
    """Milliseconds per batch."""
    sides = ("even", "ragged", "packed")
    cells = {
        name: [short(found["ms"][side]) if side in found["ms"] else "–" for side in sides]
        for name, found in data.items()
    }
    return "Milliseconds per batch:\n\n" + report.grid("", [f"{side}, ms" for side in sides], cells)


def plot(data: dict) -> Figure:
    """Bars: time over that of even batches."""
    figure, axes = figures.figure()
    ratios = {
        "ragged, padded" if side == "ragged" else side: [
            x["ms"][side] / x["ms"]["even"] if side in x["ms"] else None for x in data.values()
        ]
        for side in ("ragged", "packed")
    }
    figures.bars(axes, [*data], ratios, "time over that of rows of one length")
    axes.axvline(1.0, color=figures.GREY, linestyle=":")
    figures.legend(figure)
    return figure
