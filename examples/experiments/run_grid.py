"""Run the evidence: every variant of a recipe with every seed, on as many cores as there are.

    python -m examples.experiments.run_grid rule110-mini depo-mini --jobs 2 [-- further options of train.py]

What is notable:
- a run is one process of `train.py`; its folder under `--output` has its log, checkpoints and model
- a finished run is a line of `<results>/<recipe>.jsonl`, and a run that has its line is not run again
- the same command goes on where an interrupted one stopped, inside a run from its last checkpoint
- a line made with other settings than the recipe has now is an error, never mixed in
- on a machine with several GPUs, runs take them in turns: `--jobs` as many as there are
- `--launcher "accelerate launch --multi_gpu --num_processes 8"` gives every run all GPUs
"""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .recipe import Recipe, has_results, list_variants, load_recipe, train_command, what_differs, write_at_once


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One variant of a recipe with one seed, and where its files are."""

    recipe: Recipe
    seed: int
    output: Path
    results: Path

    def __str__(self) -> str:
        return f"{self.recipe.preset}, {self.recipe.variant}, seed {self.seed}"

    def key(self) -> tuple[str, int]:
        return self.recipe.variant, self.seed

    def command(self, launcher: Sequence[str], overrides: Sequence[str], options: Sequence[str]) -> list[str]:
        """What to execute."""
        run = train_command(self.recipe.preset, self.recipe.variant, self.seed, self.output, overrides)
        return [*launcher, *run, *options]


def plan(
    presets: Sequence[str],
    variants: Sequence[str] | None,
    seeds: Sequence[int],
    overrides: Sequence[str],
    output: Path,
) -> list[Run]:
    """All runs, seed by seed, so that an interrupted grid has whole comparisons."""
    runs = []
    for preset in presets:
        known = list_variants(preset)
        if not known:
            raise ValueError(f"preset {preset!r} lists no variants, so there is no grid to run")
        for seed in seeds:
            for variant in variants or known:
                folder = f"{variant.replace(' ', '-')}-seed{seed}"
                recipe = load_recipe(preset, variant, overrides)
                runs.append(Run(recipe, seed, output / preset / folder, output / f"{preset}.jsonl"))
    return runs


def read_lines(path: Path) -> list[dict]:
    """The finished runs of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def is_finished(run: Run) -> bool:
    """
    Whether the results hold this run.

    Raises
    ------
    ValueError
        If they hold it with other settings.
    """
    for line in read_lines(run.results):
        if (line["variant"], line["seed"]) == run.key():
            if changed := what_differs(run.recipe.settings, line):
                raise ValueError(
                    f"{run.results} holds '{run}' with other settings than the recipe has now (section "
                    f"{', '.join(changed)}): remove its line, or keep these results apart with --results"
                )
            return True
    return False


def has_result(run: Run) -> bool:
    """Whether the run's folder holds its results, be it that it has just ended or that it outlived an earlier grid."""
    return has_results(run.output, run.recipe.settings)


def add_result(run: Run):
    """Put a finished run into its results file, in the order of variants and seeds, unless it is there."""
    results = json.loads((run.output / "results.json").read_text(encoding="utf-8"))
    order = {variant: i for i, variant in enumerate(list_variants(run.recipe.preset))}
    run.results.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run.results.with_suffix(".lock")):  # other grids may write there, too
        if is_finished(run):
            return
        lines = [*read_lines(run.results), results]
        # Variants that the recipe no longer has come last.
        lines.sort(key=lambda line: (order.get(line["variant"], len(order)), line["variant"], line["seed"]))
        write_at_once(run.results, "".join(json.dumps(line) + "\n" for line in lines))


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log, of progress bars only what was last."""
    text = path.read_bytes().decode(errors="replace").rstrip("\n")  # text mode would take every \r for a new line
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n")[-lines:])


def devices() -> list[str]:
    """The GPUs that a process may see, as `CUDA_VISIBLE_DEVICES` names them; none on a CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = range(torch.cuda.device_count())
    return named.split(",")[: len(numbers)] if named else list(map(str, numbers))


def execute(runs: Sequence[Run], commands: Sequence[list[str]], jobs: int, gpus: Sequence[str] = ()) -> list[Run]:
    """
    Run the commands, `jobs` at a time, and return the runs that failed or were stopped before their end.

    If there are `gpus`, each run sees one of them.
    """
    waiting, running, unfinished, places = list(zip(runs, commands)), {}, [], list(range(jobs))
    environment = {"TQDM_MININTERVAL": "10", **os.environ}  # a bar in a log is for looking back
    with tqdm(total=len(runs), desc="runs", unit="run") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run, command = waiting.pop(0)
                    if has_result(run):
                        add_result(run)
                        bar.update()
                        continue
                    run.output.mkdir(parents=True, exist_ok=True)
                    place = places.pop(0)
                    if gpus:
                        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
                    with (run.output / "log.txt").open("a", encoding="utf-8") as log:
                        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
                    running[run] = process, place
                if bar.postfix != (names := " | ".join(map(str, running))):
                    bar.set_postfix_str(names)
                time.sleep(0.2)
                for run, (process, place) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[run]
                    places.append(place)
                    if process.returncode == 0 and has_result(run):
                        add_result(run)
                    else:
                        unfinished.append(run)
                        tqdm.write(f"not finished (exit {process.returncode}): {run}\n{tail(run.output / 'log.txt')}")
                    bar.update()
        finally:
            for process, _ in running.values():  # when stopped: they go on from their checkpoints next time
                process.terminate()
    return unfinished


def main(argv: Sequence[str] | None = None):
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    argv, options = argv[:split], argv[split + 1 :]
    parser = argparse.ArgumentParser(
        description="Run every variant of recipes with every seed. Resumable.",
        epilog='Options behind "--" go to train.py, e.g. -- --minutes 9',
    )
    parser.add_argument("presets", nargs="+", help="recipes in examples/experiments/recipes/, by name")
    parser.add_argument("--variants", nargs="+", help="only these (default: all that the recipe lists)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder for runs and results")
    parser.add_argument("--results", type=Path, help="folder of the results files (default: that of --output)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each computes on one CPU thread")
    parser.add_argument(
        "--launcher", help="what starts train.py with all GPUs (default: this python, with one GPU if there are any)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")

    runs = plan(args.presets, args.variants, args.seeds, args.overrides, args.output)
    if args.results:
        runs = [dataclasses.replace(run, results=args.results / run.results.name) for run in runs]
    todo = [run for run in runs if not is_finished(run)]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already")
    launcher = shlex.split(args.launcher) if args.launcher else [sys.executable]
    commands = [run.command(launcher, args.overrides, options) for run in todo]
    if args.dry_run:
        print("\n".join(map(shlex.join, commands)))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.output / "grid.lock", timeout=0):
            unfinished = execute(todo, commands, args.jobs, [] if args.launcher else devices())
    except Timeout:
        sys.exit(f"another grid is running in {args.output}: wait for it, or give another --output")
    if unfinished:
        sys.exit(f"{len(unfinished)} runs are not finished; the same command goes on with them")
    print("\n".join(f"results: {path}" for path in sorted({run.results for run in runs}, key=str)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and its runs with it, as Ctrl-C does
    main()
