"""Word problems by their number of operations, for a pretrained model: the question stands behind the context.

    python -m examples.yardsticks.gsm FOLDER --original ORIGINAL --operations 1 2 4 --rows gsm.jsonl

In the manner of GSM-Infinite (arXiv 2502.05252), with the generator of examples/experiments/tasks/gsm.py: every
sentence defines one quantity, the sentences are shuffled, the answer is an integer, and there is no chain of thought.

What is notable:
- a row is one number of operations at one length of context for one reader (readers.py); rows that are in the file are
  not measured again
- up to `--solved` other questions of the context are asked and answered before the last one, which is the one that
  counts, so that a model that was not made for such problems sees their form
- values are from 0 to 99: who guesses is right once in a hundred times, who follows all operations but one every 25th
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..experiments.tasks.gsm import Gsm
from .readers import Reader, add_arguments, readers
from .rows import Rows


KEY = ("model", "operations", "sentences", "solved", "samples", "reader", "kept", "passes", "window_size", "dtype")
ANSWER = "Answer:"
NEW_TOKENS = 6


def task_of(operations: int, sentences: int, solved: int) -> Gsm:
    """Problems in prose over plain integers, of so many sentences."""
    words = 9 * sentences
    return Gsm(
        max_depth=operations, style="prose", window_size=words, context_length=words, modulus=None, names=256,
        questions=1 + solved,
    )  # fmt: skip


def problem(task: Gsm, operations: int, index: int) -> tuple[str, str]:
    """A problem up to its last `Answer:`, and the number that belongs behind it."""
    (example,) = task.examples([index], split="eval", depth=operations)
    context, questions = (task.tokenizer().decode(example[name]) for name in ("context_ids", "question_ids"))
    told, _, answer = questions.rpartition(ANSWER)
    told = re.sub(rf"({ANSWER} \d+) ", r"\1\n", told)  # a line for each question that is solved
    text = re.sub(r" ([.?])", r"\1", f"{context}\n{told}{ANSWER}")
    return text, answer.strip()


def prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a problem, in a chat where the tokenizer knows how: the answer begins with `Answer:`."""
    if tokenizer.chat_template is None:
        return tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": text.removesuffix(ANSWER).strip()}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + ANSWER
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def measure(reader: Reader, task: Gsm, operations: int, samples: int) -> dict:
    """The accuracy of a reader, with what its reading takes."""
    right, answers = 0, []
    for index in range(samples):
        text, number = problem(task, operations, index)
        answers.append(reader.answer(prompt(text, reader.tokenizer), NEW_TOKENS))
        said = re.search(r"\d+", answers[-1].text)
        right += said is not None and said[0] == number
    return {
        "accuracy": right / samples,
        "tokens": sum(answer.read for answer in answers) / samples,
        "read_ms_per_token": sorted(answer.read_ms for answer in answers)[samples // 2],
        "write_ms_per_token": sorted(answer.written_ms for answer in answers)[samples // 2],
        "bytes": max(answer.nbytes for answer in answers),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Word problems by their number of operations.")
    add_arguments(parser)
    parser.add_argument("--operations", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument("--sentences", type=int, default=40, help="of a context, about nine words each")
    parser.add_argument("--solved", type=int, default=3, help="questions that are answered before")
    parser.add_argument("--samples", type=int, default=100, help="per row")
    parser.add_argument("--rows", type=Path, required=True, help="file to which the rows are added")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    tasks = {operations: task_of(operations, args.sentences, args.solved) for operations in args.operations}
    rows = Rows(args.rows, KEY)
    for reader in readers(args, AutoTokenizer.from_pretrained(args.model)):
        for operations, task in tasks.items():
            name = args.model if reader.name == "sleep" else args.original
            row = {"yardstick": "gsm", "model": Path(name).name, "operations": operations, "solved": args.solved}
            row |= {"sentences": args.sentences, "samples": args.samples, "dtype": args.dtype} | reader.fields
            if rows.has(row):
                continue
            began = time.perf_counter()
            row |= measure(reader, task, operations, args.samples)
            rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
            print(f"{operations} operations, {reader.described:24}{100 * row['accuracy']:6.1f} %", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
