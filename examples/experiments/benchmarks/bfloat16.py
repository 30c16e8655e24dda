"""What bfloat16 saves over float32, where the device has instructions for it.

"weights" is a model in bfloat16, "autocast" one in float32 under `torch.autocast`, as `Trainer(bf16=True)` trains it.
Either way S, the gates and the rule stay in float32. Reading and training have two passes per window.
"""

from functools import partial

import torch
from matplotlib.figure import Figure

from .. import figures
from . import compiled, memory, report
from .bench import Bench, Result, Row, short
from .memory import BATCH, Step
from .models import described, sizes


TITLE = "bfloat16"
PASSES = compiled.PASSES
WINDOWS = 4


def is_supported(bench: Bench) -> bool:
    """Without the instructions, a CPU computes in bfloat16 many times slower than in float32."""
    if bench.device == "cpu":
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cuda.is_bf16_supported()


def train(model, tokens: torch.Tensor, step: Step, autocast: bool = False) -> None:
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        memory.run(model, step, tokens)


def measure(bench: Bench) -> Result:
    rows, data = [], {}
    if not is_supported(bench):
        return Result(rows, data)
    common = sizes(bench)
    for times in (1,) if bench.quick else (1, 2):  # as wide
        wider = {name: times * common[name] for name in ("hidden_size", "num_attention_heads")}
        step = Step(passes=PASSES, windows=WINDOWS, overrides=tuple(wider.items()))
        texts = f"{WINDOWS} windows; {described(bench, BATCH, **wider)}"
        single, half = memory.trained(step, bench), memory.trained(step, bench).to(torch.bfloat16)
        tokens = memory.text(single, step, bench)
        runs = {
            "reading": (f"reading with N = {PASSES}", compiled.read, texts),
            "decoding": ("decoding", compiled.decode, f"one window; {described(bench, **wider)}"),
            "training": (f"training with N = {PASSES}", partial(train, step=step), texts),
        }
        for name, (title, run, setting) in runs.items():
            for model in (single, half):
                model.train(name == "training")
            sides = {
                "float32": partial(bench.timed, run, single, tokens),
                "bfloat16 weights": partial(bench.timed, run, half, tokens),
            }
            if name == "training":
                sides["autocast"] = partial(bench.timed, run, single, tokens, autocast=True)
            rounds = bench.in_turn(sides, f"bfloat16: {name}, d = {wider['hidden_size']}")
            data[f"{name}, d = {wider['hidden_size']}"] = {side: rounds.ms(side)["median"] for side in sides}
            for side in list(sides)[1:]:
                rows.append(Row(f"{title}, {side} over float32", setting, **rounds.ratio(side, "float32")))
    return Result(rows, data)


def tables(data: dict) -> str:
    """Milliseconds per text."""
    if not data:
        return "Nothing was measured, as this device has no instructions for bfloat16."
    head = ["float32, ms", "bfloat16 weights, ms", "autocast, ms"]
    cells = {
        name: [short(found[side]) if side in found else "–" for side in ("float32", "bfloat16 weights", "autocast")]
        for name, found in data.items()
    }
    return report.grid("", head, cells)


def plot(data: dict) -> Figure:
    """Bars: time over that of float32."""
    figure, axes = figures.figure()
    sides = {
        side: [ms[side] / ms["float32"] if side in ms else None for ms in data.values()]
        for side in ("bfloat16 weights", "autocast")
    }
    figures.bars(axes, list(data), sides, "time over that of float32")
    axes.axvline(1.0, color=figures.GREY, linestyle=":")
    figures.legend(figure)
    return figure
