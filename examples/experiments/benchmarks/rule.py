"""The gated delta rule alone, in float32, against the torch code of transformers, and against what the machine can do.

The floor, measured in the same rounds, is the larger of two: the time that as many floating point operations take in
one large matrix product, and that of a large copy of as many bytes as inputs and results have (in a backward, their
gradients, too). Nothing is timed before both codes are known to compute the same.
"""

import importlib.util
import inspect
from functools import partial

import torch
from matplotlib.figure import Figure
from transformers.models.olmo_hybrid import modeling_olmo_hybrid

from modeling_sleep.gated_delta_rule import (
    chunked_gated_delta_rule,
    gated_delta_rule,
    recurrent_gated_delta_rule,
)

from .. import figures
from . import machine, report
from .bench import Bench, Result, Rounds, Row, short


TITLE = "The gated delta rule"
FASTER = 1 / 1.3  # wanted from T = 256 on
OVER_FLOOR = 2.0
SHARES = ("share of matmul peak", "share of copy peak")


def shapes(bench: Bench) -> list[tuple[int, int, int]]:
    """(T, heads, dimension of a head)"""
    if bench.quick:
        return [(64, 4, 32), (256, 4, 32)]
    lengths, dims = (64, 256, 1024, 4096), (32, 64, 128)
    return [(length, 4, dim) for length in lengths for dim in dims] + [(1024, heads, 64) for heads in (1, 16)]


def inputs_of(bench: Bench, seq_len: int, heads: int, dim: int, dtype=torch.float32) -> list[torch.Tensor]:
    """Queries, keys, values, log(alpha), beta and S for one row."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, seq_len, heads, dim) for _ in range(3))
    log_decay, beta = -0.1 * torch.rand(1, seq_len, heads), torch.rand(1, seq_len, heads)
    inputs = [query, key, value, log_decay, beta, torch.randn(1, heads, dim, dim)]
    return [x.to(bench.device, dtype).requires_grad_() for x in inputs]


def in_tree(name: str, inputs):
    """The fallback of transformers. Newer releases wrap it, to run a compiled kernel where one is installed."""
    *inputs, state = inputs
    rule = inspect.unwrap(getattr(modeling_olmo_hybrid, name))
    return rule(*inputs, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)


def ours(rule, inputs):
    return rule(*inputs)


@torch.no_grad()
def forward(rule, inputs):
    return rule(inputs)


def forward_and_backward(rule, inputs):
    output, state = rule(inputs)
    return output, state, *torch.autograd.grad(output.sum() + state.sum(), inputs)


def compare(bench: Bench, peak: machine.Peak, way, mine, theirs, inputs, label: str):
    """Rounds of ours, theirs and the floor; and how far apart their results are."""
    results = way(mine, inputs)
    pairs = zip(results, way(theirs, inputs), strict=True)
    error = max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)
    if not error < 1e-4:
        raise RuntimeError(f"ours and theirs differ by {error:.1e}: {label}")
    flops, _ = machine.count(way, mine, inputs)
    touched = sum(x.nbytes for x in (*inputs, *results))

    def floor() -> dict[str, float]:
        per = peak.both(times=3)
        seconds = {"matmul": flops * per["flop"], "copy": touched * per["byte"]}
        return {**seconds, "floor": max(seconds.values())}

    sides = {
        "ours": partial(bench.timed, way, mine, inputs),
        "theirs": partial(bench.timed, way, theirs, inputs),
        "floor": floor,
    }
    return bench.in_turn(sides, label), flops, error


def measure(bench: Bench) -> Result:
    rows, points, peak = [], [], machine.Peak(bench)
    chunked = partial(ours, chunked_gated_delta_rule), partial(in_tree, "torch_chunk_gated_delta_rule")
    recurrent = partial(ours, recurrent_gated_delta_rule), partial(in_tree, "torch_recurrent_gated_delta_rule")
    todo = [("chunked", way, *chunked, shape) for shape in shapes(bench) for way in (forward, forward_and_backward)]
    todo += [("recurrent", forward, *recurrent, (length, 4, 64)) for length in (1, 64)]
    todo += [("recurrent", forward_and_backward, *recurrent, (64, 4, 64))]
    for form, way, mine, theirs, shape in todo:
        length, heads, dim = shape
        named_way = way.__name__.replace("_", " ")
        name = f"{form} rule, {named_way}"
        setting = f"T = {length}, {heads} head{'s'[: heads > 1]} of {dim}, batch 1"
        inputs = inputs_of(bench, *shape)
        rounds, flops, error = compare(bench, peak, way, mine, theirs, inputs, f"rule: {form}, {named_way}, {setting}")
        both = form == "chunked" and way is forward_and_backward
        target = FASTER if both and length >= 256 else None
        versus, floor = rounds.ratio("ours", "theirs"), rounds.ratio("ours", "floor")
        versus["details"] |= {"relative error": error, "flops": flops}
        rows.append(Row(f"{name}, over in-tree", setting, target=target, **versus))
        rows.append(Row(f"{name}, over the floor", setting, target=OVER_FLOOR if target else None, **floor))
        points.append(
            {"form": form, "way": named_way, "length": length, "heads": heads, "dim": dim, "flops": flops}
            | {side: rounds.ms(side)["median"] for side in ("ours", "theirs", "floor")}
            | {"over theirs": versus["ratio"]}
            | {f"share of {kind}": share(rounds, kind) for kind in ("matmul", "copy")}
        )
    if bench.device != "cpu" and importlib.util.find_spec("fla"):
        rows += fla(bench)
    return Result(rows, {"points": points, "peak": {x: 1 / y for x, y in peak.both().items()}})


def share(rounds: Rounds, kind: str) -> float | None:
    """The part of our time that the machine would need at its peak; None where there is nothing to do at that peak."""
    return 1 / rounds.ratio("ours", kind)["ratio"] if rounds.seconds[kind].any() else None


def fla(bench: Bench) -> list[Row]:
    """What runs in half precision, the Triton kernels of `fla`, over our torch code on the same inputs."""
    rows = []
    for shape in shapes(bench):
        inputs = inputs_of(bench, *shape, dtype=torch.bfloat16)
        kernel, plain = partial(ours, gated_delta_rule), partial(ours, chunked_gated_delta_rule)
        sides = {
            "fla": partial(bench.timed, forward_and_backward, kernel, inputs),
            "torch": partial(bench.timed, forward_and_backward, plain, inputs),
        }
        rounds = bench.in_turn(sides, f"rule: fla, T = {shape[0]}")
        setting = f"T = {shape[0]}, {shape[1]} heads of {shape[2]}, batch 1, bfloat16"
        rows.append(Row("`fla`, forward and backward, over ours in torch", setting, **rounds.ratio("fla", "torch")))
    return rows


def tables(data: dict) -> str:
    """A line per form, shape and direction."""
    rows = {}
    for x in data["points"]:
        name = f"{x['form']}, {x['way']}, T = {x['length']}, {x['heads']} x {x['dim']}"
        cells = [short(x[side]) for side in ("ours", "theirs", "floor")]
        shares = [x[f"share of {kind}"] for kind in ("matmul", "copy")]
        shares = ["–" if part is None else f"{100 * part:.0f} %" for part in shares]
        rows[name] = [*cells, f"{1 / x['over theirs']:.2f}", *shares]
    peak = data["peak"]
    return (
        f"Peak: {peak['flop'] / 1e9:,.0f} GFLOP/s in a large matrix product, {peak['byte'] / 1e9:,.1f} GB/s in a "
        "large copy.\n\n" + report.grid("", ["ours, ms", "in-tree, ms", "floor, ms", "times as fast", *SHARES], rows)
    )


def plot(data: dict) -> Figure:
    figure, panels = figures.figure(panels=2)
    both = [x for x in data["points"] if x["form"] == "chunked" and x["heads"] == 4 and "backward" in x["way"]]
    lengths = sorted({x["length"] for x in both})
    for number, dim in enumerate(sorted({x["dim"] for x in both})):
        here = [x for x in both if x["dim"] == dim]
        xs = [x["length"] for x in here]
        figures.line(panels[0], xs, [1 / x["over theirs"] for x in here], f"heads of {dim}", number)
        figures.line(panels[1], xs, [100 * x["share of matmul"] for x in here], f"heads of {dim}", number)
    panels[0].axhline(1.3, color=figures.GREY, linestyle=":", label="target")
    for axes, label in zip(panels, ("times as fast as in-tree", "share of the matmul peak (%)")):
        report.finish(axes, "tokens (4 heads, forward and backward)", label, lengths)
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
    figures.legend(figure)
    return figure
