"""Train one variant of a recipe and evaluate it by depth and by number of passes N.

    python -m examples.experiments.train rule110-mini --variant "any N" --seed 0 --output runs/rule110-mini

What is notable:
- the recipe is data (`recipes/`); `--set training.max_steps=100` overrides any of it
- N is drawn anew for every step, and a curriculum may raise the depth of the problems and the largest N; phases draw
  it differently, at learning rates of their own
- batch, depth and N of a step are functions of (seed, step): all ranks agree, and a resumed run is the same run
- the same command resumes an interrupted run, and does nothing to a finished one; `--minutes` ends a slice early, with
  a checkpoint
- on one device, or on many with `accelerate launch` (DDP); every device writes its examples in processes beside it
- it leaves behind the model, its tokenizer, a card and `results.json`, one line of the evidence (see `report.py`)
"""

import argparse
import contextlib
import functools
import gc
import json
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from filelock import FileLock, Timeout
from safetensors.torch import load_model
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, get_scheduler, set_seed

from modeling_sleep import Sleep, SleepForCausalLM
from modeling_sleep.hub_upload.card import table, write_card

from .controls import AmnesiacForCausalLM
from .evaluation import evaluate_by_depth
from .flops import training_flops
from .muon import MuonAdamW
from .plot_results import plot_results
from .progress import use_loss_bar
from .recipe import Recipe, Training, has_results, load_recipe, ramp, train_command, what_differs, write_at_once
from .resume import last_checkpoint, remove_torn_checkpoints, step_of
from .tasks import TaskStream
from .tasks.task import runs


class SleepTrainer(Trainer):
    """A [`Trainer`] that draws the number of passes of every training step; evaluation keeps to the config's."""

    def __init__(self, *args, passes_at: Callable[[int, int], int | Sleep], **kwargs):
        super().__init__(*args, **kwargs)
        self.passes_at = passes_at  # of a step and a seed

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            inputs = {**inputs, "sleep_passes": self.passes_at(self.state.global_step, self.args.seed)}
        return super().compute_loss(model, inputs, *args, **kwargs)


class StopAfter(TrainerCallback):
    """End a slice of a run at a time of `time.monotonic`, with a checkpoint from which the next slice goes on."""

    def __init__(self, deadline: float):
        self.deadline = deadline

    def on_step_end(self, args, state, control, **kwargs):
        is_late = torch.tensor(float(time.monotonic() > self.deadline), device=args.device)
        # Clocks differ, and a process that stops by itself would leave the others waiting.
        if reduce(is_late) > 0 and state.global_step < state.max_steps:
            control.should_log = control.should_save = control.should_training_stop = True


class Finite(TrainerCallback):
    """End a run whose loss is no number any more, before the next checkpoint overwrites the last good one."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(
                f"The loss is {logs['loss']} at step {state.global_step:,}: a step before it gave gradients that are "
                "no numbers. The last checkpoint is whole. Lower the learning rates, or ask for fewer passes."
            )


class SecondsTrained(TrainerCallback):
    """Keep the seconds of training in the trainer's state, over all slices of a run."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()
        self.before = next((log["seconds"] for log in reversed(state.log_history) if "seconds" in log), 0.0)

    def on_log(self, args, state, control, **kwargs):
        state.log_history[-1]["seconds"] = round(self.before + time.monotonic() - self.began, 1)


def build_model(recipe: Recipe, seed: int) -> SleepForCausalLM:
    """The untrained model of a recipe."""
    set_seed(seed)
    return (AmnesiacForCausalLM if recipe.training.amnesia else SleepForCausalLM)(recipe.config)


def build_optimizer(model: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer that a recipe asks for."""
    if training.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), training.lr_adamw, weight_decay=training.weight_decay)
    return MuonAdamW(
        model,
        lr_muon=training.lr_muon,
        lr_adamw=training.lr_adamw,
        weight_decay=training.weight_decay,
        adjust_lr_fn=training.adjust_lr,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    """The learning rates of every step: those of the schedule, scaled as the phases say."""
    decay = {"num_decay_steps": round(training.lr_decay * training.max_steps)} if training.lr_decay else None
    scheduler = get_scheduler(
        training.lr_schedule, optimizer, training.warmup_steps, training.max_steps, scheduler_specific_kwargs=decay
    )
    if not training.phases:
        return scheduler
    schedule = scheduler.lr_lambdas[0]  # the same for all parameters
    return LambdaLR(optimizer, lambda step: schedule(step) * training.phase_at(step).lr_scale)


def train(
    recipe: Recipe,
    model: SleepForCausalLM,
    output: Path,
    seed: int,
    *,
    cpu: bool = False,
    save_steps: int | None = None,
    deadline: float | None = None,
    workers: int = 0,
    report_to: str = "none",
) -> Trainer:
    """Train the model in place, from its last checkpoint if there is one, and return the trainer with its history."""
    training, task = recipe.training, recipe.task
    checkpoint = last_checkpoint(output)
    begin = step_of(checkpoint) if checkpoint else 0
    bf16 = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    training_args = TrainingArguments(
        output_dir=str(output),
        max_steps=training.max_steps,
        max_grad_norm=training.max_grad_norm,
        logging_steps=max(1, training.max_steps // 100),
        logging_nan_inf_filter=False,  # which would log a loss of 0 in the place of NaN
        save_strategy="steps",
        save_steps=save_steps or max(1, training.max_steps // 10),
        save_total_limit=1,
        report_to=report_to,
        disable_tqdm=False,
        seed=seed,
        use_cpu=cpu,
        bf16=bf16,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=workers,
        ignore_data_skip=True,  # a stream that goes on need not write again what was seen
        ddp_find_unused_parameters=False,  # every pass uses all of them
        accelerator_config={"dispatch_batches": False},  # every process writes its own examples
    )
    check_devices(training_args, training.batch_size)
    training_args.per_device_train_batch_size = training.batch_size // training_args.world_size
    depth_at = functools.partial(
        ramp,
        max_steps=training.max_steps,
        share=training.depth_ramp,
        maximum=task.max_depth,
        minimum=task.shallowest,
    )
    asked_at = functools.partial(training.deepest_asked, seed=seed)
    stream = TaskStream(task, training.batch_size, depth_at, asked_at, start=begin, seed=seed, split="train")
    optimizer = build_optimizer(model, training)
    trainer = SleepTrainer(
        model,
        training_args,
        train_dataset=stream,
        data_collator=task.collator(),
        optimizers=(optimizer, build_scheduler(optimizer, training)),
        callbacks=[Finite(), SecondsTrained(), *([StopAfter(deadline)] if deadline is not None else [])],
        passes_at=functools.partial(training.sleep_at, max_depth=task.max_depth),
    )
    use_loss_bar(trainer)
    if begin < training.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    else:  # interrupted behind its last step
        load_model(model, Path(checkpoint) / "model.safetensors")
        trainer.state = TrainerState.load_from_json(Path(checkpoint) / "trainer_state.json")
    model.config.use_cache = True  # Trainer turned it off for training
    return trainer


def check_devices(training_args: TrainingArguments, batch_size: int):
    """
    Refuse what a recipe cannot be trained on, before anything is done.

    Raises
    ------
    ValueError
        If parameters would be sharded, several GPUs are left to one process, or the batch cannot be shared evenly.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise ValueError(
                f"Recipes are trained on one device, or on many with the whole model on each: their Muon needs whole "
                f"matrices, and {name} shards them. Use configuration/presets/ddp.yaml; examples/train_accelerate.py "
                "shards."
            )
    if training_args.n_gpu > 1:
        raise ValueError(
            f"{training_args.n_gpu} GPUs are visible to one process. Start one for each (accelerate launch "
            "--config_file configuration/presets/ddp.yaml --num_processes ...), or choose one (CUDA_VISIBLE_DEVICES)."
        )
    if batch_size % training_args.world_size:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared evenly by {training_args.world_size} processes: change their "
            "number or training.batch_size"
        )


def claim_folder(output: Path, run: dict) -> dict:
    """
    Claim an output folder for a run, so that no other run goes on from its checkpoints or overwrites its results.

    Parameters
    ----------
    output : Path
    run : dict
        What makes the run what it is. How it is evaluated does not: that may be changed until it has been.

    Returns
    -------
    dict
        `run`, with what earlier slices of it have noted besides.

    Raises
    ------
    ValueError
        If it has checkpoints or results of a run with other settings, or results of another evaluation.
    """
    claim = output / "run.json"
    theirs = json.loads(claim.read_text(encoding="utf-8")) if claim.exists() else {}
    changed = what_differs(run, theirs)
    finished = (output / "results.json").exists()
    if finished and not changed:
        raise ValueError(f"{output} has results of another evaluation of this run: ask it more with evaluate_run.py")
    if changed and (finished or last_checkpoint(output)):
        raise ValueError(
            f"{output} has {'results' if finished else 'checkpoints'} of another run (what differs: "
            f"{', '.join(changed)}): give another --output, or remove the folder"
        )
    return run if changed else theirs


def commit() -> str:
    """The commit of this code, marked if files differ from it; empty outside a repository."""
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def tokens_per_example(recipe: Recipe, examples: int = 100) -> float:
    """Tokens of a training example, padding apart, at full depth."""
    batch = recipe.task.collator()(recipe.task.examples(range(examples)))
    return batch["attention_mask"].sum().item() / examples


def command_line(recipe: Recipe, overrides: Sequence[str], seed: int) -> str:
    """The command that repeats this run."""
    command = train_command(recipe.preset, recipe.variant, seed, f"runs/{recipe.preset}", overrides)
    return shlex.join(["python", *command])


def loss_curve(log_history: Sequence[dict], logging_steps: int) -> list[list]:
    """
    Steps and the mean loss since the one before, at the steps that every seed has.

    What was logged where a slice of the run ended is counted into the next of these means.
    """
    curve, last, begin, total = [], 0, 0, 0.0
    for log in log_history:
        if "loss" in log:
            total += log["loss"] * (log["step"] - last)
            last = log["step"]
            if last % logging_steps == 0:
                curve.append([last, round(total / (last - begin), 5)])
                begin, total = last, 0.0
    return curve


def first_question(recipe: Recipe, seed: int) -> dict:
    """A problem as text, up to its first answer."""
    example = recipe.task.examples([0], split="eval", seed=seed, depth=recipe.evaluation.depths[0])[0]
    begin, end = next(runs(example["answer_mask"]))
    prompt = example["context_ids"] + example["question_ids"][:begin]
    return {"problem": recipe.task.tokenizer().decode(prompt), "answer_tokens": end - begin}


def main(argv: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description="Train one variant of a recipe and evaluate it.")
    parser.add_argument("preset", help="a recipe in examples/experiments/recipes/, by name")
    parser.add_argument("--variant", help="one of the recipe's variants; without it, the recipe as it stands")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and passes")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, model and results")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument("--minutes", type=float, help="stop after so long with a checkpoint; the same command goes on")
    parser.add_argument("--save-steps", type=int, help="steps between checkpoints (default: a tenth of the run)")
    parser.add_argument(
        "--report-to", default="none", help="tensorboard, or trackio, wandb, ... if installed, as in TrainingArguments"
    )
    parser.add_argument("--cpu", action="store_true", help="leave accelerators alone")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of torch; more than one seldom helps a small model"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that write examples, per device (default: none on a CPU; beside a GPU, up to 8)",
    )
    parser.add_argument(
        "--sustained-tflops", type=float, default=50.0, help="what to reckon the expected GPU hours with"
    )
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()  # of every single save

    recipe = load_recipe(args.preset, args.variant, args.overrides)
    run = {"recipe": args.preset, "seed": args.seed, **recipe.settings}
    is_main_process = PartialState(cpu=args.cpu).is_main_process
    if has_results(args.output, run):
        if is_main_process:
            print(f"finished already: {args.output / 'results.json'}")
        return
    args.output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(args.output / "run.lock", timeout=0) if is_main_process else contextlib.nullcontext()
    try:
        with lock:
            _run(args, recipe, run, deadline, is_main_process)
    except Timeout:
        parser.exit(1, f"another process is at the run in {args.output}: wait for it, or give another --output\n")
    gc.collect()  # of the trainer, whose model must not be the last to hold the group of the processes
    PartialState().destroy_process_group()  # or else a process may abort while it ends, as its threads still listen


def _run(args: argparse.Namespace, recipe: Recipe, run: dict, deadline: float | None, is_main_process: bool):
    """Train until the end or the deadline; at the end, evaluate and save."""
    training, evaluation = recipe.training, recipe.evaluation
    say = print if is_main_process else lambda text: None
    model = build_model(recipe, args.seed)
    if is_main_process:
        known = claim_folder(args.output, {name: run[name] for name in run if name != "evaluation"})
        if "flops" not in known:
            known["flops"] = training_flops(model, recipe.task, training)
        remove_torn_checkpoints(args.output)
        # Every slice with its code. Now, as it may be another one by the time the run ends.
        known["commits"] = list(dict.fromkeys([*known.get("commits", []), commit()]))
        write_at_once(args.output / "run.json", json.dumps(known, indent=1) + "\n")
        flops, tokens = known["flops"], training.max_steps * training.batch_size * tokens_per_example(recipe)
        hours = flops / (args.sustained_tflops * 1e12) / 3600
        name = f"{args.preset}, variant {args.variant!r}" if args.variant else args.preset
        say(
            f"{name}, seed {args.seed}: {recipe.description}\n"
            f"{model.num_parameters():,} parameters, {training.max_steps:,} steps, {tokens:,.0f} tokens, {flops:.2e} "
            f"FLOPs: {hours:.2g} GPU hours at {args.sustained_tflops:g} sustained TFLOP/s"
        )

    workers = args.workers
    if workers is None:
        has_gpu = torch.cuda.is_available() and not args.cpu
        workers = min(8, os.cpu_count() // PartialState().num_processes) if has_gpu else 0
    trainer = train(
        recipe,
        model,
        args.output,
        args.seed,
        cpu=args.cpu,
        save_steps=args.save_steps,
        deadline=deadline,
        workers=workers,
        report_to=args.report_to,
    )
    if trainer.state.global_step < training.max_steps:
        say(f"stopped at step {trainer.state.global_step:,} of {training.max_steps:,}; the same command goes on")
        return
    counts = evaluate_by_depth(
        model,
        recipe.task,
        passes=evaluation.passes,
        depths=evaluation.depths,
        num_examples=evaluation.num_examples,
        batch_size=evaluation.batch_size,
    )
    if not is_main_process:
        return

    results = {
        "recipe": args.preset,
        "variant": args.variant,
        "seed": args.seed,
        "description": recipe.description,
        "command": command_line(recipe, args.overrides, args.seed),
        "commit": ", ".join(known["commits"]),
        "depth_name": recipe.task.depth_name,
        **recipe.settings,
        "config": {name: value for name, value in recipe.config.to_dict().items() if value is not None},
        "parameters": model.num_parameters(),
        "tokens": round(tokens),
        "flops": flops,
        "seconds": trainer.state.log_history[-1].get("seconds", 0.0),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        "threads": torch.get_num_threads(),
        "processes": trainer.args.world_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "example": first_question(recipe, args.seed),
        "counts": counts,
        "losses": loss_curve(trainer.state.log_history, trainer.args.logging_steps),
    }
    if not training.amnesia:  # elsewhere it would load as a model with a memory
        model.save_pretrained(args.output)
        recipe.task.tokenizer().save_pretrained(args.output)
    write_at_once(args.output / "results.json", json.dumps(results, indent=1) + "\n")
    if not training.amnesia:
        plot_results(results, args.output / "results.png")
        write_card(args.output)
    for checkpoint in args.output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    say(f"\n{table(counts, recipe.task.depth_name, training.passes)}\n\nsaved to {args.output}")


if __name__ == "__main__":
    main()
