"""What `torch.compile` saves, and what it takes to get there.

Layers are compiled one by one: `for layer in model.model.layers: layer.compile()`. Layers of a kind share their
graphs, and so do all full windows and passes, so their number grows neither with the model nor with the text. Token by
token, the number of keys becomes dynamic with the second. "Tokens" are compiled as a whole instead, from embedding to
logits, as `generate(compile_config=CompileConfig())` does it with every token but not with prompts and sleeps. "To
compile" is what the first call takes on top of the later ones, with compiled code of earlier runs put aside.
"""

import time
from functools import partial

import torch
from matplotlib.figure import Figure
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, StaticCache

from .. import figures
from . import memory, report
from .bench import Bench, Result, Row, short
from .decode import OurStream, SlidingStream
from .memory import BATCH, Step
from .models import described


TITLE = "Compiled layers and tokens"
PASSES = 2


def train(model, tokens: torch.Tensor, step: Step) -> None:
    memory.run(model, step, tokens)


@torch.inference_mode()
def read(model, tokens: torch.Tensor) -> None:
    model(tokens, sleep_passes=PASSES, logits_to_keep=1)


@torch.inference_mode()
def decode(model, tokens: torch.Tensor, call=None) -> None:
    """Token by token through one window of one text; by `call`, if there is one for the model."""
    call, cache = call or model, DynamicCache(config=model.config)
    for token in tokens[:1, : model.config.window_size].split(1, dim=1):
        call(input_ids=token, past_key_values=cache)


def options(bench: Bench) -> dict:
    """Of `torch.compile`."""
    return {"backend": "eager" if bench.quick else "inductor", "fullgraph": True}


def compiled_tokens(model, bench: Bench):
    """What `generate(compile_config=...)` calls for a token, of ours or of transformers'."""
    return model.get_compiled_call(CompileConfig(mode="default", **options(bench)))


def by_layer(model, run, bench: Bench):
    """`run` for a model whose layers are compiled."""
    for layer in model.model.layers:
        layer.compile(**options(bench))
    return partial(run, model)


def by_token(model, run, bench: Bench):
    """`run` for a model whose tokens are compiled."""
    return partial(run, model, call=compiled_tokens(model, bench))


class CompiledStream(OurStream):
    """A text of ours, whose tokens are compiled."""

    def __init__(self, bench: Bench, context: int):
        super().__init__(bench, context)
        self.call = compiled_tokens(self.model, bench)


class StaticStream(SlidingStream):
    """A text of the sliding window's in a static cache, compiled: the fastest that transformers has it."""

    @torch.no_grad()
    def __init__(self, bench: Bench, context: int):
        super().__init__(bench, context)
        self.cache, self.position = StaticCache(config=self.model.config, max_cache_len=context), 2 * bench.window_size
        self.model(bench.tokens(self.model.config.vocab_size, 1, self.position), past_key_values=self.cache)
        self.call = compiled_tokens(self.model, bench)

    def inputs(self) -> dict:
        """With positions and mask, as `generate` gives them."""
        self.position += 1
        device = self.bench.device
        position_ids = torch.tensor([[self.position - 1]], device=device)
        mask = torch.ones(1, 1, 1, self.bench.window_size, dtype=torch.bool, device=device)
        return super().inputs() | {"position_ids": position_ids, "attention_mask": mask}


def measure(bench: Bench) -> Result:
    step = Step(passes=PASSES, windows=4)
    rows, data = [], {}
    texts, text = f"{step.windows} windows; {described(bench, BATCH)}", f"one window; {described(bench)}"
    runs = {
        "reading": (f"reading with N = {PASSES}, compiled layers", texts, read, by_layer),
        "decoding": ("decoding, compiled layers", text, decode, by_layer),
        "tokens": ("decoding, compiled tokens", text, decode, by_token),
        "training": (f"training with N = {PASSES}, compiled layers", texts, partial(train, step=step), by_layer),
    }
    for name, (title, setting, run, compiled_by) in runs.items():
        torch.compiler.reset()
        before = counters["stats"]["unique_graphs"]
        eager, compiled = (memory.trained(step, bench).train(name == "training") for _ in range(2))
        tokens = memory.text(eager, step, bench)
        with torch._inductor.utils.fresh_cache():
            run_compiled = compiled_by(compiled, run, bench)
            began = time.perf_counter()  # the wall's: the compiler runs in other processes
            run_compiled(tokens)
            seconds = time.perf_counter() - began
            sides = {
                "eager": partial(bench.timed, run, eager, tokens),
                "compiled": partial(bench.timed, run_compiled, tokens),
            }
            rounds = bench.in_turn(sides, f"compiled: {name}")
        graphs = counters["stats"]["unique_graphs"] - before
        data[name] = {side: rounds.ms(side)["median"] for side in sides}
        data[name] |= {"seconds": seconds - data[name]["compiled"] / 1000, "graphs": graphs}
        rows.append(Row(f"{title} over eager ones", setting, **rounds.ratio("compiled", "eager")))
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
    figure, axes = figures.figure()
    sides = {side: [found[side] for found in data.values()] for side in ("eager", "compiled")}
    figures.bars(axes, list(data), sides, "ms per text")
    figures.legend(figure)
    return figure
