"""Peak memory of one training step, in a process of its own, whose peak is thus the step's.

    python -m examples.experiments.benchmarks.memory '{"passes": 4}'

Notable:
- a step on a few tokens comes first, so that gradients, kernels and code are in memory; `before` is what the process
  holds after it
- on Linux `peak` is VmHWM, the kernel's own high-water mark (`ru_maxrss` begins with the parent's); `tensors` is the
  peak of what a second such step allocates, counted by torch's allocator. On CUDA the allocator tells all of it
- a comparison is judged on the stricter of two: what the step adds to the process, and what its tensors take; on the
  tensors alone where they are too small for the process to show them
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithFlattening

from .bench import Bench, Row
from .models import KEPT, OURS, build


REPOSITORY = Path(__file__).resolve().parents[3]
BATCH = 2
VISIBLE_BYTES = 32 * 2**20  # less than this is lost among what malloc and the kernel round up


@dataclass(frozen=True)
class Step:
    """A training step. Every token has a label."""

    model: str = OURS
    passes: int = 1
    checkpointing: bool = False
    windows: int = 4
    batch: int = BATCH
    overrides: tuple = ()  # pairs: fields of our config and their values
    lengths: tuple = ()  # of the texts, instead of so many windows in each row of the batch
    packed: bool = False  # these texts in one row


def trained(step: Step, bench: Bench):
    """The model of a step, ready for it."""
    model = build(step.model, bench, **dict(step.overrides)).train()
    if step.checkpointing:
        # Newer releases of transformers call it activation checkpointing, and warn of the old name.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model


def run(model, step: Step, tokens: torch.Tensor | dict) -> None:
    """Forward and backward, of tokens or of `inputs`. Gradients add up, as nothing takes them away."""
    ours = {"sleep_passes": step.passes} if step.model in (OURS, KEPT) else {}
    given = tokens if isinstance(tokens, dict) else {"input_ids": tokens, "labels": tokens}
    model(**given, use_cache=False, **ours).loss.backward()


def text(model, step: Step, bench: Bench) -> torch.Tensor:
    return bench.tokens(model.config.vocab_size, step.batch, step.windows * bench.window_size)


def inputs(model, step: Step, bench: Bench) -> dict[str, torch.Tensor]:
    """Texts of `step.lengths`: padded on the left with their mask, or packed into one row with their positions."""
    texts = [{"input_ids": bench.tokens(model.config.vocab_size, 1, n)[0].tolist()} for n in step.lengths]
    if step.packed:
        batch = DataCollatorWithFlattening(return_position_ids=True)(texts)
        return {name: batch[name].to(bench.device) for name in ("input_ids", "labels", "position_ids")}
    rows = [torch.tensor(text["input_ids"], device=bench.device) for text in texts]
    ids, labels = (pad_sequence(rows, True, value, padding_side="left") for value in (0, -100))
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}


def resident_bytes(name: str) -> int | None:
    """A line of /proc/self/status: VmRSS, memory now, or VmHWM, its peak. None where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def memory_of(step: Step, bench: Bench) -> dict[str, int | None]:
    """Bytes of one step of this process: `before`, `peak` and `tensors`."""
    model = trained(step, bench)
    tokens = inputs(model, step, bench) if step.lengths else text(model, step, bench)
    run(model, step, bench.tokens(model.config.vocab_size, 1, 16))

    if bench.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(model, step, tokens)
        peak = torch.cuda.max_memory_allocated()
        return {"before": before, "peak": peak, "tensors": peak - before}

    before = resident_bytes("VmRSS")
    run(model, step, tokens)
    peak = resident_bytes("VmHWM")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(model, step, tokens)
    events = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    allocated = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return {"before": before, "peak": peak, "tensors": int(allocated.max())}


@functools.cache
def _in_a_process(step: str, quick: bool, device: str, threads: int) -> dict[str, int | None]:
    # So that a freed tensor leaves the process at once, and a peak is one of tensors alive: by default malloc raises
    # the size from which it asks the system for memory of its own, and keeps what is freed below it.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", f"{__package__}.memory", step, "--device", device, "--threads", str(threads)]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(step: Step, bench: Bench) -> dict[str, int | None]:
    """`memory_of` in a fresh process, once for every step."""
    return _in_a_process(json.dumps(asdict(step)), bench.quick, bench.device, bench.threads)


def compare(bench: Bench, name: str, setting: str, target: float | None, one: Step, other: Step) -> Row:
    """The peaks of two steps."""
    first, second = (peak_memory(step, bench) for step in (one, other))
    ratios = {"tensors": first["tensors"] / second["tensors"]}
    if first["peak"] is not None:
        ratios["whole process"] = first["peak"] / second["peak"]
        ratios["growth"] = (first["peak"] - first["before"]) / max(second["peak"] - second["before"], 1)
    kinds = ("tensors", "growth") if "growth" in ratios and second["tensors"] > VISIBLE_BYTES else ("tensors",)
    judged = max(kinds, key=ratios.get)
    absolutes = [f"{kind} {ratio:.2f}" for kind, ratio in ratios.items() if kind != judged]
    sizes = f"{first['tensors'] / 2**20:.0f} over {second['tensors'] / 2**20:.0f} MiB of tensors"
    return Row(
        f"{name}, by {'growth of the process' if judged == 'growth' else 'tensors'}",
        setting,
        ratios[judged],
        target=target,
        absolute="; ".join([sizes, *absolutes]),
        details={"ratios": ratios, "one": first, "other": second},
    )


def main():
    parser = argparse.ArgumentParser(description="Measure the memory of one training step.")
    parser.add_argument("step", type=json.loads, help="fields of `Step`, as JSON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    overrides, lengths = (tuple(args.step.get(name, ())) for name in ("overrides", "lengths"))
    step = Step(**{**args.step, "overrides": tuple(map(tuple, overrides)), "lengths": lengths})
    print(json.dumps(memory_of(step, Bench(args.quick, args.device, args.threads))))


if __name__ == "__main__":
    main()
