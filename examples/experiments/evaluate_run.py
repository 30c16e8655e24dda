"""Ask a trained model of a recipe something else than its recipe does: other N, other depths, more questions.

    python -m examples.experiments.evaluate_run runs/gsm-mini/any-N-seed1 --passes 1 2 4 8 16 32 --depths 1 2 3 4 5 6

The folder is one that `train.py` or `run_grid.py` has finished; its results stay as they are. What is not said is as
in the recipe. `--amnesia` is a control: what is answered without memory. `--output NAME` keeps the counts, with their
intervals, as NAME.json, and draws them as NAME.png.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState

from modeling_sleep import SleepForCausalLM
from modeling_sleep.hub_upload.card import table

from .controls import AmnesiacForCausalLM
from .evaluation import evaluate_by_depth
from .plot_results import plot_results
from .recipe import Evaluation, build_task


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description="Ask a trained model of a recipe other questions.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--passes", type=int, nargs="+", help="every N to answer with")
    parser.add_argument("--depths", type=int, nargs="+", help="every depth to be asked")
    parser.add_argument("--num-examples", type=int, help="examples per depth")
    parser.add_argument("--batch-size", type=int, help="examples per forward pass")
    parser.add_argument("--seed", type=int, default=0, help="of the examples; 0 are those of the results")
    parser.add_argument("--amnesia", action="store_true", help="zero the fast weights, too, at the end of a window")
    parser.add_argument("--output", type=Path, metavar="NAME", help="of NAME.json for the counts and NAME.png")
    parser.add_argument("--cpu", action="store_true", help="leave accelerators alone")
    args = parser.parse_args(argv)
    if not (args.run / "results.json").is_file():
        parser.error(f"{args.run} is not the folder of a finished run: it has no results.json")
    results = json.loads((args.run / "results.json").read_text(encoding="utf-8"))
    if results["training"].get("amnesia"):
        parser.error(
            f"{args.run} holds results alone: a model with amnesia is not saved, as it would load with a memory"
        )
    task = build_task(results["task"])
    asked = {field.name: getattr(args, field.name) for field in dataclasses.fields(Evaluation)}
    asked = results["evaluation"] | {name: value for name, value in asked.items() if value is not None}
    evaluation = Evaluation(**asked)

    torch.set_num_threads(1)  # more seldom help a small model
    state = PartialState(cpu=args.cpu)
    model_class = AmnesiacForCausalLM if args.amnesia else SleepForCausalLM
    model = model_class.from_pretrained(args.run).to(state.device)
    evaluation.check(task, model.config)
    asked = dataclasses.asdict(evaluation)
    counts = evaluate_by_depth(model, task, seed=args.seed, **asked)
    if not state.is_main_process:
        return
    print(table(counts, task.depth_name, results["training"]["passes"]))
    if args.output:
        about = {"run": {name: results[name] for name in ("recipe", "variant", "seed", "commit")}}
        about |= {
            "seed": args.seed,
            "amnesia": args.amnesia,
            "evaluation": asked,
            "task": results["task"],
            "training": results["training"],
        }
        about |= {"depth_name": task.depth_name, "counts": counts}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about, indent=1) + "\n"
        args.output.with_name(args.output.name + ".json").write_text(text, encoding="utf-8")
        plot_results(about, args.output.with_name(args.output.name + ".png"))


if __name__ == "__main__":
    main()
