"""Recall: does a fact survive the sleeps after it?

A few facts stand in a long context of filler. Every window is slept on and forgotten, and so every fact has to be
picked out of its window, written, and not be overwritten by all the windows that follow. A question names a key and
asks for its value. Its depth is the number of sleeps between reading and answering: 1 for a fact in the last window of
the context, w for the w-th last.

    context     windows of L tokens: facts `key value`, anywhere in a window, and filler drawn at random
    questions   <ask> key <answer> value  <ask> key <answer> value ...

An example with L = 8, two windows, two facts and one question, whose depth is 2:

    f3 k7 v1 f0 f0 f5 f2 f6 | f1 f1 f4 f7 f2 k0 v3 f5 | <ask> k7 <answer> v1

What is notable:
- the number of facts is that of the whole context, not of a window. However deep a question is, a memory has to hold
  equally many: what is lost with depth is forgotten, not crowded out
- contexts have max_depth windows (the curriculum's, if there is one), always: depths are uniform all the same, and no
  row of a batch is padding. Only a depth beyond max_depth makes a context longer, as many windows as the depth
- no key stands twice in a context, and none is asked for twice
- the same (split, seed, index) has the same facts and the same questions whatever the depth
- nothing but chance keeps the splits apart: the filler of 8 windows of 16 tokens alone has some 500 bits
- guessing: 1/values if nothing was written. A model that remembers the values but not whose they are, and answers the
  most frequent, gets a little over 1/facts: 0.34 with the defaults, 4 facts and 16 values. Only what is well above
  both is recall
"""

import dataclasses
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from .task import Example, Task, check_questions_fit, permutation, word_level_tokenizer


PAD_ID, ASK_ID, ANSWER_ID, KEY_ID = 0, 1, 2, 3  # then the keys, the values, the fillers
QUESTION_TOKENS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """
    Recall facts many sleeps later.

    Parameters
    ----------
    max_depth : int
        Largest number of sleeps since, and the number of windows of a context.
    window_size : int
        L. All facts have to fit into one window, and so do all questions.
    facts : int
        Number of facts in a context.
    queries : int
        Number of them that are asked for.
    keys, values, fillers : int
        Number of tokens of each kind.
    """

    name = "recall"
    depth_name = "sleeps since"

    max_depth: int = 8
    window_size: int = 16
    facts: int = 4
    queries: int = 2
    keys: int = 32
    values: int = 16
    fillers: int = 16

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")
        if self.facts > self.keys:
            raise ValueError(f"facts must be at most {self.keys}, the number of keys, got {self.facts}")
        if self.queries > self.facts:
            raise ValueError(f"queries must be at most {self.facts}, the number of facts, got {self.queries}")
        # Then every fact draws its window without asking whether there is room.
        if 2 * self.facts > self.window_size:
            raise ValueError(f"window_size must hold all facts, {2 * self.facts} tokens, got {self.window_size}")
        check_questions_fit(QUESTION_TOKENS * self.queries, self.window_size)

    @property
    def _value_id(self) -> int:
        return KEY_ID + self.keys

    @property
    def _filler_id(self) -> int:
        return self._value_id + self.values

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokens = ["<pad>", "<ask>", "<answer>"]
        for letter, count in (("k", self.keys), ("v", self.values), ("f", self.fillers)):
            tokens += [f"{letter}{i}" for i in range(count)]
        return word_level_tokenizer(tokens)

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        windows = max(max_depth, depth or 1)
        depths = range(1, max_depth + 1) if depth is None else [depth]
        return [self._example(random.Random(f"{self.name} {split} {seed} {i}"), windows, depths) for i in index]

    def _example(self, rng: random.Random, windows: int, depths: Sequence[int]) -> Example:
        # Python promises the same numbers in every version for seeding by a string and for `random()`, and for no
        # other method.
        uniform, size = rng.random, self.window_size
        keys = [KEY_ID + i for i in permutation(rng, self.keys)[: self.facts]]
        values = [self._value_id + int(uniform() * self.values) for _ in keys]

        # The first facts are the ones asked for.
        asked = [depths[int(uniform() * len(depths))] for _ in range(self.queries)]
        inhabitants = {}  # of a window
        for fact in range(self.facts):
            window = windows - asked[fact] if fact < self.queries else int(uniform() * windows)
            inhabitants.setdefault(window, []).append(fact)

        first, fillers = self._filler_id, self.fillers
        context = [first + int(uniform() * fillers) for _ in range(windows * size)]
        for window, facts in inhabitants.items():
            # A window is a row of facts and fillers, in which every place is equally likely for every fact.
            places = permutation(rng, size - len(facts))[: len(facts)]
            for fact, place in zip(facts, places):
                begin = window * size + place + sum(other < place for other in places)
                context[begin : begin + 2] = keys[fact], values[fact]

        questions = []
        for key, value in zip(keys[: self.queries], values):
            questions += [ASK_ID, key, ANSWER_ID, value]
        mask = [0, 0, 0, 1] * self.queries
        return {"context_ids": context, "question_ids": questions, "answer_mask": mask, "depths": asked}

    def solve(self, example: Example) -> list[list[int]]:
        context, questions, size = example["context_ids"], example["question_ids"], self.window_size
        if not context or len(context) % size:
            raise ValueError(f"a context is windows of {size} tokens, got {len(context)} tokens")
        kinds = {}
        for kind, (begin, count) in {
            "key": (KEY_ID, self.keys),
            "value": (self._value_id, self.values),
            "filler": (self._filler_id, self.fillers),
        }.items():
            kinds.update(dict.fromkeys(range(begin, begin + count), kind))

        value_of, depth_of = {}, {}
        for begin in range(0, len(context), size):
            key = None
            for token in context[begin : begin + size]:
                kind = kinds.get(token)
                if kind is None or (kind == "value") != (key is not None):
                    raise ValueError(f"a window is facts `key value` and filler, got token {token} after key {key}")
                if kind == "key" and token in value_of:
                    raise ValueError(f"the key {token} stands twice in the context")
                if kind == "value":
                    value_of[key], depth_of[key] = token, (len(context) - begin) // size
                key = token if kind == "key" else None
            if key is not None:
                raise ValueError(f"the key {key} has no value in its window")

        answers, depths = {}, []
        if not questions or len(questions) % QUESTION_TOKENS:
            raise ValueError(f"questions have {QUESTION_TOKENS} tokens each, got {len(questions)} tokens")
        for i in range(0, len(questions), QUESTION_TOKENS):
            ask, key, answer, value = questions[i : i + QUESTION_TOKENS]
            if (ask, answer) != (ASK_ID, ANSWER_ID) or kinds.get(value) != "value":
                raise ValueError(f"a question is `<ask> key <answer> value`, got {questions[i : i + QUESTION_TOKENS]}")
            if key not in value_of or key in answers:
                raise ValueError(f"a question asks for a key of the context, once, got {key}")
            answers[key] = [value_of[key]]
            depths.append(depth_of[key])
        if example["answer_mask"] != [0, 0, 0, 1] * len(answers) or example["depths"] != depths:
            raise ValueError("answer_mask or depths do not belong to the questions")
        return list(answers.values())
