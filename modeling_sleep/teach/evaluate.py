"""What a memory is worth: questions about facts behind sleeps, and everyday ones.

    rows = [*answers(Reader("memory", model, chat), units)]        a row for each question and beginning of its answer
    rows += answers(Reader("whole cache", original, chat), units)
    print(table(rows))

What is notable:
- a reader is a model and what it may read before the question: the whole story, its last tokens, the sentence that is
  nearest to the question, or nothing; models work through `forward` and `generate` alone, whatever memory they have
- begun answers ("question": in the question's words; "general": with "The answer is") are right if greedy search over
  the whole vocabulary finds every token of the value
- answers in the model's own words are right if they name the value and nothing else of its kind before it
- counts come with Wilson's interval of 95 %
"""

import copy
import dataclasses
import itertools
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

from ..markdown_table import markdown_table
from ..outputs_sleep import CACHE
from .chat import Chat
from .command import command, load, refuses
from .everyday import MEASURED
from .facts import BEGINNINGS, PATTERNS, Question, Unit, mentions, unit


LENGTH = 32  # tokens of an answer in the model's own words, at most
BETWEEN = (0, 1, 3, 6)  # windows of filler between story and questions, in turn: with stories of two, 1 to 8 sleeps


@dataclasses.dataclass(frozen=True)
class Reader:
    """
    A model, and what it may read before a question.

    Parameters
    ----------
    name : str
    model : PreTrainedModel
    chat : Chat
        Of the model's tokenizer.
    before : callable of (Unit, Question) to list of int
        Tokens that it reads before the question's prompt; the whole story by default.
    forget : callable of Cache, optional
        Done to the cache before each question, in place; e.g. zeroes S.
    """

    name: str
    model: PreTrainedModel
    chat: Chat
    before: Callable[[Unit, Question], list[int]] = lambda unit, question: list(itertools.chain(*unit.story))
    forget: Callable[[Cache], None] | None = None

    def read(self, ids: Sequence[int]) -> Cache | None:
        """The cache after these tokens; None after none."""
        if not ids:
            return None
        output = self.model(input_ids=self._row(ids), use_cache=True, logits_to_keep=1)
        cache = output[CACHE]
        if self.forget is not None:
            self.forget(cache)
        return cache

    def logits(self, ids: Sequence[int], cache: Cache | None = None) -> torch.Tensor:
        """Of tokens that are read behind a cache, which stays as it is: (tokens, vocabulary)."""
        return self.model(input_ids=self._row(ids), **self._behind(cache)).logits[0].float()

    def write(self, ids: Sequence[int], cache: Cache | None = None, before: Sequence[int] = ()) -> tuple[str, bool]:
        """A greedy answer behind tokens, of which `before` are in the cache, and whether it came to its end."""
        ends = self.chat.ends(self.model)
        row = self._row([*before, *ids])
        written = self.model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **self._behind(cache),
        )[0, row.shape[1] :].tolist()
        ended = written[-1] in ends
        return self.chat.tokenizer.decode(written[: len(written) - ended]).strip(), ended

    def _row(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.device)

    def _behind(self, cache: Cache | None) -> dict:
        return {} if cache is None else {CACHE: copy.deepcopy(cache)}


def alone(unit: Unit, question: Question) -> list[int]:
    """Nothing but the question is read."""
    return []


def last(tokens: int) -> Callable[[Unit, Question], list[int]]:
    """The end of the story alone, as a sliding window would hold it."""
    return lambda unit, question: list(itertools.chain(*unit.story))[-tokens:]


def zeroing(model: PreTrainedModel) -> Callable[[Cache], None]:
    """What a model that sleeps forgets: it sleeps over what a cache still holds, then S is emptied."""

    def forget(cache: Cache) -> None:
        model.sleep(cache)
        for layer in cache.layers:
            if (state := getattr(layer, "state", None)) is not None and hasattr(state, "recurrent_state"):
                layer.store(state._replace(recurrent_state=torch.zeros_like(state.recurrent_state)), None)

    return forget


def nearest(chat: Chat, count: int = 1) -> Callable[[Unit, Question], list[int]]:
    """The sentences that are nearest to the question by BM25, put before it in the user's turn."""

    def before(unit: Unit, question: Question) -> list[int]:
        text = chat.tokenizer.decode(list(itertools.chain(*unit.story)))
        for mark in (chat.opening, chat.to_user, chat.to_assistant, chat.user):
            text = text.replace(mark, "\n") if mark else text
        spoken = [part.strip() for part in re.split(r"(?<=[.?!])\s+|\n", text) if part.strip()]
        best = sorted(bm25(question.text, spoken), reverse=True)[:count]
        return chat.ids(chat.user + " ".join(spoken[place] for _, place in sorted(best, key=lambda pair: pair[1])))

    return before


def bm25(query: str, documents: Sequence[str], k: float = 1.5, b: float = 0.75) -> Iterator[tuple[float, int]]:
    """
    How near each document is to a query, and which one it is.

    Okapi BM25 with the idf that is never negative, ln(1 + (n - df + .5) / (df + .5)); Robertson and Zaragoza, "The
    Probabilistic Relevance Framework", 2009.
    """
    bags = [Counter(re.findall(r"\w+", document.lower())) for document in documents]
    frequency = Counter(word for bag in bags for word in bag)
    mean = sum(map(Counter.total, bags)) / len(bags)
    for place, bag in enumerate(bags):
        score = 0.0
        for word in set(re.findall(r"\w+", query.lower())) & set(bag):
            idf = math.log1p((len(bags) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            score += idf * bag[word] * (k + 1) / (bag[word] + k * (1 - b + b * bag.total() / mean))
        yield score, place


def tokens_of(size: int, model: PreTrainedModel) -> int:
    """How many tokens' keys and values take so many bytes in an ordinary model's cache, rounded up."""
    cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)[CACHE]
    return -(-size // sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))


@torch.no_grad()
def answers(reader: Reader, units: Iterable[Unit], beginnings: Sequence[str] = BEGINNINGS) -> Iterator[dict]:
    """
    All questions of some units, answered.

    Yields
    ------
    dict
        `reader`, `split`, `unit`, `pattern`, `kind`, `since` (sleeps), `beginning`, `behind` (what else stands
        in the window), `cut` (what the end of a window cuts), `value`, `right`; in the model's own words also
        `answer`, `ended` and `repeats`.
    """
    for asked in units:
        caches = {}
        for question in asked.questions:
            before = reader.before(asked, question)
            if tuple(before) not in caches:
                caches = {tuple(before): reader.read(before)}
            cache = caches[tuple(before)]
            for beginning in beginnings:
                row = {"reader": reader.name, "split": asked.split, "unit": f"{asked.seed}/{asked.index}"}
                row |= {"pattern": question.pattern, "kind": question.kind, "since": question.since}
                row |= {"beginning": beginning, "behind": question.behind, "cut": question.cut}
                row |= {"value": question.value}
                if beginning == "own":
                    text, ended = reader.write(question.prompt, cache, before)
                    row |= {"right": names(text, question), "answer": text, "ended": ended}
                    row |= {"repeats": repeats(text, question.value)}
                else:
                    row["right"] = finds(reader, question, beginning, cache)
                yield row


def finds(reader: Reader, question: Question, beginning: str, cache: Cache | None) -> bool:
    """Whether the model, given the beginning of the answer, would write every token up to the end of the value."""
    answer = question.answers[beginning]
    first, end = answer.given, answer.value[1]
    logits = reader.logits(question.prompt + answer.ids[:end], cache)
    return logits[len(question.prompt) + first - 1 : -1].argmax(-1).tolist() == answer.ids[first:end]


def names(text: str, question: Question) -> bool:
    """
    Whether an answer in the model's own words is right.

    It is if it names the value, and before it no other candidate; where the value has digits, no other word with
    digits either. What the question itself names does not count.
    """
    rivals = [word for word in question.candidates[1:] if not mentions(question.text, word)]
    if re.search(r"\d", question.value):
        rest = whole(question.value).sub(" ", text)
        rivals += [word for word in re.findall(r"[\w.:-]*\d", rest) if not mentions(question.text, word)]

    def place(word: str) -> float:
        match = whole(word).search(text)
        return match.start() if match else math.inf

    return place(question.value) < min(map(place, rivals), default=math.inf)


def whole(name: str) -> re.Pattern:
    """
    Finds a name as words of their own: 9 is not in 19, and not in 9.99. `mentions` takes the latter for a mention: it
    keeps out of questions what may tell too much.
    """
    return re.compile(rf"(?<!\w)(?<!\d[.,:]){re.escape(name)}(?!\w|[.,:]\d)", re.IGNORECASE)


def repeats(text: str, value: str) -> bool:
    """Whether some words of an answer follow themselves at once, or it names the value twice."""
    words = re.findall(r"\w+", text.lower())
    twice = any(
        words[i : i + size] == words[i + size : i + 2 * size]
        for size in range(1, len(words) // 2 + 1)
        for i in range(len(words) - 2 * size + 1)
    )
    return twice or len(whole(value).findall(text)) > 1


@torch.no_grad()
def everyday(reader: Reader, original: PreTrainedModel, units: Sequence[Unit]) -> Iterator[dict]:
    """
    Questions that have nothing to do with any story, in the first window and behind stories.

    Yields
    ------
    dict
        `reader`, `question`, `behind` (sleeps), `answer`, `original` (what the original answers in its first window),
        `same` (as the original), `repeats`.
    """
    chat, plain = reader.chat, Reader("original", original, reader.chat)
    for number, text in enumerate(MEASURED):
        told, _ = plain.write(chat.ids(chat.opening + text + chat.to_assistant))
        story = units[number % len(units)].story
        first = reader.write(chat.ids(chat.opening + text + chat.to_assistant))
        before = list(itertools.chain(*story))
        later = reader.write(chat.ids(chat.asks + text + chat.to_assistant), reader.read(before), before)
        for behind, (answer, _) in ((0, first), (len(story), later)):
            row = {"reader": reader.name, "question": text, "behind": behind, "answer": answer, "original": told}
            yield row | {"same": answer == told, "repeats": repeats(answer, "\0")}


def evaluation_units(split: str, seed: int, chat: Chat, window_size: int, questions: int, **options) -> list[Unit]:
    """Units of so many questions in all, asked behind 1 to 8 sleeps."""
    chosen, index = [], 0
    while (missing := questions - sum(len(drawn.questions) for drawn in chosen)) > 0:
        drawn = unit(split, seed, index, chat, window_size, **{"between": BETWEEN[index % len(BETWEEN)]} | options)
        chosen.append(dataclasses.replace(drawn, questions=drawn.questions[:missing]))
        index += 1
    return chosen


def table(rows: Iterable[dict], by: Sequence[str] = ("reader", "split"), across: str = "beginning") -> str:
    """
    Counts of right answers in Markdown, with Wilson's interval.

    Parameters
    ----------
    rows : iterable of dict
        From `answers`, in any order.
    by, across : sequence of str, str
        What a line is of, and what a column is of.
    """
    cells = defaultdict(list)
    for row in rows:
        cells[tuple(row[key] for key in by), row[across]].append(row["right"])
    lines, columns = (list(dict.fromkeys(part)) for part in zip(*cells))
    counted = [[*line, *(share(sum(cells[line, c]), len(cells[line, c])) for c in columns)] for line in lines]
    return markdown_table([*by, *columns], counted, align="l" * (len(by) + len(columns)))


def share(right: int, count: int) -> str:
    """So many of so many, in percent, with Wilson's interval of 95 %."""
    if not count:
        return "-"
    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return f"{right} of {count} = {100 * right / count:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


@refuses
def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = command("evaluate", "Answers questions about facts behind sleeps, and writes rows of JSON.")
    parser.add_argument("--split", choices=PATTERNS, default="eval")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--window-size", type=int, metavar="L", help="of stories; default: the model's, or 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amid", type=float, default=0.0, help="share of questions behind other text of their window")
    parser.add_argument("--cut", action="store_true", help="windows end anywhere, also in facts and questions")
    parser.add_argument(
        "--readers", nargs="+", choices=("whole", "zeroed", "alone", "last", "nearest"), default=["whole"]
    )
    parser.add_argument("--last", type=int, default=9, help="tokens of the story that the reader `last` still holds")
    parser.add_argument("--nearest", type=int, default=1, help="sentences that the reader `nearest` is given")
    parser.add_argument(
        "--passes",
        type=int,
        nargs="+",
        metavar="N",
        help="of a model that sleeps: answers with each, as readers `N=...`",
    )
    parser.add_argument("--rows", type=Path, required=True, help="file to which the rows are added")
    options = parser.parse_args(arguments)
    if options.questions < 1:
        parser.error(f"there must be at least one question, got --questions {options.questions}")
    model, chat = load(options, AutoModelForCausalLM)
    sleeps = model.config.model_type == "sleep"
    if not sleeps:
        for given, name in ((options.passes, "--passes is"), ("zeroed" in options.readers, "The reader `zeroed` is")):
            if given:
                parser.error(f"{name} for models that sleep, and {options.model} is a {model.config.model_type}.")
    size = options.window_size or (model.config.window_size if sleeps else 64)
    drawn = {"amid": options.amid, "cut": options.cut}
    asked = evaluation_units(options.split, options.seed, chat, size, options.questions, **drawn)
    kinds = {
        "whole": {},
        "zeroed": {"forget": zeroing(model)},
        "alone": {"before": alone},
        "last": {"before": last(options.last)},
        "nearest": {"before": nearest(chat, options.nearest)},
    }
    rows = []
    with options.rows.open("a", encoding="utf-8") as file:
        for name, passes in itertools.product(options.readers, options.passes or [None]):
            if passes is not None:
                model.config.sleep_passes = passes
            label = name if passes is None else f"{name}, N={passes}"
            for row in answers(Reader(label, model, chat, **kinds[name]), asked):
                rows.append(row)
                print(json.dumps(row), file=file, flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
