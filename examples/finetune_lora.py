"""Fine-tune a model that sleeps with LoRA and a plain `Trainer`: a minute on a CPU.

    python examples/finetune_lora.py                  # LoRA on all linear layers
    python examples/finetune_lora.py --memory-only    # on those that write and read the fast weights

The shipped checkpoint has learned Rule 110 on rows that are rings. An adapter teaches it rows between zeros. It is
saved, loaded on a fresh base, and merged into a model that needs neither PEFT nor this repository.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from modeling_sleep import memory_target_modules


CHECKPOINT = Path(__file__).parent / "checkpoints" / "rule110-demo"
STEPS = range(1, 7)  # t


def evolve(rows: np.ndarray, t: int) -> np.ndarray:
    """Rows of cells between zeros, (n, width), after t steps of Rule 110."""
    for _ in range(t):
        padded = np.pad(rows, ((0, 0), (1, 1)))
        left, right = padded[:, :-2], padded[:, 2:]
        rows = (rows | right) & ~(left & rows & right)
    return rows


def problems(tokenizer, rows: np.ndarray, t: int) -> list[dict[str, torch.Tensor]]:
    """A window with t and a row, and a window with the query and the row after t steps, which alone has labels."""
    cells = [[" ".join(map(str, row)) for row in both] for both in (rows, evolve(rows, t))]
    texts = [f"t={t} {before} <query> {after}" for before, after in zip(*cells)]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]  # (n, 2 * L)
    labels = ids.clone()
    labels[:, : rows.shape[1] + 2] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]


def train(model, data: list[dict], args):
    """As any other model is trained: between two windows it sleeps by itself."""
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(args.output),
            max_steps=args.steps,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=10,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            dataloader_pin_memory=False,
            seed=args.seed,
        ),
        train_dataset=data,
    )
    trainer.train()
    model.config.use_cache = True  # Trainer turns it off, also for whoever loads what is saved


@torch.no_grad()
def answer(model, data: list[dict], passes: int) -> torch.Tensor:  # logits, (problems, tokens, vocabulary)
    ids = torch.stack([row["input_ids"] for row in data]).to(model.device)
    return model.eval()(ids, sleep_passes=passes).logits


def evaluate(model, questions: dict[int, list[dict]], passes: int) -> str:
    """The share of rows that are right as a whole, in % by t, as a line of a table."""
    line = ""
    for data in questions.values():
        labels = torch.stack([row["labels"] for row in data])[:, 1:]  # each is predicted one token before
        predicted = answer(model, data, passes).argmax(-1)[:, :-1].cpu()
        line += f"{100 * (predicted == labels).where(labels >= 0, True).all(1).float().mean().item():8.1f}"
    return line


def check(what: str, found: torch.Tensor, expected: torch.Tensor):
    difference = (found - expected).abs().max().item()
    print(f"{what}: {'the same logits' if difference == 0 else f'logits differ by at most {difference:.0e}'}")
    if not difference < 1e-2:
        sys.exit("They should not.")


def main():
    parser = argparse.ArgumentParser(description="Fine-tune a model that sleeps with LoRA.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="trained on the Rule 110 task")
    parser.add_argument("--output", type=Path, default=Path("outputs/finetune-lora"), help="folder for the adapter")
    parser.add_argument("--memory-only", action="store_true", help="LoRA on the Gated DeltaNet layers alone")
    parser.add_argument("--passes", type=int, default=2, help="N, in training and evaluation")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--examples", type=int, default=500, help="problems per t in the evaluation, 1,024 at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT still asks by that name
    torch.set_num_threads(1)  # for a model this small, threads wait for each other longer than they save
    set_seed(args.seed)
    base = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    base.config.sleep_passes = args.passes
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    targets = memory_target_modules(base.config) if args.memory_only else "all-linear"
    width, rng = base.config.window_size - 1, np.random.default_rng(args.seed)
    rows = rng.permutation(2**width)[:, None] >> np.arange(width) & 1  # all rows there are, (2**width, width)
    asked, learned = rows[: min(args.examples, len(rows) // 4)], rows[len(rows) // 4 :]  # no row is in both
    questions = {t: problems(tokenizer, asked, t) for t in STEPS}
    before = evaluate(base, questions, args.passes)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=16, lora_alpha=32))
    added, total = model.get_nb_trainable_parameters()
    print(f"{args.model.name}: {total - added:,} parameters stay as they are, LoRA adds {added:,}")
    train(model, [problem for t in STEPS for problem in problems(tokenizer, learned, t)], args)
    after = evaluate(model, questions, args.passes)

    print(f"\nwhole row right, in % of {len(asked)} problems, N = {args.passes}")
    print(" " * 8 + "".join(f"{f't = {t}':>8}" for t in STEPS))
    print(f"before  {before}\nafter   {after}\n")
    expected = answer(model, questions[4], args.passes)

    model.save_pretrained(args.output)
    fresh = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    fresh = PeftModel.from_pretrained(fresh.to(model.device), args.output)
    check(f"adapter in {args.output}, loaded on a fresh base", answer(fresh, questions[4], args.passes), expected)

    merged = model.merge_and_unload()
    merged.save_pretrained(args.output / "merged")
    tokenizer.save_pretrained(args.output / "merged")
    check(f"merged model in {args.output / 'merged'}", answer(merged, questions[4], args.passes), expected)


if __name__ == "__main__":
    main()
