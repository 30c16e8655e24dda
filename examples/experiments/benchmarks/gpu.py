"""What only a GPU shows, in the order of what it is worth: `make gpu`.

    python -m examples.experiments.benchmarks.gpu              # all of it; goes on where it was interrupted
    python -m examples.experiments.benchmarks.gpu --steps 1    # the next step alone, on a GPU lent for ten minutes
    python -m examples.experiments.benchmarks.gpu --tiny       # does it run? Tiny sizes, on a CPU, too

First the tests marked `cuda`; then speed in bfloat16 beside other models, with its share of what the same GPU does in
one large matrix product and one large copy; then Rule 110 at the paper's size, with N = 1 and N = 4.

Notable:
- a step takes less than nine minutes, in a process of its own. A training takes many steps, its slices
- the result of a step is a line of `steps.jsonl`, written before the next begins. A step that failed, or took too
  long, leaves its reason there, does not keep the others from running, and runs again with the next command
- steps are done once per machine; `--again` repeats them
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from transformers import DynamicCache

from modeling_sleep import fla_sleep

from ..recipe import load_recipe, train_command, write_at_once
from ..train import commit, last_checkpoint, step_of
from . import memory, report, rule
from .bench import Bench, named, short
from .compiled import CompiledStream
from .decode import OurStream, Stream
from .machine import Peak, count
from .memory import Step as TrainingStep
from .models import FULL, OLMO, OURS, QWEN, SLIDING, build


REPOSITORY = Path(__file__).resolve().parents[3]
LIMIT = 9 * 60  # seconds of a step
SLICE = 7  # minutes of a training; its start and its evaluation come on top
PEERS = (FULL, SLIDING, OLMO, QWEN)
COMPILED = f"{OURS}, compiled"
# On a CPU: what `--tiny` changes of a training.
TINY = (
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "task.max_depth=2",
    "training.max_steps=4",
    "training.batch_size=4",
    "training.warmup_steps=1",
    "evaluation.num_examples=4",
    "evaluation.depths=[2]",
)


class StepFailed(Exception):
    """With the reason."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What all steps of a command have in common."""

    output: Path
    device: str
    tiny: bool

    def bench(self) -> Bench:
        bench = Bench(self.tiny, self.device)
        bench.dtype = torch.bfloat16
        if not self.tiny:  # about 250 million parameters
            bench.width, bench.window_size = 8, 512
        return bench

    def machine(self) -> str:
        """What results are told apart by."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        return f"{name}, tiny" if self.tiny else name


def execute(command: list[str], **environment: str) -> str:
    """
    The output of a command of the repository, whose errors and bars are shown as they come.

    Raises
    ------
    StepFailed
        If it fails, or takes longer than a step may.
    """
    # What Triton has tuned once it need not tune again in the next process.
    environment = {**os.environ, "TRITON_CACHE_AUTOTUNING": "1", **environment}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"took longer than {LIMIT // 60} minutes") from error
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or ["see its messages above"]
        raise StepFailed(f"exit code {done.returncode}: {last[0]}")
    return done.stdout


# Tests.


def test(chosen: str, run: Run) -> dict:
    """The tests marked `cuda` with such names: how many passed, and which did not."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        chosen = "masked_tokens and forward" if run.tiny else chosen
        command = ["-m", "pytest", "-q", "-m", "cuda", "-k", chosen, f"--junitxml={found}", "tests/test_cuda.py"]
        try:
            execute(command, TRANSFORMERS_TEST_DEVICE=run.device)
        except StepFailed:
            if not found.exists():
                raise
        cases = list(xml.etree.ElementTree.parse(found).iter("testcase"))
    failed = {
        case.get("name"): case.find(kind)
        for case in cases
        for kind in ("failure", "error")
        if case.find(kind) is not None
    }
    skipped = [case.find("skipped").get("message") for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": {name: reason.get("message", "")[:500] for name, reason in failed.items()},
        "skipped": {reason: skipped.count(reason) for reason in skipped},
    }


# Measurements, each in a process of its own.


@dataclasses.dataclass
class Side:
    """Something that is measured: its seconds, what it computes, and of how many tokens."""

    seconds: Callable[[], float]
    work: Callable[[], object]  # the same, once, to count its operations
    tokens: int


def compare(bench: Bench, sides: dict[str, Side], label: str) -> dict[str, dict]:
    """
    Per side: milliseconds, tokens per second, TFLOP/s, GB/s, and their shares of the peak measured in the same rounds.

    Operations and bytes are those of matrix products and the like (`machine.py`). Of the gated delta rule they are
    counted in plain torch, as nobody sees into the kernels of `fla`.
    """
    with mock.patch.object(fla_sleep, "DEVICE_TYPE", "none"):
        work = {name: count(side.work) for name, side in sides.items()}
    peak = Peak(bench)
    todo = {name: side.seconds for name, side in sides.items()} | {"peak": partial(peak.both, times=3)}
    rounds = bench.in_turn(todo, label)
    found = {}
    for name, side in sides.items():
        ms, (flops, touched) = rounds.ms(name), work[name]
        seconds = ms["median"] / 1000
        found[name] = {
            "ms": ms["median"],
            "quartiles": ms["quartiles"],
            "tokens per second": side.tokens / seconds,
            "TFLOP/s": flops / seconds / 1e12,
            "GB/s": touched / seconds / 1e9,
            "share of matmul": flops * rounds.ms("flop")["median"] / 1000 / seconds,
            "share of copy": touched * rounds.ms("byte")["median"] / 1000 / seconds,
        }
    return found


def kernels(bench: Bench) -> dict:
    """The gated delta rule, forward and backward: `fla` over plain torch."""
    if bench.device != "cuda" or fla_sleep.load_kernels() is None:
        return {"left out": 'the kernels of `fla` do not run here: pip install ".[fla]" beside a GPU'}
    rows = rule.fla(bench)
    return {row.setting: {"ratio": row.ratio, "quartiles": row.quartiles, "ms": row.absolute} for row in rows}


@torch.no_grad()
def decoding(bench: Bench) -> dict:
    """A token by the tokens before it. Ours sleeps between windows; a sleep is measured apart."""
    found = {}
    for context in [4 * bench.window_size] if bench.quick else [2**12, 2**16]:
        streams = {OURS: OurStream(bench, context), COMPILED: CompiledStream(bench, context)}
        streams |= {name: Stream(name, bench, context) for name in PEERS}
        tokens = 4 if bench.quick else 32
        sides = {
            name: Side(partial(stream.decode, tokens), lambda stream=stream: stream.model(**stream.inputs()), 1)
            for name, stream in streams.items()
        }
        found[named(context)] = compare(bench, sides, f"decoding at {named(context)}")
    return found


@torch.no_grad()
def prefill(bench: Bench) -> dict:
    """A prompt, until the logits of its last token are there."""
    length, models = (
        (4 if bench.quick else 16) * bench.window_size,
        {name: build(name, bench) for name in (OURS, *PEERS)},
    )
    sides = {}
    for name, model in models.items():
        for passes in (1, 4) if name == OURS else (None,):
            extra = {} if passes is None else {"sleep_passes": passes}
            tokens = bench.tokens(model.config.vocab_size, 1, length)

            def read(model=model, tokens=tokens, extra=extra):
                model(tokens, past_key_values=DynamicCache(config=model.config), logits_to_keep=1, **extra)

            side = name if passes is None else f"{name}, N = {passes}"
            sides[side] = Side(partial(bench.timed, read), read, length)
    return {named(length): compare(bench, sides, "prefill")}


@torch.no_grad()
def sleep(bench: Bench) -> dict:
    """A full window: reading it, and the sleep after it."""
    model, found = build(OURS, bench).model, {}
    for batch in (1, 2) if bench.quick else (1, 16):
        window = bench.tokens(model.config.vocab_size, batch, bench.window_size)

        def read(window=window):
            cache = DynamicCache(config=model.config)
            model(window, past_key_values=cache)
            return cache

        def asleep(passes: int, read=read) -> float:
            cache = read()
            return bench.timed(model.sleep, cache, sleep_passes=passes)

        sides = {"reading": Side(partial(bench.timed, read), read, window.numel())}
        for passes in (2, 4):
            cache = read()
            work = partial(model.sleep, cache, sleep_passes=passes)
            sides[f"N = {passes}"] = Side(partial(asleep, passes), work, window.numel())
        found[f"batch {batch}"] = compare(bench, sides, f"sleep, batch {batch}")
    return found


def training(bench: Bench) -> dict:
    """A step, forward and backward, labels everywhere: and the most memory that it takes."""
    windows, batch = (2, 2) if bench.quick else (8, 4)
    steps = {f"{OURS}, N = {n}": TrainingStep(passes=n, windows=windows, batch=batch) for n in (1, 2, 4)}
    steps |= {name: TrainingStep(name, windows=windows, batch=batch) for name in (FULL, OLMO, QWEN)}
    sides, peaks = {}, {}
    for name, step in steps.items():
        model = memory.trained(step, bench)
        work = partial(memory.run, model, step, memory.text(model, step, bench))
        work()
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            peaks[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
        sides[name] = Side(partial(bench.timed, work), work, batch * windows * bench.window_size)
    found = compare(bench, sides, "training")
    for name, mebibytes in peaks.items():
        found[name]["MiB of a step"] = mebibytes
    return {f"{windows} windows, batch {batch}": found}


MEASUREMENTS = {
    "kernels": kernels,
    "decoding": decoding,
    "prefill": prefill,
    "sleep": sleep,
    "training": training,
}


def measure(name: str, run: Run) -> dict:
    """Run a measurement in a process of its own."""
    command = ["-m", f"{__package__}.gpu", "--inside", name, "--device", run.device] + ["--tiny"] * run.tiny
    return json.loads(execute(command).splitlines()[-1])


# Training.


def train(variant: str, run: Run) -> dict:
    """One slice. Its result is not `unfinished` if it was the last."""
    output = (run.output / "rule110" / variant).resolve()
    overrides = TINY if run.tiny else ()
    command = train_command("rule110", variant, 0, output, overrides)
    command += ["--minutes", str(SLICE)] + ["--cpu"] * (run.device == "cpu")
    execute(command)
    results = output / "results.json"
    if results.exists():
        results = json.loads(results.read_text(encoding="utf-8"))
        return {name: results[name] for name in ("counts", "seconds", "parameters", "tokens", "flops")}
    checkpoint = Path(last_checkpoint(output))
    log = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"][-1]
    steps = load_recipe("rule110", variant, overrides).training.max_steps
    return {"unfinished": {"step": step_of(checkpoint), "of": steps, **log}}


VARIANTS = ("N=4", "N=1")
STEPS = {
    "tests of fla": partial(test, "kernels"),
    "tests": partial(test, "not kernels"),
    **{name: partial(measure, name) for name in MEASUREMENTS},
    **{f"rule110 {variant}": partial(train, variant) for variant in VARIANTS},
}


# Which come next, and what is kept of them.


class Log:
    """The last result of every step, by machine: the lines of a file, which is written whole after each."""

    def __init__(self, path: Path, machine: str):
        self.path, self.machine = path, machine
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.lines = {(line["machine"], line["step"]): line for line in map(json.loads, lines)}

    def of(self, step: str) -> dict:
        return self.lines.get((self.machine, step), {})

    def is_finished(self, step: str) -> bool:
        return "result" in (line := self.of(step)) and "unfinished" not in line["result"]

    def progress(self, step: str) -> float:
        """Share of a step that is done, and more than that if it has failed."""
        line = self.of(step)
        slices = line.get("result", {}).get("unfinished", {"step": 0, "of": 1})
        return math.inf if "failed" in line else slices["step"] / slices["of"]

    def add(self, step: str, **found):
        self.lines[self.machine, step] = {
            "step": step,
            "machine": self.machine,
            "commit": commit(),
            "versions": {"torch": torch.__version__},
            **found,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(self.path, "".join(json.dumps(line) + "\n" for line in self.lines.values()))

    def forget(self, steps: list[str]):
        for step in steps:
            self.lines.pop((self.machine, step), None)


def in_order(steps: list[str], log: Log):
    """The steps to do: by worth, slices in turn. One that has failed comes last, and once per command."""
    failed = set()
    while todo := [step for step in steps if step not in failed and not log.is_finished(step)]:
        step = min(todo, key=log.progress)
        yield step
        if "failed" in log.of(step):
            failed.add(step)


def summary(steps: list[str], log: Log) -> str:
    """A line per step, then a table per measurement."""
    rows, parts = {}, []
    for step in steps:
        line = log.of(step)
        rows[step] = [state_of(line), f"{line['seconds']:.0f}" if line else ""]
        result = line.get("result", {})
        parts += [f"failed: {name}: {reason}" for name, reason in result.get("failed", {}).items()]
        if step == "kernels" and "left out" not in result:
            ratios = {setting: [f"{x['ratio']:.3f}", x["ms"]] for setting, x in result.items()}
            parts += ["`fla` over torch:\n\n" + report.grid("", ["ratio", ""], ratios)] if ratios else []
        elif step in MEASUREMENTS and "left out" not in result:
            parts += [f"{step}, {setting}:\n\n{shares(sides)}" for setting, sides in result.items()]
    return "\n\n".join([report.grid(log.machine, ["state", "s"], rows), *parts])


def state_of(line: dict) -> str:
    if not line:
        return "to do"
    if "failed" in line:
        return f"failed: {line['failed']}"
    result = line["result"]
    if "unfinished" in result:
        return "step {step:,} of {of:,}".format(**result["unfinished"])
    if "left out" in result:
        return result["left out"]
    if "passed" in result:
        return f"{result['passed']} passed, {len(result['failed'])} failed, {sum(result['skipped'].values())} skipped"
    return "done"


def shares(sides: dict[str, dict]) -> str:
    head = ["ms", "tokens/s", "TFLOP/s", "of matmul", "of copy"]
    rows = {}
    for name, x in sides.items():
        percent = [f"{100 * x[f'share of {kind}']:.0f} %" for kind in ("matmul", "copy")]
        rows[name] = [*(short(x[key]) for key in ("ms", "tokens per second", "TFLOP/s")), *percent]
    return report.grid("", head, rows)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check, measure and train what only a GPU shows.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--steps", type=int, help="do no more than so many; the same command goes on")
    parser.add_argument("--again", action="store_true", help="measure what has been measured; trainings are kept")
    parser.add_argument("--tiny", action="store_true", help="does it run? Tiny sizes, whose numbers mean nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda; with --tiny, cpu if there is none")
    parser.add_argument("--inside", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    has_gpu = torch.cuda.is_available()
    if args.device is None:
        args.device = "cpu" if args.tiny and not has_gpu else "cuda"
    if args.device == "cuda" and not has_gpu:
        parser.error(
            f"no GPU is visible to torch {torch.__version__}. On a machine with one, install a build for it: "
            "make env TORCH=torch. To see whether the steps run: --tiny"
        )
    return args


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    run = Run(args.output, args.device, args.tiny)
    if args.inside:
        print(json.dumps(MEASUREMENTS[args.inside](run.bench())))
        return

    log = Log(args.output / "steps.jsonl", run.machine())
    if args.again:
        log.forget(args.only)
    for number, step in enumerate(in_order(args.only, log)):
        if number == args.steps:
            break
        print(f"==> {step}", flush=True)
        began = time.monotonic()
        try:
            found = {"result": STEPS[step](run)}
        except StepFailed as error:
            found = {"failed": str(error)}
        log.add(step, **found, seconds=round(time.monotonic() - began, 1))
        print(f"    {state_of(log.of(step))}", flush=True)

    print(f"\n{summary(args.only, log)}\n\nsaved to {log.path}")
    if left := next(in_order(args.only, log), None):
        print(f"next: {left}; the same command goes on with it")


if __name__ == "__main__":
    main()
