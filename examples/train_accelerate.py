"""Train on one device or on many, with Accelerate, in a loop that you can see and change.

    python examples/train_accelerate.py --output runs/accelerate
    accelerate launch --config_file configuration/presets/ddp.yaml examples/train_accelerate.py --output runs/ddp
    torchrun --nproc_per_node 2 examples/train_accelerate.py --cpu --output runs/ddp    # without any GPU

`ddp.yaml`, `fsdp2.yaml` and `deepspeed_zero3.yaml` are there. The facts of the recall task lie up to four sleeps back,
and texts have one to four windows: where parameters are shared among processes, the model keeps these in step.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from evaluation import evaluate_by_depth
from recipe import load_recipe
from tasks.task import IGNORE, make_dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from train import passes_at
from transformers import get_scheduler

from modeling_sleep import SleepForCausalLM
from modeling_sleep.hub_upload.card import table


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model that sleeps with Accelerate.")
    parser.add_argument("--preset", default="recall-mini", help="whose model and task; see configuration/presets/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64, help="texts per step, over all processes")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=100, help="problems per depth in the evaluation")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None):
    args = parse_args(argv)
    accelerator = Accelerator(cpu=args.cpu)
    if args.batch_size % accelerator.num_processes:
        raise SystemExit(f"--batch-size {args.batch_size} cannot be shared by {accelerator.num_processes} processes")
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    set_seed(args.seed)
    recipe = load_recipe(args.preset)
    task, passes = recipe.task, recipe.training.passes
    # The loss needs no logits of the whole text in memory; see `skip_logits` in the config.
    recipe.config.skip_logits = True
    model = SleepForCausalLM(recipe.config)
    data = make_dataset(task, args.steps * args.batch_size, split="train", seed=args.seed)
    share = args.batch_size // accelerator.num_processes
    loader = DataLoader(data, batch_size=share, collate_fn=task.collator())
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = get_scheduler("cosine", optimizer, args.steps // 10, args.steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    model.train()
    bar = tqdm(loader, total=args.steps, unit="step", disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar):
        # The mean over the labels of all processes, which have different numbers of them. DDP and FSDP average the
        # gradients over the processes, hence the factor.
        labels = accelerator.reduce((batch["labels"][:, 1:] != IGNORE).sum(), reduction="sum")
        # One N for all processes and a step: drawn by its number, not by each process for itself.
        n = passes_at(step, args.seed, passes)
        loss = model(**batch, num_items_in_batch=labels, sleep_passes=n, use_cache=False).loss
        accelerator.backward(loss * accelerator.num_processes)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps - 1:
            bar.set_postfix_str(f"N = {n}, loss {accelerator.reduce(loss.detach(), reduction='sum').item():.4f}")
    bar.close()

    # Whole, whatever shards it was trained in.
    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        trained = SleepForCausalLM(recipe.config)
        trained.load_state_dict(weights)
        trained.config.skip_logits = False
        trained.save_pretrained(args.output)
        task.tokenizer().save_pretrained(args.output)
    accelerator.wait_for_everyone()

    trained = SleepForCausalLM.from_pretrained(args.output).to(accelerator.device)
    settings = recipe.evaluation
    results = evaluate_by_depth(
        trained, task, passes=settings.passes, depths=settings.depths, num_examples=args.examples
    )
    if accelerator.is_main_process:
        print(f"\n{table(results, task.depth_name)}\n\nsaved to {args.output}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
