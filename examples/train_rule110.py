"""Train a model that sleeps on Rule 110: one checkpoint that answers with any number of passes N.

    python examples/train_rule110.py --preset rule110-mini --output runs/rule110-mini

What is notable:
- the recipe comes from the preset (`configuration/presets/`), any option overrides it
- N is drawn anew for every step from `--passes`, so that the fast weights serve however often a window is replayed
- the automaton's steps t are drawn from 1..t_max, and t_max rises from 1 to `--max-rollout` along `--ramp` of the run
- batch, t_max and N of a step are functions of (seed, step): all ranks agree, and a resumed run is the same run
- the folder it leaves behind has the model, tokenizer, model card and `results.json`
"""

import argparse
import functools
import json
import shlex
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from muon import MuonAdamW
from progress import use_loss_bar
from tasks.rule110 import (
    LAYOUTS,
    Rule110Stream,
    answer_start,
    build_tokenizer,
    exact_match_by_steps,
    make_examples,
    window_size,
)
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments, get_scheduler, set_seed

from modeling_sleep import SleepConfig, SleepForCausalLM


def rollout_at(step: int, max_steps: int, max_rollout: int, ramp: float) -> int:
    """The curriculum: t_max rises evenly from 1 at the first step to `max_rollout` after a share `ramp` of the run."""
    progress = min(1.0, step / (ramp * max_steps)) if ramp > 0 else 1.0
    return 1 + int(progress * (max_rollout - 1))


def passes_at(step: int, seed: int, passes: list[int]) -> int:
    """N of a training step, drawn from `passes`; a value that is there twice is drawn twice as often."""
    return passes[np.random.default_rng([seed, step]).integers(len(passes))]


class SleepTrainer(Trainer):
    """A [`Trainer`] that draws the number of passes of every training step; evaluation keeps to the config's."""

    def __init__(self, *args, passes: list[int], **kwargs):
        super().__init__(*args, **kwargs)
        self.passes = passes

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            passes = passes_at(self.state.global_step, self.args.seed, self.passes)
            inputs = {**inputs, "sleep_passes": passes}
        return super().compute_loss(model, inputs, *args, **kwargs)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it leaves open comes from the preset."""
    parser = argparse.ArgumentParser(
        description="Train a model that sleeps on Rule 110. The preset overrides the defaults, any option the preset."
    )
    parser.add_argument("--preset", default="rule110-mini", help="model and recipe, by name (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for model, results and checkpoints")
    parser.add_argument("--layout", choices=LAYOUTS, default="dense", help="how examples are written down")
    parser.add_argument("--width", type=int, default=12, help="cells per row")
    parser.add_argument("--max-rollout", type=int, default=6, help="largest number t of automaton steps")
    parser.add_argument("--ramp", type=float, default=0.6, help="share of the run after which t reaches its maximum")
    parser.add_argument("--steps", "--max-steps", dest="max_steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=128, help="examples per step, over all processes")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4], help="N is drawn from these per step")
    parser.add_argument("--lr-muon", type=float, default=2e-3, help="learning rate of the hidden matrices")
    parser.add_argument("--lr-adamw", type=float, default=1e-3, help="learning rate of everything else")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument(
        "--adjust-lr", choices=("original", "match_rms_adamw"), default="match_rms_adamw", help="Muon's scaling"
    )
    parser.add_argument("--lr-schedule", choices=("linear", "cosine"), default="cosine", help="after the warm-up")
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and passes")
    parser.add_argument("--eval-passes", type=int, nargs="+", default=[1, 2, 4, 8], help="N to evaluate with")
    parser.add_argument("--eval-examples", type=int, default=1000, help="fresh problems per t")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of torch; more than one seldom helps a small model"
    )
    parser.add_argument("--cpu", action="store_true", help="leave accelerators alone")
    parser.add_argument("--save-steps", type=int, default=0, help="steps between checkpoints, 0 for none")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")

    preset = SleepConfig.load_preset(parser.parse_known_args(argv)[0].preset)["training"]
    options = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in preset.items() if name in options})
    return parser.parse_args(argv)


def command_line(args: argparse.Namespace) -> str:
    """The command that repeats this run, with every setting spelled out so that it outlives changes of the preset."""
    words = ["python", "examples/train_rule110.py"]
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "output":
            inside = value.resolve().is_relative_to(Path.cwd())
            words += [flag, str(value.resolve().relative_to(Path.cwd())) if inside else value.name]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is True:
            words += [flag] if name != "resume" else []
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)


def train(args: argparse.Namespace, model: SleepForCausalLM) -> Trainer:
    """Train the model in place and return the trainer, with its history."""
    training_args = TrainingArguments(
        output_dir=str(args.output),
        max_steps=args.max_steps,
        max_grad_norm=args.max_grad_norm,
        logging_steps=max(1, args.max_steps // 100),
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=False,
        seed=args.seed,
        use_cpu=args.cpu,
        dataloader_pin_memory=False,
    )
    devices = training_args.world_size * max(1, training_args.n_gpu)
    if args.batch_size % devices:
        raise ValueError(f"--batch-size {args.batch_size} cannot be shared evenly by {devices} devices")
    training_args.per_device_train_batch_size = args.batch_size // devices
    stream = Rule110Stream(
        args.batch_size,
        functools.partial(rollout_at, max_steps=args.max_steps, max_rollout=args.max_rollout, ramp=args.ramp),
        layout=args.layout,
        width=args.width,
        seed=args.seed,
        split="train",
    )
    optimizer = MuonAdamW(
        model,
        lr_muon=args.lr_muon,
        lr_adamw=args.lr_adamw,
        weight_decay=args.weight_decay,
        adjust_lr_fn=args.adjust_lr,
    )
    scheduler = get_scheduler(args.lr_schedule, optimizer, args.warmup_steps, args.max_steps)
    trainer = SleepTrainer(
        model, training_args, train_dataset=stream, optimizers=(optimizer, scheduler), passes=args.passes
    )
    use_loss_bar(trainer)
    trainer.train(resume_from_checkpoint=args.resume or None)
    return trainer


def evaluate(args: argparse.Namespace, model: SleepForCausalLM) -> dict[int, dict[int, float]]:
    """Whole-answer accuracy `{N: {t: accuracy}}` on rows that training never began with."""
    # In the paper's layout t is the same everywhere and not shown to the model: there is one t to ask for.
    steps = range(1, args.max_rollout + 1) if args.layout == "dense" else [args.max_rollout]
    return exact_match_by_steps(
        model,
        tqdm(steps, desc="evaluating", unit="t"),
        args.eval_passes,
        args.eval_examples,
        layout=args.layout,
        width=args.width,
        seed=args.seed,
    )


def accuracy_table(accuracy: dict[int, dict[int, float]]) -> str:
    """The accuracies as a Markdown table, one row per N."""
    steps = list(next(iter(accuracy.values())))
    lines = [
        "| passes N | " + " | ".join(f"t = {t}" for t in steps) + " |",
        "|---:|" + "---:|" * len(steps),
    ]
    for n, by_steps in accuracy.items():
        lines.append(f"| {n} | " + " | ".join(f"{100 * by_steps[t]:.1f} %" for t in steps) + " |")
    return "\n".join(lines)


def model_card(args: argparse.Namespace, results: dict) -> str:
    """The README of the checkpoint, rendered from its results."""
    rows = "one row" if args.layout == "dense" else "four rows"
    answer = "the whole row after t steps" if args.layout == "dense" else "cell 0 of each row after t steps"
    passes = ", ".join(map(str, args.passes))
    drawn = f"drew N for each step from {passes}" if len(set(args.passes)) > 1 else f"had N = {args.passes[0]}"
    threads = f"{results['threads']} thread" + "s" * (results["threads"] > 1)
    return f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
tags: [sleep, fast-weights, rule-110]
---

# {args.preset}

A language model that sleeps ([arXiv 2605.26099](https://arxiv.org/abs/2605.26099)), trained on the cellular automaton
Rule 110. It reads {rows} of {args.width} cells in windows of L = {results["config"]["window_size"]} tokens. When a
window is full, the model replays it N - 1 more times into the fast weights of its Gated DeltaNet layers, then forgets
it. Only after that is it asked for {answer}.

{results["parameters"]:,} parameters; {args.max_steps:,} steps of {args.batch_size} examples took
{results["train_seconds"] / 60:.1f} minutes ({results["device"]}, {threads}).

## Accuracy

Share of problems whose whole answer is right, by greedy decoding; {args.eval_examples:,} problems per column, one
seed. No evaluation row, nor a rotation of one, was ever an initial row in training, which {drawn}.

{accuracy_table(results["accuracy"])}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
problem = "{results["example"]}"
inputs = tokenizer(problem, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens={results["answer_tokens"]}, sleep_passes=4)
print(tokenizer.decode(output[0]))
```

## Reproduce

```
{results["command"]}
```

with torch {results["versions"]["torch"]} and transformers {results["versions"]["transformers"]}. `results.json` holds
losses, settings and all numbers.
"""


def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    set_seed(args.seed)
    tokenizer = build_tokenizer()
    config = SleepConfig.from_preset(args.preset, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    if config.window_size != window_size(args.layout, args.width):
        raise ValueError(
            f"preset {args.preset!r} has windows of {config.window_size} tokens, the task's rows fill "
            f"{window_size(args.layout, args.width)}: choose --width and --layout accordingly"
        )
    model = SleepForCausalLM(config)

    start = time.perf_counter()
    trainer = train(args, model)
    train_seconds = time.perf_counter() - start
    model.config.use_cache = True  # Trainer turned it off for training
    model.config.use_cache = True  # Trainer turned it off for training
    if not trainer.is_world_process_zero():
        return

    example = make_examples([0], layout=args.layout, width=args.width, t_max=args.max_rollout, split="eval")
    prompt, answer = np.split(example["input_ids"][0], [answer_start(args.layout, args.width)])
    results = {
        "preset": args.preset,
        "command": command_line(args),
        "accuracy": evaluate(args, model),
        "example": tokenizer.decode(prompt),
        "answer_tokens": len(answer),
        "train_seconds": round(train_seconds, 1),
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": {name: value for name, value in config.to_dict().items() if value is not None},
        "settings": {name: value for name, value in vars(args).items() if name not in ("output", "resume")},
        "losses": [[log["step"], round(log["loss"], 5)] for log in trainer.state.log_history if "loss" in log],
    }
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.output / "README.md").write_text(model_card(args, results), encoding="utf-8")
    print(f"\n{accuracy_table(results['accuracy'])}\n\nsaved to {args.output}")


if __name__ == "__main__":
    main()
