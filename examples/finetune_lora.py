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

import torch
from evaluation import evaluate_by_depth
from peft import LoraConfig, PeftModel, get_peft_model
from progress import use_loss_bar
from tasks import Rule110, TaskStream
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from modeling_sleep import memory_target_modules


CHECKPOINT = Path(__file__).parent / "checkpoints" / "rule110-demo"


def train(model, task, args, batch_size: int = 64):
    """As any other model is trained: the collator fills windows, and between them the model sleeps by itself."""
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(args.output),
            max_steps=args.steps,
            per_device_train_batch_size=batch_size,
            learning_rate=3e-3,
            warmup_steps=10,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            dataloader_pin_memory=False,
            remove_unused_columns=False,  # the collator needs them
            seed=args.seed,
        ),
        data_collator=task.collator(),
        train_dataset=TaskStream(task, batch_size, seed=args.seed),
    )
    use_loss_bar(trainer)
    trainer.train()
    model.config.use_cache = True  # Trainer turns it off, also for whoever loads what is saved


def evaluate(model, task, args) -> str:
    """The share of rows that are right as a whole, in % by t, as a line of a table."""
    depths = range(1, task.max_depth + 1)
    options = dict(passes=[args.passes], depths=depths, num_examples=args.examples, seed=args.seed)
    return "".join(f"{100 * row['exact_match']:8.1f}" for row in evaluate_by_depth(model, task, **options))


@torch.no_grad()
def answer(model, task, args) -> torch.Tensor:  # logits, (problems, tokens, vocabulary)
    batch = task.collator()(task.examples(range(100), split="eval", seed=args.seed))
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    return model.eval()(**inputs, sleep_passes=args.passes).logits


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
    parser.add_argument("--examples", type=int, default=500, help="problems per t in the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT still asks by that name
    torch.set_num_threads(1)  # for a model this small, threads wait for each other longer than they save
    set_seed(args.seed)
    base = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    base.config.sleep_passes = args.passes
    targets = memory_target_modules(base.config) if args.memory_only else "all-linear"
    task = Rule110(width=base.config.window_size - 1, boundary="zero")
    before = evaluate(base, task, args)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=16, lora_alpha=32))
    added, total = model.get_nb_trainable_parameters()
    print(f"{args.model.name}: {total - added:,} parameters stay as they are, LoRA adds {added:,}")
    train(model, task, args)
    after = evaluate(model, task, args)

    print(f"\nwhole row right, in % of {args.examples} problems, N = {args.passes}")
    print(" " * 8 + "".join(f"{f't = {t}':>8}" for t in range(1, task.max_depth + 1)))
    print(f"before  {before}\nafter   {after}\n")
    expected = answer(model, task, args)

    model.save_pretrained(args.output)
    fresh = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    fresh = PeftModel.from_pretrained(fresh.to(model.device), args.output)
    check(f"adapter in {args.output}, loaded on a fresh base", answer(fresh, task, args), expected)

    merged = model.merge_and_unload()
    merged.save_pretrained(args.output / "merged")
    AutoTokenizer.from_pretrained(args.model, trust_remote_code=True).save_pretrained(args.output / "merged")
    check(f"merged model in {args.output / 'merged'}", answer(merged, task, args), expected)


if __name__ == "__main__":
    main()
