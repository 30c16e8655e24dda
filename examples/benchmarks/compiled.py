"""What `torch.compile` saves, and what it takes to get there.

Every layer is compiled by itself: `for layer in model.model.layers: layer.compile()`. Layers of a kind share their
graphs, and so do all full windows and passes, so their number grows neither with the model nor with the text. Token by
token, the number of keys becomes dynamic with the second. "To compile" is what the first call takes on top of the
later ones, with compiled code of earlier runs put aside.
"""

import time
from functools import partial

import torch
from matplotlib.figure import Figure
from torch._dynamo.utils import counters
from transformers import DynamicCache

from . import memory, report
from .bench import Bench, Result, Row, short
from .memory import BATCH, Step
from .models import described


TITLE = "Compiled layers"
PASSES = 2


@torch.inference_mode()
def read(model, tokens: torch.Tensor) -> None:
    model(tokens, sleep_passes=PASSES, logits_to_keep=1)


@torch.inference_mode()
def decode(model, tokens: torch.Tensor) -> None:
    """Token by token through one window of one text."""
    cache = DynamicCache(config=model.config)
    for token in tokens[:1, : model.config.window_size].split(1, dim=1):
        model(token, past_key_values=cache)


def measure(bench: Bench) -> Result:
    step = Step(passes=PASSES, windows=4)
    backend = "aot_eager" if bench.quick else "inductor"
    rows, data = [], {}
    texts, text = f"{step.windows} windows; {described(bench, BATCH)}", f"one window; {described(bench)}"
    runs = {
        "reading": (f"reading with N = {PASSES}", texts, read),
        "decoding": ("decoding", text, decode),
        "training": (f"training with N = {PASSES}", texts, lambda model, tokens: memory.run(model, step, tokens)),
    }
    for name, (title, setting, run) in runs.items():
        torch.compiler.reset()
        before = counters["stats"]["unique_graphs"]
        eager, compiled = (memory.trained(step, bench).train(name == "training") for _ in range(2))
        for layer in compiled.model.layers:
            layer.compile(backend=backend, fullgraph=True)
        tokens = memory.text(eager, step, bench)
        with torch._inductor.utils.fresh_cache():
            began = time.perf_counter()  # the wall's: the compiler runs in other processes
            run(compiled, tokens)
            seconds = time.perf_counter() - began
            sides = {
                "eager": partial(bench.timed, run, eager, tokens),
                "compiled": partial(bench.timed, run, compiled, tokens),
            }
            rounds = bench.in_turn(sides, f"compiled: {name}")
        graphs = counters["stats"]["unique_graphs"] - before
        data[name] = {side: rounds.ms(side)["median"] for side in sides}
        data[name] |= {"seconds": seconds - data[name]["compiled"] / 1000, "graphs": graphs}
        rows.append(Row(f"{title}, compiled layers over eager ones", setting, **rounds.ratio("compiled", "eager")))
    return Result(rows, data)


def tables(data: dict) -> str:
    """Times, seconds to compile and number of graphs."""
    head = ["eager, ms", "compiled, ms", "to compile, s", "graphs"]
    cells = {
        name: [short(found["eager"]), short(found["compiled"]), short(found["seconds"]), str(found["graphs"])]
        for name, found in data.items()
    }
    return report.grid("", head, cells)


def plot(data: dict) -> Figure:
    """Bars: milliseconds, eager and compiled."""
    figure, axes = report.figure()
    for number, side in enumerate(("eager", "compiled")):
        places = [i + 0.4 * (number - 0.5) for i in range(len(data))]
        heights = [found[side] for found in data.values()]
        axes.barh(places, heights, height=0.38, color=report.COLOURS[number], label=side)
    axes.set_yticks(range(len(data)), labels=data)
    axes.invert_yaxis()
    axes.set_xlabel("ms per text")
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
