"""Sleep until S settles: what it saves, and what it costs.

    python -m examples.experiments.adaptive examples/checkpoints/word-problems --passes 16 --until 0.3 0.2 0.1 0.05

Trained models of one recipe, one per seed, answer the same questions with `Sleep(passes=N, until=...)`, and with fixed
N. The table has a row for every way to sleep, and for every depth the answers that are right and the passes that a
window took; `--output NAME` keeps all counts as NAME.json and the table as NAME.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from modeling_sleep import Sleep, SleepForCausalLM
from modeling_sleep.markdown_table import markdown_table

from .evaluation import predict_answers
from .flops import flops_per_example
from .recipe import build_task


def ask(model, batches: list[dict], sleep: Sleep) -> dict:
    """
    Answer the questions of some batches.

    Returns
    -------
    dict
        `correct` and `total` of the answers; `windows` that were slept over and the `taken` passes over all of them.
    """
    naps = []
    answers = [
        answer for batch in batches for answer in predict_answers(model, batch, sleep, sleep_callback=naps.append)
    ]
    taken = [passes for nap in naps for passes in nap.passes_of_rows or [nap.passes] * rows_of(nap, batches)]
    return {
        "correct": sum(predicted == right for predicted, right in answers),
        "total": len(answers),
        "windows": len(taken),
        "taken": sum(taken),
    }


def rows_of(nap, batches: list[dict]) -> int:
    """Rows of a sleep that does not say which: all of its batch, and all batches are equally large."""
    return len(batches[0]["input_ids"]) if nap.rows is None else len(nap.rows)


def measure(
    run: Path, results: dict, sleeps: Sequence[Sleep], depths: Sequence[int], num_examples: int, batch_size: int
) -> list[dict]:
    """
    Ask the model of one run, of which `results` are kept.

    Returns
    -------
    list[dict]
        Per way to sleep and depth: what [`ask`] counts, and `passes`, `until`, `depth`, `seed`, and `flops` of an
        example, its answers included.
    """
    task, model = build_task(results["task"]), SleepForCausalLM.from_pretrained(run).eval()
    # Passes cost the same each, so that two counts give the cost of any mean number of them.
    once, twice = (flops_per_example(model, task, n, backward=False) for n in (1, 2))
    rows, collator = [], task.collator()
    for depth in tqdm(depths, desc=run.name, unit="depth", leave=False):
        examples = task.examples(range(num_examples), split="eval", depth=depth)
        batches = [collator(examples[i : i + batch_size]) for i in range(0, num_examples, batch_size)]
        for sleep in sleeps:
            counts = ask(model, batches, sleep)
            flops = once + (counts["taken"] / counts["windows"] - 1) * (twice - once)
            about = {"seed": results["seed"], "passes": sleep.passes, "until": sleep.until, "depth": depth}
            rows.append({**about, **counts, "flops": flops})
    return rows


def table(rows: list[dict], depth_name: str) -> str:
    """The Markdown table: means over seeds, and of several the lowest."""
    data = pd.DataFrame(rows).fillna({"until": 0})
    data["share"], data["mean"] = 100 * data.correct / data.total, data.taken / data.windows
    most = data.loc[data.until == 0].groupby("passes").flops.mean().max()
    depths, seeds = sorted(data.depth.unique()), data.seed.nunique()
    lines = []
    for (until, passes), group in data.groupby(["until", "passes"]):
        cells = []
        for depth in depths:
            at = group[group.depth == depth]
            lowest = f" ({at.share.min():.1f})" if seeds > 1 else ""
            cells.append(f"{at.share.mean():.1f}{lowest}; {at['mean'].mean():.1f}")
        name = f"until {until:g}, at most {passes}" if until else f"always {passes}"
        lines.append([name, *cells, f"{100 * group.flops.mean() / most:.0f} %"])
    head = ["passes", *(f"{depth_name} = {depth}" for depth in depths), "operations"]
    caption = (
        f"Right answers in %{f', mean of {seeds} seeds (lowest)' if seeds > 1 else ''}; passes that a window took. "
        f"{data.total.min():,} to {data.total.max():,} answers per seed and depth. Operations: of an example, answers "
        f"included, over those of always {data.passes.max()}."
    )
    return f"{markdown_table(head, lines)}\n\n{caption}\n"


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description="Compare sleeping until S settles with fixed numbers of passes.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs of one recipe")
    parser.add_argument("--passes", type=int, default=16, help="the most passes over a window")
    parser.add_argument("--until", type=float, nargs="+", default=[0.3, 0.1, 0.03, 0.01], help="relative changes of S")
    parser.add_argument("--fixed", type=int, nargs="*", default=[4, 8], help="fixed N to compare with")
    parser.add_argument("--depths", type=int, nargs="+", help="default: those of the recipe's evaluation")
    parser.add_argument("--num-examples", type=int, default=500, help="examples per depth, a multiple of the batch")
    parser.add_argument("--batch-size", type=int, default=250, help="examples per forward pass")
    parser.add_argument("--output", type=Path, metavar="NAME", help="of NAME.json and NAME.md")
    args = parser.parse_args(argv)
    if args.num_examples % args.batch_size:
        parser.error(f"--num-examples must be a multiple of --batch-size, {args.batch_size}, got {args.num_examples}")
    found = []
    for run in args.runs:
        if not (run / "model.safetensors").is_file() or not (run / "results.json").is_file():
            parser.error(f"{run} is not the folder of a finished run: it has no model or no results.json")
        found.append(json.loads((run / "results.json").read_text(encoding="utf-8")))
        if found[-1]["task"] != found[0]["task"]:
            parser.error(f"{run} is of another task than {args.runs[0]}")
    if min([*args.until, *args.fixed, args.passes]) <= 0:
        parser.error("--until, --fixed and --passes must be above 0")
    sleeps = [Sleep(passes=n) for n in sorted({*args.fixed, args.passes})]
    sleeps += [Sleep(passes=args.passes, until=until) for until in sorted(args.until, reverse=True)]
    torch.set_num_threads(1)  # more seldom help a small model
    depths = args.depths or found[0]["evaluation"]["depths"]
    asked = (sleeps, depths, args.num_examples, args.batch_size)
    rows = [row for run, results in zip(args.runs, found, strict=True) for row in measure(run, results, *asked)]
    text = table(rows, build_task(found[0]["task"]).depth_name)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        runs = [{name: results[name] for name in ("recipe", "variant", "seed", "commit")} for results in found]
        kept = json.dumps({"runs": runs, "rows": rows}, indent=1) + "\n"
        args.output.with_name(args.output.name + ".json").write_text(kept, encoding="utf-8")
        args.output.with_name(args.output.name + ".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
