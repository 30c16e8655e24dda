"""What a step learns from: stories in which facts are told, and windows that ask for them.

Every lesson is a unit of `facts.py` with what the model knows of its windows. A story can be made longer by windows of
other lessons, which costs nothing, as windows do not depend on one another before the memory. A fact can be changed
for free: its key comes from the token before and its value from the embedding, so that another word's embedding, in
its place, is another fact. A value of several tokens is exchanged token for token, pieces of words and digits alike.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .chat import Answer, Chat
from .facts import Question, Unit, unit
from .filler import stream
from .names import words
from .states import Read, StateCache, kept_tensors


# How an answer begins: with the question's words given, with "The answer is" given, or with nothing given.
SHARES = {"question": 0.35, "general": 0.15, "own": 0.5}
TEXT_SOURCES = ("manual", "docstrings", "licences", "prose")


class Sought(NamedTuple):
    """A token of an answer: the column that predicts it, which one it is, whether it is of the value, or stands before
    ("begin") or behind it ("end"), and whether it is given."""

    column: int
    token: int
    kind: str
    given: bool


@dataclass(frozen=True)
class Asked:
    """
    A question for a fact, with its answer; `value` replaces the tokens of its value if it was changed.

    `read` is the window that predicts the value. Where the question or its answer is cut in two, `before` are the
    windows that are slept over first.
    """

    question: Question
    answer: Answer
    beginning: str
    before: list[Read]
    read: Read
    value: list[int]

    @property
    def begin(self) -> int:
        """Where the answer begins in its window; below 0 if it does in one before."""
        return len(self.question.prompt) - sum(len(read.ids) for read in self.before)

    def sought(self) -> list[Sought]:
        """The answer's tokens that the window predicts, the changed value included."""
        first, last = self.answer.value
        targets = self.answer.ids[:first] + self.value + self.answer.ids[last:]
        found = []
        for i, token in enumerate(targets):
            column = self.begin + i - 1
            if 0 <= column < len(self.read.ids):
                kind = "begin" if i < first else "value" if i < last else "end"
                found.append(Sought(column, token, kind, i < self.answer.given))
        return found


@dataclass(frozen=True)
class Lesson:
    """A unit as the model knows it. `swapped` says for (window, place) which token stands there instead."""

    story: list[Read]
    asked: list[Asked]
    swapped: dict[tuple[int, int], int]

    @property
    def texts(self) -> set[str]:
        """What it is asked: no other lesson in the same story may be asked the same."""
        return {asked.question.text for asked in self.asked}

    def places(self, question: Question) -> list[tuple[int, int]]:
        """(window, place) of the value of a fact; none if it was told behind the windows of the story."""
        size = len(self.story[0].ids)
        places = [(question.window + place // size, place % size) for place in range(*question.told)]
        return places if places[-1][0] < len(self.story) else []


def lesson(
    cache: StateCache,
    learned: Unit,
    rng: random.Random,
    beginnings: dict[str, float] = SHARES,
    through: bool = True,
) -> Lesson:
    """Let the model read a unit. Each question is asked with one beginning, drawn by these shares."""
    chosen = [
        (question, rng.choices(list(beginnings), list(beginnings.values()))[0]) for question in learned.questions
    ]
    asking = [question.prompt + question.answers[beginning].ids for question, beginning in chosen]
    story, asking_reads = cache.read(learned.story, asking, through)
    asked = []
    for (question, beginning), reads in zip(chosen, asking_reads, strict=True):
        answer = question.answers[beginning]
        number = (len(question.prompt) + answer.value[0] - 1) // len(reads[0].ids)
        value = answer.ids[slice(*answer.value)]
        asked.append(Asked(question, answer, beginning, reads[:number], reads[number], value))
    return Lesson(story, asked, {})


def lessons(
    cache: StateCache,
    split: str,
    seed: int,
    chat: Chat,
    window_size: int,
    count: int,
    beginnings: dict[str, float] = SHARES,
    cut: float = 0.0,
    first: int = 0,
    through: bool = True,
    **options,
) -> Iterator[Lesson]:
    """
    `count` lessons of a split, from number `first` on, those that ask nothing left out. In a share of them, `cut`,
    windows end anywhere. Without `through`, they are for the memory by itself, and the model reads less of them
    ([`StateCache.read`]). Other options are those of `facts.unit`.
    """
    for index in range(first, first + count):
        is_cut = random.Random(f"is cut/{split}/{seed}/{index}").random() < cut
        learned = unit(split, seed, index, chat, window_size, cut=is_cut, **options)
        if learned.questions:
            yield lesson(cache, learned, random.Random(f"{split}/{seed}/{index}"), beginnings, through)


def texts(cache: StateCache, split: str, seed: int, chat: Chat, window_size: int, count: int) -> Iterator[list[Read]]:
    """Natural texts of four windows each."""
    for index in range(count):
        sentences = stream(random.Random(f"text/{split}/{seed}/{index}"), split, TEXT_SOURCES, run=40)
        yield cache.read([], windows_of(chat, sentences, 4 * window_size, 1))[1][0]


def windows_of(chat: Chat, sentences: Iterator[str], window_size: int, count: int) -> list[list[int]]:
    """The first `count` windows of sentences that stand behind one another, in tokens."""
    ids: list[int] = []
    while len(ids) < count * window_size:
        ids += chat.encode((" " if ids else "") + next(sentences))[0]
    return [ids[i * window_size : (i + 1) * window_size] for i in range(count)]


class Exchanges(NamedTuple):
    """
    What may be told instead of a token of a value.

    Attributes
    ----------
    alike : dict[int, list[int]]
        Others of its kind: another value is told, and asked.
    unspaced : dict[int, int]
        Of a token that begins with a space, the one without: the same value, told as in "name=Ada".
    """

    alike: dict[int, list[int]]
    unspaced: dict[int, int]


def exchanges(chat: Chat, count: int, seed: int) -> Exchanges:
    """
    For each token that may be exchanged, those that may stand in its place: where a word begins `count` others, for a
    piece within a word as many, for a digit all digits; none that is a name or value of the evaluation.
    """
    forbidden, rng = words("eval"), random.Random(f"words/{seed}")
    texts = {i: chat.tokenizer.decode([i]) for i in sorted(chat.tokenizer.get_vocab().values())}
    alike: dict[int, list[int]] = {}
    for kind in (r" [A-Za-z]+", r"[A-Za-z]+", r"[0-9]"):
        found = [i for i, text in texts.items() if re.fullmatch(kind, text)]
        allowed = [i for i in found if texts[i].strip().lower() not in forbidden]
        alike |= dict.fromkeys(found, rng.sample(allowed, min(count, len(allowed))))
    numbers = {text: i for i, text in texts.items()}
    unspaced = {i: numbers[text[1:]] for i, text in texts.items() if re.match(r" \S", text) and text[1:] in numbers}
    return Exchanges(alike, unspaced)


def swap(learned: Lesson, rng: random.Random, others: Exchanges, share: float, unspaced: float = 0.0) -> Lesson:
    """
    The lesson with `share` of its values exchanged, token for token, and with `unspaced` of them told without the
    space before them; those that are asked as they were told.
    """
    swapped, asked_now, firsts = dict(learned.swapped), [], {}
    for asked in learned.asked:
        places = learned.places(asked.question)
        told = [learned.story[window].ids[place] for window, place in places]
        if told == asked.answer.ids[slice(*asked.answer.value)]:
            if rng.random() < share:
                for place, token in zip(places, told, strict=True):
                    if others.alike.get(token):
                        swapped.setdefault(place, rng.choice(others.alike[token]))
            asked = replace(asked, value=[swapped.get(place, token) for place, token in zip(places, told)])
            firsts[places[0]] = asked.value[0]
        asked_now.append(asked)
    swapped |= {
        place: others.unspaced[token]
        for place, token in firsts.items()
        if token in others.unspaced and rng.random() < unspaced
    }
    return replace(learned, asked=asked_now, swapped=swapped)


def story_of(
    learned: Lesson, others: list[Lesson], windows: int, rng: random.Random, behind: bool = False
) -> list[tuple[Lesson, int]]:
    """
    A story of `windows` windows: those of the lesson in their order, and between them those of others that ask for
    nothing that it asks for; `behind` puts them all behind.
    """
    texts, more = learned.texts, []
    for _ in range(50 * windows):
        if len(more) >= windows - len(learned.story):
            break
        other = rng.choice(others)
        if other is not learned and texts.isdisjoint(other.texts):
            texts |= other.texts
            more.append((other, rng.randrange(len(other.story))))
    own = [(learned, i) for i in range(len(learned.story))]
    if behind:
        return own + more
    story = [*more, *[None] * len(own)]
    rng.shuffle(story)
    own.reverse()
    return [own.pop() if window is None else window for window in story]


class StoryTensors(NamedTuple):
    """
    What a memory writes of stories of one length.

    Attributes
    ----------
    key_hidden_states, embeddings : torch.Tensor
        (stories, windows, length, hidden_size): what keys and values are made of.
    kept : torch.Tensor | None
        (stories, windows, window_overlap, hidden_size): the same of tokens kept from before each window, for keys.
    is_kept : torch.Tensor | None
        (stories, windows, window_overlap) of bool.
    """

    key_hidden_states: torch.Tensor
    embeddings: torch.Tensor
    kept: torch.Tensor | None = None
    is_kept: torch.Tensor | None = None


def story_tensors(
    stories: list[list[tuple[Lesson, int]]], embeddings: torch.Tensor, dtype: torch.dtype
) -> StoryTensors:
    """Of windows of lessons, with their values exchanged."""
    reads = [[learned.story[i] for learned, i in story] for story in stories]
    return window_tensors(reads, embeddings, dtype, told_tokens(stories))


def told_tokens(stories: list[list[tuple[Lesson, int]]]) -> torch.Tensor:
    """(stories, tokens): what is told, with values exchanged, windows behind one another."""
    return torch.tensor(
        [
            [
                learned.swapped.get((i, at), token)
                for learned, i in story
                for at, token in enumerate(learned.story[i].ids)
            ]
            for story in stories
        ]
    )


def window_tensors(
    stories: list[list[Read]], embeddings: torch.Tensor, dtype: torch.dtype, told: torch.Tensor | None = None
) -> StoryTensors:
    """Of windows as they were read, or with what is `told` instead, (stories, tokens)."""
    device = embeddings.device
    ids = torch.tensor([[read.ids for read in story] for story in stories])
    ids = (ids if told is None else told.view_as(ids)).to(device)
    key_hidden_states = torch.stack([torch.stack([read.key_hidden_states for read in story]) for story in stories])
    kept, is_kept = kept_tensors(list(itertools.chain(*stories)), key_hidden_states)
    shape = key_hidden_states.shape[:2]
    return StoryTensors(
        key_hidden_states.to(device, dtype),
        embeddings[ids].to(dtype),
        None if kept is None else kept.unflatten(0, shape).to(device, dtype),
        None if is_kept is None else is_kept.unflatten(0, shape).to(device),
    )
