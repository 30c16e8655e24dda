"""Measure what wake and sleep cost, as ratios: `make bench`, a few minutes on a CPU.

    python examples/benchmark.py --output runs/benchmark [--quick] [--only decode rule]

    decode    ms per token after 100 windows, over the first window
    sleep     a sleep of N passes, over N - 1 prefills of one window
    step      a training step with N = 4, over N = 1
    memory    peak memory of a training step: N = 8 over N = 1, without over with logits, cut over whole backward
    rule      the chunked gated delta rule, forward and backward, over the one in transformers and over the machine
    cache     bytes of the cache after 100 windows, over those after the first

Notable:
- a ratio compares two sides within one run, measured in turn and round by round; it is the median over rounds of
  their quotient, given with its quartiles. So a slow or busy machine widens the quartiles and does not shift the ratio
- with one thread on a CPU the clock counts this process's CPU time, so that other programs do not count; otherwise it
  is the wall's, with the accelerator waited for
- peak memory is taken in processes of their own (`memory_of_a_step`)
- a target that is missed is called so; `benchmark.json` has every number, `benchmark.md` the table
"""

import argparse
import copy
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.cache_sleep import read_state
from modeling_sleep.gated_delta_rule import chunked_gated_delta_rule


CONTEXT_WINDOWS = 4  # of a training example, as in the paper's Rule 110; a short window of labels follows
LABELS = 5
MANY_WINDOWS = 100
VISIBLE_BYTES = 32 * 2**20  # less than this is lost among what malloc and the kernel round up


@dataclass
class Row:
    """One line of the table; `target` is the largest ratio wanted, None for a comparison without one."""

    measurement: str
    setting: str
    target: float | None
    ratio: float
    quartiles: tuple[float, float] | None = None  # None where nothing varies from round to round
    absolute: str = ""
    details: dict = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the target is met, judged on the ratio as measured, not as rounded."""
        if self.target is None:
            return "–"
        return "met" if self.ratio <= self.target else "**not met**"


class Bench:
    """How to measure: sizes, device, clock, and the rounds of a comparison."""

    def __init__(self, quick: bool, device: str, threads: int):
        self.quick, self.device, self.threads = quick, device, threads
        self.window_size = 13 if quick else 128
        # At least so many rounds, and more until so many seconds are over.
        self.min_rounds, self.seconds = (3, 0.2) if quick else (7, 4.0)

    def model(self, **overrides) -> SleepForCausalLM:
        """A fresh model; what its weights are does not matter here."""
        torch.manual_seed(0)
        preset = "rule110-mini" if self.quick else "rule110"
        config = SleepConfig.from_preset(preset, window_size=self.window_size, **overrides)
        return SleepForCausalLM(config).eval().to(self.device)

    def sizes(self, model: SleepForCausalLM, batch: int) -> str:
        """What a reader of the table has to know of the model and its input."""
        config = model.config
        return f"d = {config.hidden_size}, {config.num_hidden_layers} layers, L = {config.window_size}, batch {batch}"

    def tokens(self, model: SleepForCausalLM, batch: int, length: int) -> torch.Tensor:
        """Random ids, (batch, length)."""
        return torch.randint(1, model.config.vocab_size, (batch, length), device=self.device)

    def clock(self) -> float:
        """Seconds; only differences mean something."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" and self.threads == 1 else time.perf_counter()

    def timed(self, function: Callable, *args, **kwargs) -> float:
        """Seconds that a call takes."""
        began = self.clock()
        function(*args, **kwargs)
        return self.clock() - began

    def compare(self, one_round: Callable[[int], tuple[float, float]], label: str) -> dict:
        """
        Repeat `one_round`, which gives the seconds of both sides, and summarise their quotient.

        Returns
        -------
        dict
            `ratio` and `quartiles` as in [`Row`], and for its `details` the `rounds` and each side's median `ms`.
        """
        one_round(0)  # the first is for kernels and caches to warm up
        pairs, began = [], time.perf_counter()
        with tqdm(desc=f"   {label}", unit="round", leave=False) as bar:
            while len(pairs) < self.min_rounds or time.perf_counter() - began < self.seconds:
                pairs.append(one_round(len(pairs)))
                bar.update()
        pairs = np.array(pairs)
        low, ratio, high = np.quantile(pairs[:, 0] / pairs[:, 1], (0.25, 0.5, 0.75)).tolist()
        details = {"rounds": len(pairs), "ms": (1000 * np.median(pairs, axis=0)).tolist()}
        return {"ratio": ratio, "quartiles": (low, high), "details": details}

    def in_turn(self, one: Callable, other: Callable) -> Callable[[int], tuple[float, float]]:
        """A round of two functions that give their seconds; who comes first alternates."""

        def one_round(i: int) -> tuple[float, float]:
            if i % 2:
                second = other()
                return one(), second
            return one(), other()

        return one_round


def absolute(result: dict, unit: str = "ms") -> str:
    """Both sides' medians, for the table."""
    one, other = result["details"]["ms"]
    return f"{one:.3g} over {other:.3g} {unit}"


# Wake


class TokenClock(BaseStreamer):
    """Notes when `generate` hands over a token."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.times = []

    def put(self, value):
        self.times.append(self.clock())

    def end(self):
        pass


@torch.no_grad()
def measure_decode(bench: Bench) -> Iterator[Row]:
    """
    Token by token through one whole window that begins empty, on both sides: what is compared is equally full. No
    boundary is crossed, so no sleep is in it.
    """
    model = bench.model()
    length = model.config.window_size
    text = bench.tokens(model, 1, MANY_WINDOWS * length)
    cache = model.model(text, sleep_passes=2, use_cache=True).past_key_values
    model.sleep(cache, sleep_passes=2)
    token = bench.tokens(model, 1, 1)

    def generate(prompt: torch.Tensor, past_key_values: DynamicCache) -> float:
        """Seconds from the first new token to the last. By then the window is full."""
        clock = TokenClock(bench.clock)
        model.generate(
            prompt,
            past_key_values=past_key_values,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=length,
            do_sample=False,
            streamer=clock,
        )
        return (clock.times[-1] - clock.times[1]) / (length - 1)  # the prompt is handed over first

    def late_generate() -> float:
        return generate(torch.cat([text, token], dim=1), copy.deepcopy(cache))

    def first_generate() -> float:
        return generate(token, DynamicCache(config=model.config))

    def forward(i: int) -> tuple[float, float]:
        """Both sides step through their windows together."""
        caches = [copy.deepcopy(cache), DynamicCache(config=model.config)]
        seconds = np.zeros((length, 2))
        for position in range(length):
            for side in (0, 1) if (position + i) % 2 else (1, 0):
                seconds[position, side] = bench.timed(model, token, past_key_values=caches[side])
        return tuple(np.median(seconds, axis=0))

    setting = f"window {MANY_WINDOWS + 1} over window 1; {bench.sizes(model, 1)}"
    result = bench.compare(bench.in_turn(late_generate, first_generate), "decode: generate")
    yield Row("ms per token, `generate`", setting, 1.1, absolute=absolute(result), **result)
    result = bench.compare(forward, "decode: forward")
    yield Row("ms per token, `forward`", setting, 1.1, absolute=absolute(result), **result)


# Sleep


@torch.no_grad()
def measure_sleep(bench: Bench) -> Iterator[Row]:
    """A prefill through the base model fills the window, the sleep then empties it. Neither touches the head."""
    model = bench.model().model
    window = bench.tokens(model, 1, model.config.window_size)

    for passes in (2, 4, 8):

        def one_round(i: int, passes=passes) -> tuple[float, float]:
            # The cache is not fresh: like every window but the first, this one begins with an S.
            cache = model(window, use_cache=True).past_key_values
            model.sleep(cache, sleep_passes=1)
            prefill = bench.timed(model, window, past_key_values=cache)
            return bench.timed(model.sleep, cache, sleep_passes=passes), prefill * (passes - 1)

        result = bench.compare(one_round, f"sleep: N = {passes}")
        yield Row(
            f"sleep of N = {passes} over {passes - 1} x prefill",
            bench.sizes(model, 1),
            1.15,
            absolute=absolute(result),
            **result,
        )


# Training


def training_step(model: SleepForCausalLM, tokens: torch.Tensor, passes: int, num_labels: int | None = LABELS) -> None:
    """Forward and backward; only the last tokens have labels, or all. By default, the window behind the context's."""
    labels = tokens.clone()
    labels[:, : -num_labels if num_labels else 0] = -100
    model(tokens, labels=labels, sleep_passes=passes, use_cache=False).loss.backward()


def training_tokens(bench: Bench, model: SleepForCausalLM, batch: int) -> torch.Tensor:
    return bench.tokens(model, batch, CONTEXT_WINDOWS * model.config.window_size + LABELS)


def enable_checkpointing(model: SleepForCausalLM) -> None:
    """Newer releases of transformers call it activation checkpointing, and warn of the old name."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def measure_step(bench: Bench) -> Iterator[Row]:
    """N = 4 runs four times the passes over the context, and the labels' window once as N = 1 does."""
    model, batch = bench.model().train(), 2
    tokens = training_tokens(bench, model, batch)
    # Gradients are there and are added to, on both sides.
    training_step(model, tokens, 1)
    setting = f"{CONTEXT_WINDOWS} context windows, then {LABELS} labels; {bench.sizes(model, batch)}"
    for checkpointing, target in ((False, 4.4), (True, None)):
        if checkpointing:
            enable_checkpointing(model)
        one, other = (lambda n=n: bench.timed(training_step, model, tokens, n) for n in (4, 1))
        name = "training step, N = 4 over N = 1" + (", checkpointed" if checkpointing else "")
        result = bench.compare(bench.in_turn(one, other), name)
        yield Row(name, setting, target, absolute=absolute(result), **result)


def resident_bytes(name: str) -> int | None:
    """A line of /proc/self/status: VmRSS, memory now, or VmHWM, its peak. None where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


@dataclass(frozen=True)
class Step:
    """A training step whose memory is measured. `labels`: of the last so many tokens, None for all."""

    passes: int = 1
    checkpointing: bool = False
    windows: int = CONTEXT_WINDOWS
    labels: int | None = LABELS
    model: dict = field(default_factory=dict)  # fields of the config


def memory_of_a_step(bench: Bench, step: Step) -> dict[str, int]:
    """
    Memory of one training step, in bytes. It runs in a process of its own, whose peak is thus the step's.

    A step on a few tokens comes first, so that gradients, kernels and code are in memory; `before` is what the process
    holds after it. On Linux `peak` is VmHWM, the kernel's own high-water mark (`ru_maxrss` begins with the parent's);
    `tensors` is the peak of what a second such step allocates, counted by torch's allocator. On CUDA all of it is what
    the allocator holds.
    """
    model = bench.model(**step.model).train()
    if step.checkpointing:
        enable_checkpointing(model)
    tokens = bench.tokens(model, 2, step.windows * model.config.window_size + LABELS)
    training_step(model, tokens[:1, -2 * LABELS :], 1)

    if bench.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_step(model, tokens, step.passes, step.labels)
        peak = torch.cuda.max_memory_allocated()
        return {"before": before, "peak": peak, "tensors": peak - before}

    before = resident_bytes("VmRSS")
    training_step(model, tokens, step.passes, step.labels)
    peak = resident_bytes("VmHWM")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        training_step(model, tokens, step.passes, step.labels)
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    allocated = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return {"before": before, "peak": peak, "tensors": int(allocated.max())}


def compare_memory(bench: Bench, name: str, setting: str, target: float | None, one: Step, other: Step) -> Row:
    """
    Judged on the stricter of two: what the step adds to the process, and what its tensors take; on the tensors alone
    where they are too small for the process to show them.
    """
    # So that a freed tensor leaves the process at once, and a peak is one of tensors alive: by default malloc raises
    # the size from which it asks the system for memory of its own, and keeps what is freed below it.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = []
    for step in tqdm((one, other), desc=f"   {name}", unit="process", leave=False):
        command = [sys.executable, __file__, "--device", bench.device, "--threads", str(bench.threads)]
        command += ["--quick"] if bench.quick else []
        command += ["--memory-of-a-step", json.dumps(asdict(step))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = found
    ratios = {"tensors": first["tensors"] / second["tensors"]}
    if first["peak"] is not None:
        ratios["whole process"] = first["peak"] / second["peak"]
        ratios["growth"] = (first["peak"] - first["before"]) / (second["peak"] - second["before"])
    kinds = ("tensors", "growth") if "growth" in ratios and second["tensors"] > VISIBLE_BYTES else ("tensors",)
    judged = max(kinds, key=ratios.get)
    absolutes = [f"{kind} {ratio:.2f}" for kind, ratio in ratios.items() if kind != judged]
    sizes = f"{first['tensors'] / 2**20:.0f} over {second['tensors'] / 2**20:.0f} MiB of tensors"
    return Row(
        f"{name}, by {'growth of the process' if judged == 'growth' else 'tensors'}",
        setting,
        target,
        ratios[judged],
        absolute="; ".join([sizes, *absolutes]),
        details={"ratios": ratios, "one": first, "other": second},
    )


def measure_memory(bench: Bench) -> Iterator[Row]:
    """What sleeping longer takes, and what a long text with a large vocabulary does."""
    setting = f"{CONTEXT_WINDOWS} context windows, then {LABELS} labels; {bench.sizes(bench.model(), 2)}"
    for checkpointing, target in ((True, 1.5),) if bench.quick else ((True, 1.5), (False, None)):
        name = "peak memory of a step, N = 8 over N = 1" + ("" if checkpointing else ", not checkpointed")
        one, other = (Step(passes, checkpointing) for passes in (8, 1))
        yield compare_memory(bench, name, setting, target, one, other)

    vocabulary, windows = (5_000, 4) if bench.quick else (50_000, 8)
    setting = f"{windows} windows, labels everywhere, vocabulary {vocabulary:,}; {bench.sizes(bench.model(), 2)}"
    for checkpointing in (False, True):
        name = "peak memory of a step, `skip_logits` over all logits" + (", checkpointed" if checkpointing else "")
        one, other = (
            Step(4, checkpointing, windows, None, {"vocab_size": vocabulary, "skip_logits": skip_logits})
            for skip_logits in (True, False)
        )
        yield compare_memory(bench, name, setting, None, one, other)

    setting = f"{windows} context windows, then {LABELS} labels; {bench.sizes(bench.model(), 2)}"
    for bptt_windows in (2,) if bench.quick else (1, 2, 4):
        one, other = (Step(4, windows=windows, model={"bptt_windows": bptt}) for bptt in (bptt_windows, None))
        name = f"peak memory of a step with N = 4, `bptt_windows={bptt_windows}` over all windows"
        yield compare_memory(bench, name, setting, None, one, other)


# The gated delta rule


def rule_inputs(bench: Bench, seq_len: int, head_dim: int, heads: int = 4, batch: int = 1) -> list[torch.Tensor]:
    """Queries, keys, values, log(alpha), beta and S for one row."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(batch, seq_len, heads, head_dim) for _ in range(3))
    log_decay, beta = -0.1 * torch.rand(batch, seq_len, heads), torch.rand(batch, seq_len, heads)
    inputs = [query, key, value, log_decay, beta, torch.randn(batch, heads, head_dim, head_dim)]
    return [x.to(bench.device).requires_grad_() for x in inputs]


def measure_rule(bench: Bench) -> Iterator[Row]:
    """
    The chunked form in torch, against the fallback in transformers in the same dtype, and against what its operations
    would take at the rate of one large matrix product.
    """
    from flops import FORMULAS
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid

    # Newer releases wrap it, to run a compiled kernel where one is installed.
    in_tree = inspect.unwrap(modeling_olmo_hybrid.torch_chunk_gated_delta_rule)
    size = 256 if bench.quick else 1024
    square = torch.randn(size, size, device=bench.device)

    def ours(inputs):
        return chunked_gated_delta_rule(*inputs)

    def theirs(inputs):
        *inputs, state = inputs
        return in_tree(*inputs, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)

    def forward_and_backward(rule, inputs):
        results = rule(inputs)
        return *results, *torch.autograd.grad(results, inputs, [torch.ones_like(x) for x in results])

    sizes = [(1, seq_len, dim) for seq_len in (64, 256, 1024, 4096) for dim in (32, 64, 128)]
    sizes = [(1, 64, 32), (1, 256, 32)] if bench.quick else [(64, 13, 16), (64, 24, 16), *sizes]
    for batch, seq_len, head_dim in sizes:
        inputs = rule_inputs(bench, seq_len, head_dim, batch=batch)
        # Not timed before both are known to compute the same.
        results = zip(forward_and_backward(ours, inputs), forward_and_backward(theirs, inputs), strict=True)
        error = max(((x - y).abs().max() / y.abs().max()).item() for x, y in results)
        if not error < 1e-4:
            raise RuntimeError(f"ours and theirs differ by {error:.1e} at T = {seq_len}, head dim {head_dim}")
        setting, label = f"T = {seq_len}, 4 heads of {head_dim}, batch {batch}", f"rule: T = {seq_len}, dim {head_dim}"

        def step(rule, inputs=inputs):
            return lambda: bench.timed(forward_and_backward, rule, inputs)

        def forward(rule, inputs=inputs):
            return lambda: bench.timed(torch.no_grad(rule), inputs)

        result = bench.compare(bench.in_turn(step(ours), step(theirs)), label)
        result["details"]["relative error"] = error
        target = 1.0 if seq_len < 256 else 1 / 1.3
        yield Row("gated delta rule, ours over in-tree", setting, target, absolute=absolute(result), **result)
        result = bench.compare(bench.in_turn(forward(ours), forward(theirs)), label)
        yield Row("forward alone, ours over in-tree", setting, None, absolute=absolute(result), **result)

        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            forward_and_backward(ours, inputs)
        products = counter.get_total_flops() / (2 * size**3)

        def floor(products=products):
            return bench.timed(torch.mm, square, square) * products

        result = bench.compare(bench.in_turn(step(ours), floor), label)
        result["details"]["flops"] = counter.get_total_flops()
        yield Row(
            f"ours over its operations at the rate of {size} x {size}",
            setting,
            None,
            absolute=absolute(result),
            **result,
        )


# The cache


@torch.no_grad()
def measure_cache(bench: Bench) -> Iterator[Row]:
    """Bytes of all that the cache holds when a window is full."""
    model = bench.model()
    cache, sizes = DynamicCache(config=model.config), {}
    for window in tqdm(range(1, MANY_WINDOWS + 1), desc="   cache", unit="window", leave=False):
        tokens = bench.tokens(model, 1, model.config.window_size)
        model.model(tokens, past_key_values=cache, sleep_passes=2)
        if window in (1, 2, 10, MANY_WINDOWS):
            sizes[window] = read_state(cache, model.config).nbytes()
    yield Row(
        f"cache bytes, {' / '.join(map(str, sizes))} windows, largest over smallest",
        bench.sizes(model, 1),
        1.0,
        max(sizes.values()) / min(sizes.values()),
        absolute=" / ".join(f"{size:,}" for size in sizes.values()) + " bytes",
        details={"bytes": sizes},
    )


MEASUREMENTS = {
    "decode": measure_decode,
    "sleep": measure_sleep,
    "step": measure_step,
    "memory": measure_memory,
    "rule": measure_rule,
    "cache": measure_cache,
}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| measurement | sizes | target | ratio | quartiles | | in absolute terms |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:.2f}"
        quartiles = "" if row.quartiles is None else "{:.3f} – {:.3f}".format(*row.quartiles)
        cells = (row.measurement, row.setting, target, f"{row.ratio:.3f}", quartiles, row.verdict, row.absolute)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what wake and sleep cost, as ratios within one run.")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="does it run? Tiny sizes and few rounds, whose numbers mean little"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--memory-of-a-step", type=json.loads, help=argparse.SUPPRESS)  # see `compare_memory`
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    bench = Bench(args.quick, args.device, args.threads)
    if args.memory_of_a_step:
        print(json.dumps(memory_of_a_step(bench, Step(**args.memory_of_a_step))))
        return

    rows, began = [], time.perf_counter()
    bar = tqdm(args.only, unit="measurement")
    for name in bar:
        bar.set_description(name)
        rows += MEASUREMENTS[name](bench)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    about = {
        "device": device,
        "threads": args.threads,
        "quick": args.quick,
        "seconds": round(time.perf_counter() - began),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    heading = (
        f"{device}, {args.threads} thread{'s' if args.threads > 1 else ''}, float32, torch {torch.__version__}, "
        f"transformers {transformers.__version__}" + (", quick run" if args.quick else "")
    )
    args.output.mkdir(parents=True, exist_ok=True)
    results = {**about, "rows": [{**asdict(row), "verdict": row.verdict.strip("*")} for row in rows]}
    (args.output / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.output / "benchmark.md").write_text(f"{heading}\n\n{table(rows)}\n", encoding="utf-8")
    print(f"\n{heading}\n\n{table(rows)}\n\nsaved to {args.output}")


if __name__ == "__main__":
    main()
