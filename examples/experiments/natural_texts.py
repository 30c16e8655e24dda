"""Texts in plain English for a pretrained model that is given sleep: their answers lie behind one sleep or several.

Three kinds, mixed in any proportion, each cut to a number of windows:

    facts      chats: facts about people, told among ordinary text, and asked for one after the other
    problems   chats: GSM-Symbolic of reasoning-gym, the question before or after the context; the answer is a number
    ordinary   text from the reference manual of Python, which every Python brings along; all of it is predicted

What is notable:
- any tokenizer with a chat template fits; in chats only the answers are labelled, with the token that ends them
- the same index of the same seed is the same text; a hash decides what belongs to the evaluation, and no manual page,
  no set of facts and no problem is in both splits
- `since` counts the sleeps between a fact and its answer: the windows between the two
"""

import bisect
import dataclasses
import functools
import pydoc_data.topics
import random
import re
import zlib
from collections.abc import Sequence

import datasets
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from .tasks.gsm_symbolic import draw_problem


NAMES = "Ada Ben Clara David Emma Frank Grace Henry Iris James Kate Leo Maria Nick Olga Paul Rosa Sam Tina Victor"
THINGS = {
    "favourite colour": "red blue green yellow black white brown orange purple grey",
    "home town": "London Paris Rome Berlin Madrid Vienna Dublin Moscow Tokyo Boston",
    "pet": "dog cat horse parrot rabbit snake goat turtle mouse fish",
    "job": "baker nurse pilot farmer teacher lawyer painter sailor doctor cook",
    "favourite fruit": "apple banana cherry grape lemon mango orange peach pear plum",
    "instrument": "piano violin guitar flute drum trumpet harp organ cello horn",
}
EVAL_SHARE = 5  # one text in five belongs to the eval split
NUMBER = "Answer with the number alone."
SENTENCE = re.compile(r"[A-Z][^*|=]{20,200}[.]")
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])|\n\n")


@dataclasses.dataclass(frozen=True)
class NaturalTexts:
    """
    A source of texts for one tokenizer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    window_size : int
        L, the tokens after which the model sleeps.
    windows : int
        Windows of a text at most; chats have from two to so many.
    told : int
        Facts per chat; all of them are asked for.
    seed : int
    """

    tokenizer: PreTrainedTokenizerBase
    window_size: int
    windows: int = 4
    told: int = 3
    seed: int = 0

    def __post_init__(self):
        if self.tokenizer.chat_template is None:
            raise ValueError("The tokenizer has no chat template, so there is no telling how to chat with the model.")
        if not self.tokenizer.is_fast:
            raise ValueError("Labelling answers needs a fast tokenizer, which knows where in the text a token stands.")

    def dataset(self, number: int, split: str, **mixture: float) -> datasets.Dataset:
        """
        So many texts, mixed as e.g. `facts=0.5, ordinary=0.5` say.

        Returns
        -------
        datasets.Dataset
            Rows of `input_ids` and `labels`; for each answer, `since` and the tokens `values` (begin, end) that tell
            whether it is right; `kind`.
        """
        rng = random.Random(f"mixture/{split}/{self.seed}")
        kinds = rng.choices(list(mixture), weights=list(mixture.values()), k=number)
        return datasets.Dataset.from_list(
            [{"kind": kind, **getattr(self, kind)(i, split)} for i, kind in enumerate(kinds)]
        )

    def collator(self) -> DataCollatorForSeq2Seq:
        """Pads texts and labels on the right, and makes an attention mask."""
        return DataCollatorForSeq2Seq(self.tokenizer, padding=True)

    def facts(self, index: int, split: str) -> dict:
        """A chat in which facts about people are told among ordinary text, and all of them are asked for."""
        rng = self._rng("facts", split, index)
        pairs = [(name, thing) for name in NAMES.split() for thing in THINGS]
        while True:
            told = [(name, thing, rng.choice(THINGS[thing].split())) for name, thing in rng.sample(pairs, self.told)]
            if belongs_to(str(sorted(told)), split):
                break
        sentences = [f"{name}'s {thing} is {value}." for name, thing, value in told]
        chat = []
        for (name, thing, _), sentence in zip(told, sentences):
            chat += [
                {"role": "user", "content": f"What is {name}'s {thing}?"},
                {"role": "assistant", "content": sentence},
            ]
        pieces = self._filler(rng, split, rng.randint(2, self.windows), self._text(chat) + " ".join(sentences))
        for sentence in sentences:
            pieces.insert(rng.randint(0, len(pieces)), sentence)
        chat[0]["content"] = " ".join([*pieces, chat[0]["content"]])
        return self._labelled(chat, sentences, [value for *_, value in told])

    def problems(self, index: int, split: str) -> dict:
        """A word problem with ordinary text in its middle; its question comes last, or first."""
        rng = self._rng("problems", split, index)
        context, question, answer, _ = draw_problem(rng, split)
        chat = [{"role": "user", "content": ""}, {"role": "assistant", "content": answer}]
        pieces = self._filler(rng, split, rng.randint(2, self.windows), f"{self._text(chat)} {context} {question}")
        if rng.random() < 0.5:
            pieces = [question, context, *pieces, NUMBER]
        else:
            pieces = [context, *pieces, question, NUMBER]
        chat[0]["content"] = " ".join(pieces)
        return self._labelled(chat, [context], [answer])

    def ordinary(self, index: int, split: str) -> dict:
        """The manual from some line of some page on, as many windows as are allowed. All of it is labelled."""
        rng = self._rng("ordinary", split, index)
        pages, length = manual_pages(split), self.windows * self.window_size
        place = rng.randrange(len(pages))
        lines = "\n\n".join(pages[place:] + pages[:place]).splitlines(keepends=True)
        begin = rng.randrange(pages[place].count("\n") + 1)
        text = "".join(lines[begin : begin + length])  # a line has a token at least
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        return {"input_ids": ids, "labels": ids, "since": [], "values": []}

    def _rng(self, kind: str, split: str, index: int) -> random.Random:
        return random.Random(f"{kind}/{split}/{self.seed}/{index}")

    def _text(self, chat: list[dict]) -> str:
        return self.tokenizer.apply_chat_template(chat, tokenize=False)

    def _filler(self, rng: random.Random, split: str, windows: int, rest: str) -> list[str]:
        """Sentences of the manual that make a text of so many windows, together with the `rest` of it."""
        room = windows * self.window_size - len(self.tokenizer(rest, add_special_tokens=False)["input_ids"])
        sentences = manual_sentences(split)
        chosen, place = [], rng.randrange(len(sentences))
        while (room := room - len(self.tokenizer(sentences[place], add_special_tokens=False)["input_ids"])) > 0:
            chosen.append(sentences[place])
            place = (place + 1) % len(sentences)
        return chosen

    def _labelled(self, chat: list[dict], sources: list[str], values: list[str]) -> dict:
        """
        The chat as tokens, its answers labelled.

        Parameters
        ----------
        chat : list[dict]
            Messages of the user and the assistant in turn.
        sources, values : list[str]
            For each answer, the sentence that tells it, and what in the answer one must have read there.
        """
        text = self._text(chat)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]

        def token_at(character: int) -> int:
            """The token that this character belongs to."""
            return bisect.bisect_right(starts, character) - 1

        labels, since, spans, place = [-100] * len(ids), [], [], 0
        for asked, answered, source, value in zip(chat[::2], chat[1::2], sources, values):
            place = text.index(asked["content"], place) + len(asked["content"])
            begin = text.index(answered["content"], place)
            place = begin + len(answered["content"])
            tokens = slice(token_at(begin), token_at(place) + 1)  # with the token that ends the answer
            labels[tokens] = ids[tokens]
            value_begin = begin + answered["content"].rindex(value)
            spans.append([token_at(value_begin), token_at(value_begin + len(value) - 1) + 1])
            told = token_at(text.index(source) + len(source) - 1)
            since.append((spans[-1][0] - 1) // self.window_size - told // self.window_size)
        return {"input_ids": ids, "labels": labels, "since": since, "values": spans}


def belongs_to(text: str, split: str) -> bool:
    """Whether a text belongs to a split: a hash of it decides."""
    return (zlib.crc32(text.encode()) % EVAL_SHARE == 0) == (split == "eval")


@functools.cache
def manual_pages(split: str) -> Sequence[str]:
    """Pages of Python's reference manual."""
    return [page for page in pydoc_data.topics.topics.values() if belongs_to(page, split)]


@functools.cache
def manual_sentences(split: str) -> Sequence[str]:
    """Its sentences, without those that are tables or code."""
    sentences = [" ".join(text.split()) for page in manual_pages(split) for text in SENTENCE_END.split(page)]
    return [text for text in sentences if SENTENCE.fullmatch(text)]
