"""What a token, a sleep and a training step spend on which part of the model, beside the least that it could take.

The profiler's time of every operation goes to the part of the model that called it, and that of a backward to the part
whose forward it belongs to. What is left of the clock's time is Python, dispatch and the profiler itself, which makes
small operations look dear: unprofiled, the call takes what the caption says. The floor of a part is the larger of two:
its floating point operations at the rate of a large matrix product, and the bytes that they read and write at the rate
of a large copy. Element-wise work (norms, gates, activations, the rule of a single token) has no floor here.

The linear maps that a Gated DeltaNet layer begins with could be one. They stay apart, as LoRA, quantisation and other
hybrids' checkpoints know them by their names; the last table says what that costs.
"""

import copy
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import DynamicCache

from modeling_sleep import layers_sleep

from .. import figures
from . import machine, memory, report
from .bench import Bench, Result, Row, short
from .memory import Step
from .models import OURS, build, described


TITLE = "Where the time goes"
PREFIX = "group: "
PARTS = {
    "SleepAttention": "attention",
    "SleepGatedDeltaNet": "convolution and gates",
    "SleepMLP": "MLP",
    "RMSNorm": "norms",
    "Embedding": "embedding",
}
RULE, HEAD, PROJECTIONS, REST, PYTHON = "rule", "lm_head and loss", "projections", "residuals, masks, cache", "Python"


def part(name: str, module: torch.nn.Module) -> str | None:
    """The part that a module belongs to, None if to that of its parent."""
    if name.endswith("lm_head"):
        return HEAD
    if isinstance(module, torch.nn.Linear) and ".mlp." not in name:
        return PROJECTIONS
    return PARTS.get(type(module).__name__)


@contextmanager
def watched(model, enter, leave):
    """Calls `enter(part)` and `leave()` around every part of the forward."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if (label := part(name, module)) is not None:
                handle = module.register_forward_pre_hook(lambda *_, label=label: enter(label))
                stack.callback(handle.remove)
                stack.callback(module.register_forward_hook(lambda *_: leave()).remove)

        def rule(*args, original=layers_sleep.gated_delta_rule):
            enter(RULE)
            result = original(*args)
            leave()
            return result

        stack.enter_context(mock.patch.object(layers_sleep, "gated_delta_rule", rule))
        yield


def times(model, function) -> tuple[dict[str, float], float]:
    """Seconds of every part within one call, and of the whole call, both under the profiler."""
    scopes = []

    def enter(label):
        scopes.append(record_function(PREFIX + label))
        scopes[-1].__enter__()

    def leave():
        scopes.pop().__exit__(None, None, None)

    with watched(model, enter, leave), profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("call"):
        function()
    events = profiler.events()

    def scope_of(event) -> str | None:
        while event is not None and not event.name.startswith(PREFIX):
            event = event.cpu_parent
        return None if event is None else event.name.removeprefix(PREFIX)

    def node_of(event):
        """The backward node that an operation runs for, None in the forward."""
        while event is not None and not event.name.startswith("autograd::engine"):
            event = event.cpu_parent
        return event

    operations = [event for event in events if not event.name.startswith(PREFIX) and event.name != "call"]
    nodes = {event.id: node_of(event) for event in operations}
    # The last operation that a number was current for is the one that made the node.
    forward = sorted((e for e in operations if nodes[e.id] is None), key=lambda event: event.time_range.start)
    made_by = {event.sequence_nr: scope_of(event) for event in forward if event.sequence_nr >= 0}
    seconds = defaultdict(float)
    for event in operations:
        node = nodes[event.id]
        label = scope_of(event) if node is None else made_by.get(node.sequence_nr)
        seconds[label or REST] += event.self_cpu_time_total / 1e6
    (call,) = (event for event in events if event.name == "call")
    whole = call.cpu_time_total / 1e6
    seconds[PYTHON] = max(whole - sum(seconds.values()), 0.0)
    return dict(seconds), whole


def needs(model, function) -> tuple[dict[str, int], dict[str, int]]:
    """Floating point operations and bytes of every part within one call."""
    scopes = [REST]
    with machine.Counter() as counter:
        counter.group = REST

        def enter(label):
            scopes.append(label)
            counter.group = label

        def leave():
            scopes.pop()
            counter.group = scopes[-1]

        with watched(model, enter, leave):
            function()
    return dict(counter.flops), dict(counter.bytes)


def activities(bench: Bench) -> dict:
    """What is profiled: a name, the model, and a function that gives the call, ready to be made."""
    model = build(OURS, bench)
    length, vocabulary = bench.window_size, model.config.vocab_size
    with torch.no_grad():
        half = DynamicCache(config=model.config)
        model(bench.tokens(vocabulary, 1, length + length // 2), past_key_values=half, sleep_passes=2)
        full = DynamicCache(config=model.config)
        model(bench.tokens(vocabulary, 1, 2 * length), past_key_values=full, sleep_passes=2)
    token = bench.tokens(vocabulary, 1, 1)

    def decoding():
        cache = copy.deepcopy(half)
        return torch.no_grad()(lambda: model(token, past_key_values=cache))

    def sleeping():
        cache = copy.deepcopy(full)
        return lambda: model.sleep(cache, sleep_passes=4)

    found = {
        "one token, the window half full": (model, decoding),
        "a sleep of N = 4": (model, sleeping),
    }
    for passes in (1, 4):
        step = Step(passes=passes, windows=2 if bench.quick else 4)
        trained = memory.trained(step, bench)
        tokens = memory.text(trained, step, bench)
        call = partial(memory.run, trained, step, tokens)
        found[f"a training step of N = {passes}, {step.windows} windows"] = (trained, lambda call=call: call)
    return found


@torch.no_grad()
def projections_as_one(bench: Bench) -> list[Row]:
    """The linear maps that a Gated DeltaNet layer begins with, as one product over one by one."""
    model = build(OURS, bench)
    layer = next(x for x in model.modules() if isinstance(x, layers_sleep.SleepGatedDeltaNet))
    maps = (layer.q_proj, layer.k_proj, layer.v_proj, layer.g_proj, layer.a_proj, layer.b_proj)
    weight, heads = torch.cat([linear.weight for linear in maps]), layer.A_log.numel()
    sizes = [sum(layer.split_sizes), layer.split_sizes[2], heads, heads]

    def apart(hidden_states):
        return layer._project(hidden_states, state_only=False)

    def together(hidden_states):
        mixed, gate, a, b = F.linear(hidden_states, weight).split(sizes, dim=-1)
        return mixed, a, b, gate.unflatten(-1, (-1, layer.value_head_dim))

    def repeat(times: int, function, hidden_states):
        for _ in range(times):
            function(hidden_states)

    rows = []
    for length in (1, bench.window_size):
        hidden_states = torch.randn(1, length, weight.shape[1], device=weight.device)
        for one, other in zip(apart(hidden_states), together(hidden_states), strict=True):
            torch.testing.assert_close(one, other)
        times = max(1, 256 // length)
        sides = {f.__name__: partial(bench.timed, repeat, times, f, hidden_states) for f in (apart, together)}
        rounds = bench.in_turn(sides, f"profile: projections of {length}")
        name = "projections of a Gated DeltaNet layer, as one product over one by one"
        setting = f"{times} times {length} token{'s'[: length > 1]}; {described(bench)}"
        rows.append(Row(name, setting, **rounds.ratio("together", "apart")))
    return rows


def measure(bench: Bench) -> Result:
    peak, data = machine.Peak(bench), {"about": described(bench), "activities": {}}
    for name, (model, ready) in activities(bench).items():
        flops, touched = needs(model, ready())
        rounds = bench.in_turn({"call": lambda ready=ready: bench.timed(ready())}, f"profile: {name}")
        # Of several calls the one that other programs disturbed least; the first is for the profiler to warm up.
        found = [times(model, ready()) for _ in range(2 if bench.quick else 9)][1:]
        seconds, whole = min(found, key=lambda each: each[1])
        rates = peak.both()
        floors = {x: max(flops.get(x, 0) * rates["flop"], touched.get(x, 0) * rates["byte"]) for x in flops}
        data["activities"][name] = {
            "ms": rounds.ms("call"),
            "profiled ms": 1000 * whole,
            "parts": {
                x: {
                    "ms": 1000 * seconds[x],
                    "share": seconds[x] / sum(seconds.values()),
                    "flops": flops.get(x, 0),
                    "bytes": touched.get(x, 0),
                    "floor ms": 1000 * floors.get(x, 0.0),
                }
                for x in sorted(seconds, key=seconds.get, reverse=True)
            },
        }
    return Result(projections_as_one(bench), data)


def tables(data: dict) -> str:
    """A table per activity."""
    parts = []
    for name, found in data["activities"].items():
        rows = {}
        for label, x in found["parts"].items():
            floor = x["floor ms"]
            versus = f"{x['ms'] / floor:.1f}" if floor else ""
            cells = [short(x["ms"]), f"{100 * x['share']:.0f} %", f"{x['flops'] / 1e6:,.1f}"]
            rows[label] = [*cells, f"{x['bytes'] / 2**20:,.1f}", short(floor) if floor else "", versus]
        floor = sum(x["floor ms"] for x in found["parts"].values())
        median, low, high = (short(ms) for ms in (found["ms"]["median"], *found["ms"]["quartiles"]))
        parts.append(
            f"**{name[0].upper()}{name[1:]}** ({data['about']}) takes {median} ms ({low} – {high}), "
            f"{found['ms']['median'] / floor:.1f} times the floor of {short(floor)} ms; "
            f"{short(found['profiled ms'])} ms under the profiler:\n\n"
            + report.grid("", ["ms", "share", "MFLOP", "MiB", "floor, ms", "over the floor"], rows)
        )
    return "\n\n".join(parts)


def plot(data: dict):
    """Shares of every activity, one bar each."""
    figure, axes = figures.figure()
    names = list(data["activities"])
    total = defaultdict(float)
    for found in data["activities"].values():
        for label, x in found["parts"].items():
            total[label] += x["share"]
    left = np.zeros(len(names))
    for number, label in enumerate(sorted(total, key=total.get, reverse=True)):
        shares = [100 * data["activities"][name]["parts"].get(label, {"share": 0})["share"] for name in names]
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        hatch = "" if number < len(figures.COLOURS) else "///"
        axes.barh(names, shares, left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
        left += shares
    axes.invert_yaxis()
    figures.finish(axes, xlabel="share of the time (%)", xlim=(0, 100))
    axes.grid(visible=False)
    figures.legend(figure, loc="outside lower center", ncols=5)
    return figure
