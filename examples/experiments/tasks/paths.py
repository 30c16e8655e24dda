"""Paths: can a model follow words to what stands at their end, however far that is?

Every word points to another one or, where its path ends, to a value; a context is all of these edges in random order.
A question names a word and asks for the value at the end of its path. Unlike the hops of `depo`, which a token counts,
how far the end is stands nowhere: a model can be asked for paths longer than it ever was in training, with no token
that it has not met.

    context     src > dst  src > dst  ...                  n edges, 3 n tokens, at most one window
    questions   start <answer> value  start <answer> value  ...

An example of 5 words on two paths, of 3 and of 2 words, and a question of 3 hops:

    w4 > w9  w7 > w1  w1 > v5  w9 > w2  w2 > v0  |  w4 <answer> v0

What is notable:
- a hop is an edge that is followed, the one to the value with them: with 1 hop the answer is looked up
- a token of its own between the words tells a source from a destination. Where only counting does (as in `depo`), with
  so many words, nothing was learned in 1,000 steps but that an answer is an end
- a value is not a word. Where a path ended in a word, one hop was looked up when awake and nothing was done asleep
- in training, one path has a depth that is asked for, and the others have 1 to `max_depth` words, evenly, until
  there are no more. Where a depth is given, all paths have it, as far as words go: among 16 words two of 8 hops. So
  whoever follows but some of the hops cannot tell by what is left over which value is the right one
- questions are of all depths evenly, as far as there are words of them
- nothing but chance keeps the splits apart, but there are 10^23 orders of 16 of 32 words
- guessing: the answer is one of the values in the context. [`Paths.shallow_solve`] follows some hops and guesses then
"""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from .task import Example, Task, check_questions_fit, draw_depths, permutation, word_level_tokenizer


PAD_ID, ANSWER_ID, TO_ID, VALUE_ID = 0, 1, 2, 3
EDGE_TOKENS = QUESTION_TOKENS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths(Task):
    """
    Follow paths to the values at their ends; depth is the number of hops.

    Parameters
    ----------
    words : int
        Words of a context, n, of the eval split.
    fewest_words : int
        Training draws n from fewest_words..words, evenly: a small context is where a small model learns to look up.
    max_depth : int
        Longest path in training, in hops. Longer ones, of up to n, can be asked for.
    queries : int
        Questions of an example, or fewer if there are not so many words of the depths asked for.
    vocabulary : int
        Number of words that there are.
    values : int
        Number of values that there are; several paths can end in one.
    """

    name = "paths"
    depth_name = "hops"

    words: int = 16
    fewest_words: int = 4
    max_depth: int = 4
    queries: int = 12
    vocabulary: int = 32
    values: int = 8

    def __post_init__(self):
        if self.queries < 1:
            raise ValueError(f"queries must be positive, got {self.queries}")
        if not 2 <= self.fewest_words <= self.words <= self.vocabulary:
            raise ValueError(
                f"fewest_words and words must be in 2..{self.vocabulary}, the vocabulary, and in this order, got "
                f"{self.fewest_words} and {self.words}"
            )
        if self.values < 2:
            raise ValueError(f"values must be at least 2, got {self.values}")
        self._check_depth("max_depth", self.max_depth)
        check_questions_fit(self.queries * QUESTION_TOKENS, self.window_size)

    @property
    def deepest(self) -> int:
        return self.words

    @property
    def window_size(self) -> int:
        return EDGE_TOKENS * self.words

    def tokenizer(self) -> PreTrainedTokenizerFast:
        words = [f"w{i}" for i in range(self.vocabulary)]
        return word_level_tokenizer(["<pad>", "<answer>", ">", *(f"v{i}" for i in range(self.values)), *words])

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        wanted = range(self.shallowest, max_depth + 1) if depth is None else [depth]
        fewest = self.fewest_words if split == "train" else self.words
        seeds = (f"{self.name} {split} {seed} {i}" for i in index)
        return [self._example(random.Random(each), fewest, wanted, depth, max_depth) for each in seeds]

    def _example(
        self, rng: random.Random, fewest: int, wanted: Sequence[int], depth: int | None, max_depth: int
    ) -> Example:
        length = wanted[int(rng.random() * len(wanted))]  # of the first path: there is something to ask for
        n = max(length, fewest + int(rng.random() * (self.words - fewest + 1)))
        words = [VALUE_ID + self.values + word for word in permutation(rng, self.vocabulary)[:n]]
        edges, of_depth = [], defaultdict(list)
        while words:
            path, words = words[:length], words[length:]
            value = VALUE_ID + int(rng.random() * self.values)
            for hops, (word, to) in enumerate(zip(path, [value, *path]), start=1):
                edges.append((word, TO_ID, to))
                of_depth[hops].append((word, value))
            if depth is None or len(words) < length:
                length = 1 + int(rng.random() * max_depth)

        context = [token for i in permutation(rng, n) for token in edges[i]]
        depths = draw_depths(rng, [hops for hops, words in of_depth.items() for _ in words], self.queries, wanted)
        questions = []
        for hops in depths:
            start, value = of_depth[hops].pop(int(rng.random() * len(of_depth[hops])))
            questions += [start, ANSWER_ID, value]
        return Example(context_ids=context, question_ids=questions, answer_mask=[0, 0, 1] * len(depths), depths=depths)

    def solve(self, example: Example) -> list[list[int]]:
        follower, starts = self._parse(example)
        answers, depths = [], []
        for word in starts:
            hops = 0
            while word in follower:
                word, hops = follower[word], hops + 1
                if hops > len(follower):
                    raise ValueError(f"the word {word} is on a path without an end")
            answers.append([word])
            depths.append(hops)
        if depths != example["depths"]:
            raise ValueError(
                f"the questions are {depths} hops away from their answers, depths says {example['depths']}"
            )
        return answers

    def shallow_solve(self, example: Example, hops: int) -> list[list[int]]:
        """
        Answer as whoever follows `hops` hops from every word of a context, and then guesses: a floor that a model must
        be above to have gone farther.

        A value that is not reached is guessed to be the one that most words are known to have, as paths of the depth
        that is asked for are the longest; of several, the first.

        Returns
        -------
        list[list[int]]
            Token ids of each answer.
        """
        follower, starts = self._parse(example)
        reached = {}
        for start in follower:
            word = start
            for _ in range(hops):
                word = follower.get(word, word)
            reached[start] = word
        known = {word: 0 for word in follower.values() if word not in follower}
        for word in reached.values():
            if word in known:
                known[word] += 1
        guess = max(known, key=known.get)
        return [[reached[start] if reached[start] in known else guess] for start in starts]

    def _parse(self, example: Example) -> tuple[dict[int, int], list[int]]:
        """Where every word points to, and the words that are asked for."""
        context, questions = example["context_ids"], example["question_ids"]
        if len(context) % EDGE_TOKENS or len(context) > self.window_size or set(context[1::3]) != {TO_ID}:
            raise ValueError(f"a context is up to {self.words} edges of a word, > and a word or value, got {context}")
        word_id = VALUE_ID + self.values
        values, words = range(VALUE_ID, word_id), range(word_id, word_id + self.vocabulary)
        sources, destinations = context[::3], context[2::3]
        follower = dict(zip(sources, destinations))
        if len(follower) < len(sources) or not set(sources) <= set(words):
            raise ValueError("every word has one edge")
        if not set(destinations) <= {*sources, *values}:
            raise ValueError("an edge leads to a word of the context or to a value")
        starts = questions[::QUESTION_TOKENS]
        if not starts or questions[1::3] != [ANSWER_ID] * len(starts) or len(questions) != 3 * len(starts):
            raise ValueError("a question is a word, <answer> and a value, and there is at least one")
        if not set(starts) <= set(follower) or example["answer_mask"] != [0, 0, 1] * len(starts):
            raise ValueError("a question begins with a word of the context, and its last token is the answer")
        return follower, starts
