"""Train a model that sleeps on text of your own with `Trainer`, texts of many windows: minutes on a CPU.

    python examples/finetune_trainer.py                                       # a new small model, on our own docs
    python examples/finetune_trainer.py --model FOLDER --text a.txt b.txt     # one you have, on what you have
    python examples/finetune_trainer.py --resume                              # goes on from the last checkpoint

Prints the perplexity of held-out text twice: read as a whole, with a sleep after every window, and window by window
with nothing remembered. The difference is what the fast weights are worth.
"""

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_sleep import SleepCallback, SleepConfig, SleepForCausalLM


REPOSITORY = Path(__file__).parents[1]
OUR_TEXT = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/*.md"))]
OUR_TEXT += sorted(REPOSITORY.glob("modeling_sleep/*.py"))


def new_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair encoding of bytes, learned from the texts; anything can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def rows_of(texts: Sequence[str], tokenizer, length: int) -> datasets.Dataset:
    """Each text cut into rows of `length` tokens. No row has two texts: one would be remembered for the other."""
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        rows += [{"input_ids": ids[i : i + length]} for i in range(0, len(ids), length)]
    return datasets.Dataset.from_list(rows)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model that sleeps on text of your own.")
    parser.add_argument("--text", type=Path, nargs="+", default=OUR_TEXT, help="files of plain text")
    parser.add_argument("--model", type=Path, help="a saved model that sleeps, with its tokenizer; default: a new one")
    parser.add_argument("--output", type=Path, default=Path("outputs/finetune-trainer"), help="folder of the model")
    parser.add_argument("--passes", type=int, default=2, help="N, all passes over a window")
    parser.add_argument("--windows", type=int, default=8, help="windows per row")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="on a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --output")
    args = parser.parse_args(argv)
    args.checkpoint = None
    if args.resume:
        # `Trainer` writes its state last: without one, a checkpoint was cut off while it was saved.
        whole = [state.parent for state in args.output.glob("checkpoint-*/trainer_state.json")]
        args.checkpoint = max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)
    if args.resume and args.checkpoint is None:
        parser.error(f"--resume: there is no checkpoint in {args.output} that was saved to its end")
    return args


def main(argv: Sequence[str] | None = None):
    args = parse_args(argv)
    if args.resume and PartialState().is_main_process:
        for path in args.output.glob("checkpoint-*"):
            if not (path / "trainer_state.json").exists():  # `Trainer` would keep it for the newest
                shutil.rmtree(path)
    set_seed(args.seed)
    texts = [path.read_text(encoding="utf-8") for path in args.text]
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
        model.config.sleep_passes = args.passes
    else:
        # The one that the checkpoint was trained with, as the texts may have changed.
        tokenizer = (
            AutoTokenizer.from_pretrained(args.output) if args.resume else new_tokenizer(texts, vocab_size=1024)
        )
        config = SleepConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=4, window_size=32, sleep_passes=args.passes,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model = SleepForCausalLM(config)
    model.config.skip_logits = True  # in training nobody looks at the logits of whole texts: spare their memory
    window = model.config.window_size
    rows = rows_of(texts, tokenizer, args.windows * window).train_test_split(test_size=0.1, seed=args.seed)
    apart = datasets.Dataset.from_list(
        [{"input_ids": ids[i : i + window]} for ids in rows["test"]["input_ids"] for i in range(0, len(ids), window)]
    )
    arguments = TrainingArguments(
        output_dir=str(args.output), max_steps=args.steps, per_device_train_batch_size=args.batch_size,
        learning_rate=3e-3, lr_scheduler_type="cosine", warmup_steps=args.steps // 10, weight_decay=0.1,
        logging_steps=max(1, args.steps // 10), save_steps=max(1, args.steps // 3), save_total_limit=1,
        bf16=args.bf16, prediction_loss_only=True, report_to="none", seed=args.seed, dataloader_pin_memory=args.bf16,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, train_dataset=rows["train"], data_collator=collator)
    trainer.add_callback(SleepCallback(trainer))
    tokenizer.save_pretrained(args.output)
    trainer.train(resume_from_checkpoint=args.checkpoint)
    as_a_whole, window_by_window = (math.exp(trainer.evaluate(data)["eval_loss"]) for data in (rows["test"], apart))
    model.config.use_cache, model.config.skip_logits = True, False  # Trainer turned the cache off
    trainer.save_model(args.output)
    print(f"\nperplexity of held-out text, rows of up to {args.windows} windows of {window} tokens, N = {args.passes}")
    print(f"  read as a whole    {as_a_whole:8.2f}\n  window by window   {window_by_window:8.2f}")
    beginning = tokenizer("A model that sleeps", return_tensors="pt").to(model.device)
    text = model.generate(**beginning, max_new_tokens=2 * window, do_sample=False)
    print(f"\n{tokenizer.decode(text[0])!r}\n\nsaved to {args.output}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # for a model this small, threads wait for each other longer than they save
    main()
