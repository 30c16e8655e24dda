"""What a memory finds by itself, without any layer of the model, and why it misses the rest.

    python -m modeling_sleep.teach.alone FOLDER --lessons 60 --windows 8

Of each value that is asked for it tells whether the first token that is more than a space
- is found: of all tokens' codes, the value's is most like what S gives
- stands out: the same, without the mean of what S gives to all these questions. Behind stage 2 this mean is large: it
  says to the layers behind that there is something to tell, and they know it from the value, while codes do not
- has the nearest key: of all keys that were written, the value's is most like the query
- has it beside: the nearest key is another's, of a token near the value. The fact was found, and not what it says
- was written at all;
and the same of the tokens behind it, which are asked for when those before them were said.

What does not stand out although its key is the nearest was mixed with other values in S: a larger `recall_key_dim` or
fewer written tokens help. What has not the nearest key is a matter of queries and keys: of what they are made of, and
of longer teaching.
"""

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..heads_sleep import SleepForCausalLM
from ..recall_memory_sleep import recall
from .chat import Chat
from .command import command, load, refuses
from .evaluate import share
from .lessons import Asked, Lesson, lessons, story_of, story_tensors, told_tokens
from .reading import gates_of, queries_at, written
from .states import StateCache
from .teaching import AMID, check


BESIDE = 16  # tokens, about a sentence
TOLD = ("found", "stands out", "nearest", "beside", "written")


@torch.no_grad()
def search(model: SleepForCausalLM, chat: Chat, learned: Sequence[Lesson], windows: int) -> list[dict]:
    """
    Rows of lessons, each told among windows of the others: the question, the number of a token of its value, and
    whether this is `found`, `stands out`, has the `nearest` key or has it `beside`, and was `written`.
    """
    rows, given = [], []
    memory, embeddings = model.model.layers[check(model, chat.tokenizer)], model.model.embed_tokens.weight
    codes = F.normalize(memory.v_proj(embeddings).float(), dim=-1)
    for number, lesson in enumerate(learned):
        story = story_of(lesson, list(learned), windows, random.Random(number))
        told = told_tokens([story])[0]
        window_of = {i: window for window, (other, i) in enumerate(story) if other is lesson}
        tensors = story_tensors([story], embeddings, torch.float32)
        S, _ = written(memory, tensors, model.config.sleep_passes)
        known, _, beta = (x.flatten(0, 2) for x in gates_of(memory, tensors))
        is_written = beta > 0
        place_of = is_written.nonzero().flatten()
        keys = F.normalize(memory.key(known[is_written]), dim=-1)
        for asked, nth, column, token, (window, at) in value_tokens(chat, lesson):
            query, _ = queries_at(memory, [asked.read], [[column]])
            own = window_of[window] * len(lesson.story[0].ids) + at
            nearest = place_of[(keys @ query.flatten()).argmax()] if len(keys) else None
            is_nearest = nearest is not None and same(chat, token, told[nearest])
            given.append((token, recall(query, S).flatten()))
            rows.append(
                {
                    "question": asked.question.text,
                    "token": nth,
                    "nearest": is_nearest,
                    "beside": nearest is not None and not is_nearest and abs(int(nearest) - own) <= BESIDE,
                    "written": bool(is_written[own]),
                }
            )
    for is_later in (False, True):
        some = [(row, *what) for row, what in zip(rows, given, strict=True) if (row["token"] > 0) == is_later]
        mean = torch.stack([what for _, _, what in some]).mean(0) if some else None
        for row, token, what in some:
            row["found"] = same(chat, token, (codes @ what).argmax())
            row["stands out"] = same(chat, token, (codes @ (what - mean)).argmax())
    return rows


def value_tokens(chat: Chat, learned: Lesson) -> Iterator[tuple[Asked, int, int, int, tuple[int, int]]]:
    """
    Questions of a lesson; the number of each token of their value, from the first one that is more than a space; the
    column of the window that predicts it; the token; and (window, place) where it was told.
    """
    for asked in learned.asked:
        values = [sought for sought in asked.sought() if sought.kind == "value"]
        places = learned.places(asked.question)
        if values and not asked.before and places:
            first = chat.behind_space([sought.token for sought in values], 0)
            for nth, (sought, (window, at)) in enumerate(zip(values[first:], places[first:])):
                if nth and learned.story[window].ids[at] != sought.token:
                    break  # it was told in other tokens
                yield asked, nth, sought.column, sought.token, (window, at)


def same(chat: Chat, token: int, other: int | torch.Tensor) -> bool:
    """Whether two tokens are one word, with or without the space before it."""
    first, second = (chat.tokenizer.decode([int(x)]).strip() for x in (token, other))
    return first == second


@refuses
def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = command("alone", __doc__)
    parser.add_argument("--splits", nargs="+", choices=("train", "known", "eval"), default=("known", "eval"))
    parser.add_argument("--lessons", type=int, default=60, help="of about seven facts, of each split")
    parser.add_argument(
        "--windows", type=int, default=8, help="that a story has at least, with those of other lessons"
    )
    parser.add_argument(
        "--passes", type=int, default=None, metavar="N", help="how often a sleep writes; default: the model's"
    )
    parser.add_argument("--seed", type=int, default=7, help="of lessons; those of training have the seed of teaching")
    options = parser.parse_args(arguments)
    model, chat = load(options)
    check(model, chat.tokenizer)
    if options.passes is not None:
        model.config.sleep_passes = options.passes
    with tempfile.TemporaryDirectory() as folder:
        cache = StateCache(model, Path(folder))
        for split in options.splits:
            reading = lessons(cache, split, options.seed, chat, model.config.window_size, options.lessons, amid=AMID)
            learned = list(tqdm(reading, f"reading, {split}", options.lessons, dynamic_ncols=True))
            rows = search(model, chat, learned, options.windows)
            firsts, later = ([row for row in rows if (row["token"] > 0) == is_later] for is_later in (False, True))
            for what, some in (("", firsts), ("later tokens, ", later)):
                for name in TOLD if some else ():
                    print(f"{split}, {what}{name}: {share(sum(row[name] for row in some), len(some))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
