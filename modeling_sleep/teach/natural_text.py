"""What a memory does to ordinary text: its perplexity behind sleeps, beside what the original knows with as little.

    python -m modeling_sleep.teach.natural_text BASE --memory FOLDER --window-size 64 256

BASE is a pretrained model, FOLDER a taught memory for it. For each L it reads the same texts with sleep, and with the
original: each window by itself, with the last tokens before it that stay after a sleep, with as many as take the bytes
of all that stays, S included, and with all of the text.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..adapter_sleep import MemoryAdapter
from ..adopt_sleep import default_overlap
from ..heads_sleep import SleepForCausalLM
from .chat import Chat
from .command import command, refuses
from .evaluate import Reader, tokens_of
from .filler import sentences


def natural_text(chat: Chat, split: str, tokens: int, index: int, source: str = "manual") -> list[int]:
    """Tokens of ordinary text, its sentences in the order in which they stand."""
    pool = sentences(source, split)
    ids, place = [], 97 * index
    while len(ids) < tokens:
        ids += chat.ids(" " + pool[place % len(pool)])
        place += 1
    return ids[:tokens]


@torch.no_grad()
def perplexity(reader: Reader, texts: Iterable[Sequence[int]], window_size: int, kept: int | None = None) -> dict:
    """
    Perplexity of ordinary text in its first windows, and in later ones.

    Parameters
    ----------
    reader : Reader
    texts : iterable of sequences of int
        Tokens, of several windows each.
    window_size : int
        L. The first token of each window is not counted: a window by itself cannot know it.
    kept : int, optional
        How many tokens before each window an original may read: 0 reads each window by itself. None reads each text
        as a whole, as a model that sleeps does.

    Returns
    -------
    dict
        `reader`, `first`, `later` (perplexities), `tokens` (counted in later windows).
    """
    losses = {True: [], False: []}
    for ids in texts:
        if kept is None:
            nlls = losses_of(reader.logits(ids), ids)
        for begin in range(0, len(ids), window_size):
            end = min(begin + window_size, len(ids))
            if kept is not None:
                start = max(0, begin - kept)
                of_window = losses_of(reader.logits(ids[start:end]), ids[start:end])[begin - start :]
            else:
                of_window = nlls[begin : end - 1]
            losses[begin == 0].append(of_window)
    first, later = (torch.cat(losses[part]) for part in (True, False))
    perplexities = {"first": first.mean().exp().item(), "later": later.mean().exp().item()}
    return {"reader": reader.name, **perplexities, "tokens": len(later)}


def losses_of(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Of all tokens but the first: (tokens - 1,)."""
    return cross_entropy(logits[:-1], torch.tensor(ids[1:], device=logits.device), reduction="none")


@torch.no_grad()
def compare(model: SleepForCausalLM, original, chat: Chat, texts: Sequence[Sequence[int]]) -> Iterator[dict]:
    """
    Rows of [`perplexity`], each with `window_size` and `before`: how many tokens before each window are in sight.

    Parameters
    ----------
    model : SleepForCausalLM
    original : PreTrainedModel
        What it was before it was given sleep, in the same dtype.
    chat : Chat
    texts : sequence of sequences of int
        Tokens, of several windows each.
    """
    config = model.config
    reader, before = Reader("with sleep", model, chat), Reader("original", original, chat)
    slept = model.sleep(reader.read(texts[0][: 2 * config.window_size]))
    as_many = tokens_of(model.memory_of(slept).nbytes, original)
    yield perplexity(reader, texts, config.window_size) | {"before": config.window_overlap}
    for name, kept in (
        ("original, each window by itself", 0),
        ("original, as many tokens in sight", config.window_overlap),
        ("original, as many bytes", as_many),
        ("original, all of the text", None),
    ):
        row = perplexity(before, texts, config.window_size, kept)
        yield row | {"reader": name, "before": kept}


@refuses
def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = command("natural_text", __doc__)
    parser.add_argument("--window-size", type=int, nargs="+", metavar="L", help="default: the memory's")
    parser.add_argument(
        "--window-overlap", type=int, metavar="W", help="keys that stay; default: half of L, or the memory's"
    )
    parser.add_argument("--passes", type=int, metavar="N", help="how often a sleep writes; default: the memory's")
    parser.add_argument("--texts", type=int, default=12, help="to read")
    parser.add_argument("--tokens", type=int, default=1024, help="of each")
    parser.add_argument("--rows", type=Path, help="file to which rows of JSON are added")
    options = parser.parse_args(arguments)
    if options.memory is None:
        parser.error("the original is read beside it: give a pretrained model, and its taught memory by --memory")
    if options.texts < 1:
        parser.error(f"there must be at least one text to read, got --texts {options.texts}")
    sizes = options.window_size or [MemoryAdapter.from_pretrained(options.memory).config["window_size"]]
    if options.tokens < 2 * max(sizes):
        parser.error(f"texts of {options.tokens} tokens have no two windows of {max(sizes)}: give more --tokens")
    chat = Chat(AutoTokenizer.from_pretrained(options.model))
    original = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    texts = [natural_text(chat, "eval", options.tokens, index) for index in range(options.texts)]
    print("| L | reader | tokens before a window | perplexity |\n|---:|---|---:|---:|")
    for size in sizes:
        given = {"window_size": size, "window_overlap": options.window_overlap, "sleep_passes": options.passes}
        if options.window_size and options.window_overlap is None:
            given["window_overlap"] = default_overlap(original.config, size)
        given = {name: number for name, number in given.items() if number is not None}
        model = SleepForCausalLM.from_causal_lm(original, memory=options.memory, **given).eval()
        for row in tqdm(compare(model, original, chat, texts), "reading", 5, leave=False, dynamic_ncols=True):
            row |= {"window_size": model.config.window_size, "passes": model.config.sleep_passes}
            before = "all" if row["before"] is None else row["before"]
            tqdm.write(f"| {row['window_size']} | {row['reader']} | {before} | {row['later']:.2f} |")
            if options.rows:
                with options.rows.open("a", encoding="utf-8") as file:
                    print(json.dumps(row), file=file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
