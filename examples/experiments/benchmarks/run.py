"""Measure what wake, sleep and training cost, as ratios: `make bench`, an hour on a CPU.

    python -m examples.experiments.benchmarks.run [--only decode rule] [--quick] [--output runs/benchmarks]

    decode      ms per token by length of the context, against other models; our sleeps apart and included
    window      the same beside a sliding window, by the length of the window
    cache       bytes remembered by length of the context
    prefill     time to the first token after a prompt; a sleep over prefills of its window
    ragged      texts of different lengths over even ones, packed over padded
    long        a token of generate behind texts of up to 1M tokens that were read
    training    time and peak memory of a step, over N, windows and checkpointing
    rule        the gated delta rule alone, over the one in transformers and over the machine's peak
    compiled    torch.compile of the layers: what it saves, how long it takes
    bfloat16    what half precision saves, where the device has instructions for it
    profile     where the time goes

Every section is saved when it is done, and not measured again unless asked to (`--again`) or measured with other
settings; so an interrupted run goes on where it was. `DEVICE/SECTION.json` has every number, `DEVICE/SECTION.md` the
tables, `DEVICE/SECTION.png` the plot, `README.md` the targets.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from packaging.version import Version
from tqdm.auto import tqdm

from . import bfloat16, cache, compiled, decode, long, prefill, profile, ragged, report, rule, training, window
from .bench import Bench, Result
from .models import OLDEST


SECTIONS = {
    "decode": decode,
    "window": window,
    "cache": cache,
    "prefill": prefill,
    "ragged": ragged,
    "long": long,
    "training": training,
    "rule": rule,
    "compiled": compiled,
    "bfloat16": bfloat16,
    "profile": profile,
}

CPU_ONLY = ("profile",)  # its profiler sees no other device


def machine_of(bench: Bench) -> dict:
    """On what, and with what, a section is measured."""
    threads = f"{bench.threads} thread{'s'[: bench.threads > 1]}"
    device = torch.cuda.get_device_name() if bench.device == "cuda" else f"CPU ({platform.machine()}), {threads}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"machine": f"{device}, float32" + (", quick run" if bench.quick else ""), "versions": versions}


def is_done(path: Path, about: dict) -> bool:
    """Whether a section was measured like this already."""
    return path.exists() and about.items() <= json.loads(path.read_text(encoding="utf-8"))["about"].items()


def save(path: Path, about: dict, result: Result) -> None:
    rows = [{**asdict(row), "verdict": row.verdict.strip("*")} for row in result.rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "rows": rows, "data": result.data}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def write_pages(output: Path) -> dict[str, str]:
    """Plots and pages, of all that has been saved in `output`."""
    devices = {}
    for device in ("cpu", "cuda"):
        paths = {name: output / device / f"{name}.json" for name in SECTIONS}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
        for name, result in found.items():
            SECTIONS[name].plot(result["data"]).savefig(output / device / f"{name}.png", dpi=150)
        if found:
            devices[device] = found
    pages = report.pages(devices, SECTIONS)
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8")
    return pages


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Measure what wake, sleep and training cost, as ratios.")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--again", action="store_true", help="measure what has been measured already")
    parser.add_argument(
        "--quick", action="store_true", help="does it run? Tiny sizes and few rounds, whose numbers mean little"
    )
    parser.add_argument(
        "--device", nargs="+", choices=("cpu", "cuda"), default=available, help="default: all there are"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    args = parser.parse_args(argv)
    if Version(transformers.__version__) < Version(OLDEST):
        parser.error(f"the other models need transformers {OLDEST} or newer, and this is {transformers.__version__}.")
    return args


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    todo = [(device, name) for device in args.device for name in args.only if device == "cpu" or name not in CPU_ONLY]
    bar = tqdm(todo, unit="section")
    for device, name in bar:
        bar.set_description(f"{name} ({device})")
        bench, path = Bench(args.quick, device, args.threads), args.output / device / f"{name}.json"
        about = machine_of(bench)
        if args.again or not is_done(path, about):
            began = time.perf_counter()
            result = SECTIONS[name].measure(bench)
            save(path, about | {"seconds": round(time.perf_counter() - began)}, result)
    print("", *write_pages(args.output).values(), f"saved to {args.output}", sep="\n")


if __name__ == "__main__":
    main()
