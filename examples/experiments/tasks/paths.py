"""Paths: can a model follow words to where they end, however far that is?

Every word points to another one or, where its path ends, to itself; a context is all of these edges in random order. A
question names a word and asks for the end of its path. Unlike the hops of `depo`, which a token counts, how far the
end is stands nowhere: a model can be asked for paths longer than it ever was in training, with no token that it has
not met, and a step that it repeats too often stays at the end.

    context     <begin>  src dst  src dst  ...         n edges, 2 n + 1 tokens, one window
    questions   start <answer> end  start <answer> end  ...

An example of 5 words on two paths, of 2 hops and of 1, and a question of 2 hops:

    <begin>  w4 w9  w7 w1  w1 w1  w9 w2  w2 w2  |  w4 <answer> w2

What is notable:
- only counting tells a source from a destination, and positions are relative: `<begin>` is there to count from
- a path has 1 to `max_depth` + 1 words, evenly, until there are no more words. If a depth is asked for, one path has
  it, and the others are as in training: among them are words of all depths, and ends that are not asked for
- questions are of all depths evenly, as far as there are words of them
- nothing but chance keeps the splits apart, but there are 10^29 orders of 20 of 32 words
- guessing: the answer is one of the ends. [`Paths.shallow_solve`] follows some hops and guesses then
"""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from .task import Example, Task, check_questions_fit, draw_depths, permutation, word_level_tokenizer


PAD_ID, ANSWER_ID, BEGIN_ID, WORD_ID = 0, 1, 2, 3
QUESTION_TOKENS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths(Task):
    """
    Follow paths to their ends; depth is the number of hops, 0 for a word that points to itself.

    Parameters
    ----------
    words : int
        Words of a context, n.
    max_depth : int
        Longest path in training, in hops. Longer ones, of up to n - 1, can be asked for.
    queries : int
        Questions of an example, or fewer if there are not so many words of the depths asked for.
    vocabulary : int
        Number of words that there are.
    """

    name = "paths"
    depth_name = "hops"
    shallowest = 0

    words: int = 20
    max_depth: int = 4
    queries: int = 4
    vocabulary: int = 32

    def __post_init__(self):
        if self.queries < 1:
            raise ValueError(f"queries must be positive, got {self.queries}")
        if not 2 <= self.words <= self.vocabulary:
            raise ValueError(f"words must be in 2..{self.vocabulary}, the vocabulary, got {self.words}")
        self._check_depth("max_depth", self.max_depth)
        check_questions_fit(self.queries * QUESTION_TOKENS, self.window_size)

    @property
    def deepest(self) -> int:
        return self.words - 1

    @property
    def window_size(self) -> int:
        return 2 * self.words + 1

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return word_level_tokenizer(["<pad>", "<answer>", "<begin>"] + [f"w{i}" for i in range(self.vocabulary)])

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        wanted = range(self.shallowest, max_depth + 1) if depth is None else [depth]
        return [
            self._example(random.Random(f"{self.name} {split} {seed} {i}"), wanted, depth, max_depth) for i in index
        ]

    def _example(self, rng: random.Random, wanted: Sequence[int], depth: int | None, max_depth: int) -> Example:
        words = [WORD_ID + word for word in permutation(rng, self.vocabulary)[: self.words]]
        length = _draw_length(rng, max_depth) if depth is None else depth + 1
        edges, of_depth = [], defaultdict(list)
        while words:
            path, words = words[:length], words[length:]
            for i, word in enumerate(path):
                edges.append((word, path[max(i - 1, 0)]))
                of_depth[i].append((word, path[0]))
            length = _draw_length(rng, max_depth)

        context = [BEGIN_ID] + [token for i in permutation(rng, self.words) for token in edges[i]]
        depths = draw_depths(rng, [i for i, ends in of_depth.items() for _ in ends], self.queries, wanted)
        questions = []
        for i in depths:
            start, end = of_depth[i].pop(int(rng.random() * len(of_depth[i])))
            questions += [start, ANSWER_ID, end]
        return Example(context_ids=context, question_ids=questions, answer_mask=[0, 0, 1] * len(depths), depths=depths)

    def solve(self, example: Example) -> list[list[int]]:
        follower, starts = self._parse(example)
        answers, depths = [], []
        for word in starts:
            hops = 0
            while follower[word] != word:
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

        An end that is not reached is guessed to be that of the fewest words among those that are known to have one, as
        words of the path that is asked for are missing there; of several, the first.

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
                word = follower[word]
            reached[start] = word
        ends = {word: 0 for word in follower if follower[word] == word}
        for word in reached.values():
            if word in ends:
                ends[word] += 1
        guess = max(ends, key=ends.get)
        return [[reached[start] if reached[start] in ends else guess] for start in starts]

    def _parse(self, example: Example) -> tuple[dict[int, int], list[int]]:
        """Where every word points to, and the words that are asked for."""
        context, questions = example["context_ids"], example["question_ids"]
        if len(context) != self.window_size or context[0] != BEGIN_ID:
            raise ValueError(
                f"a context is <begin> and {self.words} edges, {self.window_size} tokens, got {len(context)} tokens"
            )
        words, sources, destinations = range(WORD_ID, WORD_ID + self.vocabulary), context[1::2], context[2::2]
        follower = dict(zip(sources, destinations))
        if len(follower) < self.words or not set(destinations) <= set(sources) <= set(words):
            raise ValueError("every word has one edge, to a word of the context")
        starts = questions[::QUESTION_TOKENS]
        if not starts or questions[1::3] != [ANSWER_ID] * len(starts) or len(questions) != 3 * len(starts):
            raise ValueError("a question is a word, <answer> and a word, and there is at least one")
        if not set(starts) <= set(follower) or example["answer_mask"] != [0, 0, 1] * len(starts):
            raise ValueError("a question begins with a word of the context, and its last token is the answer")
        return follower, starts


def _draw_length(rng: random.Random, max_depth: int) -> int:
    """Words of a path, 1..max_depth + 1."""
    return 1 + int(rng.random() * (max_depth + 1))
