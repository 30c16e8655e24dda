"""Train on one device or on many, with Accelerate, in a loop that you can see and change.

    python examples/train_accelerate.py --output runs/accelerate
    accelerate launch --config_file configuration/presets/ddp.yaml examples/train_accelerate.py --output runs/ddp
    torchrun --nproc_per_node 2 examples/train_accelerate.py --cpu --output runs/ddp    # without any GPU

`ddp.yaml`, `fsdp2.yaml` and `deepspeed_zero3.yaml` are there. Four facts are told in the first window of a text and
asked for after one to four sleeps. Texts thus have different numbers of windows: where parameters are shared among
processes, the model keeps these in step.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from modeling_sleep import SleepConfig, SleepForCausalLM


PAD, ASK, ANSWER = 0, 1, 2
KEYS, VALUES, FILLERS, VOCABULARY = 3, 35, 51, 67  # where each kind of token begins, and the end
WINDOW, FACTS, MAX_WINDOWS = 16, 4, 4
PASSES = (1, 2, 4)  # N of a step is one of these


def make_text(rng: np.random.Generator, windows: int) -> dict[str, torch.Tensor]:
    """So many windows, facts (a key and its value) in the first of them, then questions; values there have labels."""
    keys, values = rng.permutation(np.arange(KEYS, VALUES))[:FACTS], rng.integers(VALUES, FILLERS, FACTS)
    context = rng.integers(FILLERS, VOCABULARY, windows * WINDOW)
    places = 2 * rng.permutation(WINDOW // 2)[:FACTS]
    context[places], context[places + 1] = keys, values
    asked = rng.permutation(FACTS)
    questions = np.full((FACTS, 4), [ASK, 0, ANSWER, 0])
    questions[:, 1], questions[:, 3] = keys[asked], values[asked]
    ids = torch.from_numpy(np.concatenate([context, questions.ravel()]))
    labels = torch.full_like(ids, -100)
    labels[windows * WINDOW + 3 :: 4] = ids[windows * WINDOW + 3 :: 4]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def collate(texts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Padded on the left, (batch, tokens) each."""
    padding = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    return {
        name: pad_sequence([text[name] for text in texts], True, value, padding_side="left")
        for name, value in padding.items()
    }


def passes_at(step: int, seed: int) -> int:
    """N of a step: one for all processes, as its number decides and no process draws for itself."""
    return int(np.random.default_rng([seed, step]).choice(PASSES))


@torch.no_grad()
def evaluate(model, examples: int):
    """Print how many values are right after so many sleeps, for every N."""
    rng = np.random.default_rng(2**31)  # a seed of its own: other texts than those of the training
    print("\nvalues right, in %\n" + " " * 8 + "".join(f"{f'{n} sleeps':>10}" for n in range(1, MAX_WINDOWS + 1)))
    batches = [collate([make_text(rng, n) for _ in range(examples)]) for n in range(1, MAX_WINDOWS + 1)]
    for n in PASSES:
        line = f"N = {n:<4}"
        for batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels = batch.pop("labels")[:, 1:]  # each is predicted one token before
            predicted = model(**batch, sleep_passes=n).logits.argmax(-1)[:, :-1]
            line += f"{100 * (predicted == labels)[labels >= 0].float().mean().item():10.1f}"
        print(line)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model that sleeps with Accelerate.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64, help="texts per step, over all processes")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=100, help="texts per number of sleeps in the evaluation")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None):
    args = parse_args(argv)
    accelerator = Accelerator(cpu=args.cpu)
    if args.batch_size % accelerator.num_processes:
        raise SystemExit(f"--batch-size {args.batch_size} cannot be shared by {accelerator.num_processes} processes")
    accelerator.print(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    set_seed(args.seed)
    config = SleepConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, window_size=WINDOW,
        sleep_passes=max(PASSES), pad_token_id=PAD,
        skip_logits=True,  # the loss needs no logits of the whole text in memory
    )  # fmt: skip
    model = SleepForCausalLM(config)
    rng = np.random.default_rng(args.seed)
    data = [make_text(rng, rng.integers(1, MAX_WINDOWS + 1)) for _ in range(args.steps * args.batch_size)]
    share = args.batch_size // accelerator.num_processes
    loader = DataLoader(data, batch_size=share, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = get_scheduler("cosine", optimizer, args.steps // 10, args.steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    model.train()
    bar = tqdm(loader, total=args.steps, unit="step", disable=not accelerator.is_main_process)
    for step, batch in enumerate(bar):
        # The mean over the labels of all processes, which have different numbers of them. DDP and FSDP average the
        # gradients over the processes, hence the factor.
        labels = accelerator.reduce((batch["labels"][:, 1:] != -100).sum(), reduction="sum")
        n = passes_at(step, args.seed)
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
        trained = SleepForCausalLM(config)
        trained.load_state_dict(weights)
        trained.config.skip_logits = False
        trained.save_pretrained(args.output)
        evaluate(SleepForCausalLM.from_pretrained(args.output).to(accelerator.device), args.examples)
        print(f"\nsaved to {args.output}")
    # The wrapped model first: where it is the last to hold the processes' group, ending can wait for itself forever.
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    main()
