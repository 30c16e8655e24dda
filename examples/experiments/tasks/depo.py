"""Depo: can a model walk k steps along a cycle that it has read, slept on, and forgotten?

Multi-hop retrieval after Physics of Language Models 4.1. The context is one directed cycle over n words, its n edges
in random order; a question names a word and asks for the word k steps on. Reading stores edges, but an answer needs k
of them joined: whatever a model cannot join while it answers it has to join in its sleep.

    context     src dst  src dst  ...                        n edges, 2 n to 4 n tokens with words of 1 to 2 tokens
    questions   <k> start <answer> word  <k> start <answer> word ...

An example with n = 3 one-token words and two questions (`w4.` is word token 4 where it ends a word, else it is `w4`):

    w4. w9.  w1. w4.  w9. w1.  |  k=2 w4. <answer> w1.  k=4 w9. <answer> w1.

What is notable:
- our choice: the answer is the word alone. The paper's loss stands on `<answer>` too, but that is formatting: it is
  always the same at the same place, and would only flatter the loss
- with one-token words, only counting tells a source from a destination, and positions are relative: `begin=True`
  puts a token before the first edge to count from
- k may exceed n: the cycle goes round. Beware of k close to a multiple of n: k = n is to repeat the start, k = n - 1
  is one step back. For k hops to mean k hops, let `words` be more than twice the depth
- the same (split, seed, index) has the same cycle and the same starts whatever the depth: depths are compared in pairs
- nothing but chance keeps the splits apart, but there are 10^12 cycles of 8 one-token words. With 3 words from a
  vocabulary of 3, the splits would meet
- guessing: 1/(n - 1) for a model that knows the words but no edge, as the start is not the answer unless n divides k
"""

import bisect
import dataclasses
import functools
import itertools
import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from .task import Example, Task, check_context_length, check_questions_fit, permutation, word_level_tokenizer


MIN_WORDS = 3
MAX_HOPS = 64  # of any Depo, so that the tokens of a model do not depend on the depth that it is trained to

PAD_ID, ANSWER_ID, BEGIN_ID, HOPS_ID = 0, 1, 2, 3  # k hops are HOPS_ID + k - 1
WORD_ID = HOPS_ID + MAX_HOPS  # token t of a word is WORD_ID + t, and WORD_ID + vocabulary + t if it is the last one

Word = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depo(Task):
    """
    Walk a cycle. The paper: `Depo(words=75, max_depth=16, queries=10, word_tokens=(1, 2), context_length=300,
    window_size=75)`. These are the words of Depo1; those of Depo2 have 5 to 7 tokens out of 4, `word_tokens=(5, 7),
    vocabulary=4`.

    Parameters
    ----------
    words : int
        Largest n, the number of words on the cycle. Training draws n from 3..words with p ~ 1 / (n + sqrt(words)),
        the eval split has n = words.
    max_depth : int
        K, the largest number of hops. Training draws k from 1..K, the eval split from the powers of two up to K.
        More hops, up to 64, can be asked for, but their token has then not been seen in training.
    queries : int
        Questions of an example, or n if n is less: their starts are distinct.
    word_tokens : tuple[int, int]
        Least and largest number of tokens of a word, drawn uniformly.
    vocabulary : int
        Number of tokens that words are made of. The last token of a word is another one, so there are twice as many.
    begin : bool
        Whether the context begins with a token of its own, `<begin>`.
    context_length : int, optional
        As in [`Task`].
    window_size : int
        As in [`Task`].
    """

    name = "depo"
    depth_name = "hops"
    deepest = MAX_HOPS

    words: int = 8
    max_depth: int = 4
    queries: int = 2
    word_tokens: tuple[int, int] = (1, 1)
    vocabulary: int = 50
    begin: bool = False
    context_length: int | None = None
    window_size: int = 16

    def __post_init__(self):
        object.__setattr__(self, "word_tokens", tuple(self.word_tokens))  # JSON knows lists only
        if len(self.word_tokens) != 2 or not 1 <= self.word_tokens[0] <= self.word_tokens[1]:
            raise ValueError(f"word_tokens must be (least, largest), 1 <= least <= largest, got {self.word_tokens}")
        for parameter in ("queries", "vocabulary", "window_size"):
            if getattr(self, parameter) < 1:
                raise ValueError(f"{parameter} must be positive, got {getattr(self, parameter)}")
        self._check_depth("max_depth", self.max_depth)
        least, largest = self.word_tokens
        distinct = sum(self.vocabulary**length for length in range(least, largest + 1))
        if not MIN_WORDS <= self.words <= distinct:
            raise ValueError(
                f"words must be in {MIN_WORDS}..{distinct}, the number of distinct words of {least} to {largest} "
                f"tokens from a vocabulary of {self.vocabulary}, got {self.words}"
            )
        check_questions_fit(min(self.queries, self.words) * (2 + 2 * largest), self.window_size)
        check_context_length(self.context_length, self.window_size)
        longest = self.begin + 2 * self.words * largest
        if self.context_length is not None and self.context_length < longest:
            raise ValueError(
                f"context_length must hold {self.words} edges, {longest} tokens, got {self.context_length}"
            )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokens = ["<pad>", "<answer>", "<begin>"] + [f"k={k}" for k in range(1, MAX_HOPS + 1)]
        tokens += [f"w{t}{end}" for end in ("", ".") for t in range(self.vocabulary)]
        return word_level_tokenizer(tokens)

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        if depth is not None:
            hops = [depth]
        elif split == "train":
            hops = range(1, max_depth + 1)
        else:
            hops = [2**i for i in range(max_depth.bit_length())]
        return [self._example(random.Random(f"{self.name} {split} {seed} {i}"), split, hops) for i in index]

    def _example(self, rng: random.Random, split: str, hops: Sequence[int]) -> Example:
        # Python promises the same numbers in every version for seeding by a string and for `random()`, and for no
        # other method.
        uniform = rng.random
        if split == "train":
            n = MIN_WORDS + bisect.bisect(self._cumulative_weights, uniform() * self._cumulative_weights[-1])
        else:
            n = self.words
        cycle = self._draw_words(rng, n)
        context = [BEGIN_ID] * self.begin
        for i in permutation(rng, n):
            context += cycle[i - 1] + cycle[i]
        questions, mask, depths = [], [], []
        starts = permutation(rng, n)[: self.queries]
        for start in starts:
            k = hops[int(uniform() * len(hops))]
            question, word = (HOPS_ID + k - 1, *cycle[start], ANSWER_ID), cycle[(start + k) % n]
            questions += question + word
            mask += [0] * len(question) + [1] * len(word)
            depths.append(k)
        return {"context_ids": context, "question_ids": questions, "answer_mask": mask, "depths": depths}

    @functools.cached_property
    def _cumulative_weights(self) -> list[float]:
        """Of n = 3..words."""
        return list(itertools.accumulate(1 / (n + self.words**0.5) for n in range(MIN_WORDS, self.words + 1)))

    def _draw_words(self, rng: random.Random, n: int) -> list[Word]:
        """Draw n distinct words, in random order."""
        least, largest = self.word_tokens
        uniform, size, end = rng.random, self.vocabulary, WORD_ID + self.vocabulary
        words = {}  # a set that keeps its order
        while len(words) < n:
            length = least + int(uniform() * (largest - least + 1))
            word = [WORD_ID + int(uniform() * size) for _ in range(length - 1)]
            words[(*word, end + int(uniform() * size))] = None
        return list(words)

    def solve(self, example: Example) -> list[list[int]]:
        context, questions = example["context_ids"], example["question_ids"]
        if self.begin and context[:1] != [BEGIN_ID]:
            raise ValueError(f"the context does not start with <begin>, but with {context[:1]}")
        follower, i = {}, int(self.begin)
        while i < len(context):
            source, i = self._read_word(context, i)
            destination, i = self._read_word(context, i)
            if source in follower:
                raise ValueError(f"two edges leave the word {source}")
            follower[source] = destination
        if len(follower) < MIN_WORDS:
            raise ValueError(f"a cycle has at least {MIN_WORDS} words, got {len(follower)} edges")
        first = next(iter(follower))
        word, walked = follower[first], 1
        while word != first and walked < len(follower):
            word, walked = follower.get(word, first), walked + 1
        if word != first or walked < len(follower) or set(follower.values()) != set(follower):
            raise ValueError(f"the {len(follower)} edges are not one cycle")

        answers, starts, mask, depths, i = [], set(), [], [], 0
        while i < len(questions):
            begin, k = i, questions[i] - HOPS_ID + 1
            if not 1 <= k <= MAX_HOPS:
                raise ValueError(f"a question begins with a number of hops, got token {questions[i]}")
            start, i = self._read_word(questions, i + 1)
            if start not in follower or start in starts:
                raise ValueError(f"a question starts at a word of the cycle that no other starts at, got {start}")
            if questions[i : i + 1] != [ANSWER_ID]:
                raise ValueError(f"the start is followed by <answer>, got {questions[i : i + 1]}")
            word, end = self._read_word(questions, i + 1)
            mask += [0] * (i + 1 - begin) + [1] * len(word)
            i = end
            word = start
            for _ in range(k):
                word = follower[word]
            starts.add(start)
            answers.append(list(word))
            depths.append(k)
        if not answers or mask != example["answer_mask"] or depths != example["depths"]:
            raise ValueError("answer_mask or depths do not belong to the questions, or there are none")
        return answers

    def _read_word(self, ids: Sequence[int], begin: int) -> tuple[Word, int]:
        """The word that begins there, and where it ends."""
        first_end, vocabulary_end = WORD_ID + self.vocabulary, WORD_ID + 2 * self.vocabulary
        for end in range(begin, len(ids)):
            if not WORD_ID <= ids[end] < vocabulary_end:
                raise ValueError(f"token {ids[end]} is not of a word")
            if ids[end] >= first_end:
                word = tuple(ids[begin : end + 1])
                if not self.word_tokens[0] <= len(word) <= self.word_tokens[1]:
                    raise ValueError(f"the word {word} is not of {self.word_tokens} tokens")
                return word, end + 1
        raise ValueError("a word is missing or does not end")
