"""What every task is: examples that are read, forgotten, and asked about.

An example has a *context*, which fills windows of its own and carries no label, so that a model that sleeps
consolidates it, and *questions* with their answers, which come after it. An answer is a run of labelled tokens and has
a *depth*: what makes it hard (steps of an automaton, hops, operations, sleeps since). All metrics are by depth.

What is notable:
- an example is a pure function of (task, split, seed, index): not of time, order, workers, ranks or restarts
- tasks write tokens, [`WindowCollator`] alone knows windows, padding and label masks
- [`TaskStream`] is endless; its block b is the batch of optimizer step b, so a curriculum can follow the step
"""

import dataclasses
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, TypedDict

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast


IGNORE = -100
SPLITS = ("train", "eval")


class Example(TypedDict):
    """
    One example, unpadded.

    context_ids : what is read and then forgotten.
    question_ids : what comes after it: questions with their answers.
    answer_mask : 1 where `question_ids` is part of an answer. An answer is a run of ones.
    depths : one per answer, in their order.
    """

    context_ids: list[int]
    question_ids: list[int]
    answer_mask: list[int]
    depths: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """
    A family of examples. Subclasses are dataclasses: their fields are what a recipe says under `task`, and may take
    the place of the properties below if they have a default.

    Parameters
    ----------
    max_depth : int
        Largest depth in training.
    """

    max_depth: int

    name: ClassVar[str]
    depth_name: ClassVar[str]  # what it counts, e.g. "hops", for tables and plots
    deepest: ClassVar[int | None] = None  # the largest depth that there is at all

    shallowest = 1  # the smallest depth, with which a curriculum begins; a subclass may make it a field

    @property
    @abstractmethod
    def window_size(self) -> int:
        """L, the tokens of a window that the context is laid out for."""

    @property
    def context_length(self) -> int | None:
        """Tokens, a multiple of L, that every context is padded to; None: the longest of the batch decides."""
        return None

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer with a padding token, which is saved with the model."""

    def examples(
        self,
        index: Sequence[int],
        *,
        split: str = "train",
        seed: int = 0,
        depth: int | None = None,
        max_depth: int | None = None,
    ) -> list[Example]:
        """
        Write the examples with the given indices.

        Parameters
        ----------
        index : sequence of int
            Which examples.
        split : str
            `"train"` or `"eval"`, two sets of examples that do not meet.
        seed : int
            Another seed is another set of examples.
        depth : int, optional
            Every answer has this depth, which may be more than in training. By default depths are drawn as the task
            says, from its shallowest to `max_depth`.
        max_depth : int, optional
            Instead of the task's: the curriculum.

        Raises
        ------
        ValueError
            If the task has no such split or depth.
        """
        check_choice("split", split, SPLITS)
        max_depth = self.max_depth if max_depth is None else max_depth
        self._check_depth("max_depth", max_depth)
        if depth is not None:
            self._check_depth("depth", depth)
        return self._examples(index, split, seed, depth, max_depth)

    @abstractmethod
    def _examples(
        self, index: Sequence[int], split: str, seed: int, depth: int | None, max_depth: int
    ) -> list[Example]:
        """What [`examples`] does, once it is clear that it can."""

    def _check_depth(self, name: str, depth: int):
        if not self.shallowest <= depth <= (self.deepest or depth):
            limits = f"in {self.shallowest}..{self.deepest}" if self.deepest else f"at least {self.shallowest}"
            raise ValueError(f"{name}, the number of {self.depth_name}, must be {limits}, got {depth}")

    @abstractmethod
    def solve(self, example: Example) -> list[list[int]]:
        """
        Answer the questions from the tokens alone, independently of how the example was made.

        Returns
        -------
        list[list[int]]
            Token ids of each answer.

        Raises
        ------
        ValueError
            If the example is malformed.
        """

    def collator(self) -> "WindowCollator":
        """The collator for this task's examples."""
        return WindowCollator(self.window_size, self.tokenizer().pad_token_id, self.context_length)


class WindowCollator:
    """
    Batch examples so that contexts fill whole windows and the questions begin a new one.

    Whole windows are padded on the left, and the questions on their right; that is masked, so the model skips it. What
    a context lacks of its last window is filled up behind it with padding that is read: windows count what was read,
    and questions that found room in a window of their context would be answered without any sleep. Before the context
    that would be zeros that see only zeros, through whose norms gradients grow with every pass until they are NaN.
    Labels stand on the answers alone, aligned with `input_ids` (they are shifted inside the model).

    Parameters
    ----------
    window_size : int
        L.
    pad_token_id : int
    context_length : int, optional
        Pad contexts to so many tokens instead of the longest of the batch, so that all batches on all ranks have
        the same number of windows.
    """

    def __init__(self, window_size: int, pad_token_id: int, context_length: int | None = None):
        check_context_length(context_length, window_size)
        self.window_size = window_size
        self.pad_token_id = pad_token_id
        self.context_length = context_length

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each of shape (batch, tokens)."""
        longest = max(len(example["context_ids"]) for example in examples)
        context = self.context_length
        if context is None:
            context = -(-longest // self.window_size) * self.window_size
        elif longest > context:
            raise ValueError(f"a context has {longest} tokens, more than the context_length of {context}")
        questions = max(len(example["question_ids"]) for example in examples)

        shape = (len(examples), context + questions)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE)
        for i, example in enumerate(examples):
            read = -(-len(example["context_ids"]) // self.window_size) * self.window_size
            begin, end = context - read, context + len(example["question_ids"])
            input_ids[i, begin : begin + len(example["context_ids"])] = torch.tensor(example["context_ids"])
            input_ids[i, context:end] = torch.tensor(example["question_ids"])
            attention_mask[i, begin:end] = 1
            question, answered = input_ids[i, context:end], torch.tensor(example["answer_mask"], dtype=torch.bool)
            if len(question) != len(answered):
                raise ValueError(f"answer_mask covers {len(answered)} tokens, the questions have {len(question)}")
            labels[i, context:end] = question.where(answered, IGNORE)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def make_dataset(task: Task, num_examples: int, *, start: int = 0, **kwargs) -> datasets.Dataset:
    """Make a fixed set of the examples start, start + 1, ...; `kwargs` go to [`Task.examples`]."""
    return datasets.Dataset.from_list(task.examples(range(start, start + num_examples), **kwargs))


def make_stream(task: Task, *, start: int = 0, **kwargs) -> datasets.IterableDataset:
    """The same without end, written as they are asked for; `take`, `skip`, `map` and the rest are as you know them."""
    return datasets.IterableDataset.from_generator(
        _generate, gen_kwargs={"task": task, "start": start, "kwargs": kwargs}
    )


def _generate(task: Task, start: int, kwargs: dict) -> Iterator[Example]:
    for index in itertools.count(start):
        yield from task.examples([index], **kwargs)


class TaskStream(IterableDataset):
    """
    An endless stream of examples in blocks; block b holds the examples b * block_size, b * block_size + 1, ...

    With `block_size` the global batch size, block b is the batch of optimizer step b. What a step sees then depends on
    its number alone: not on time, ranks, workers or restarts (a run that goes on at step b starts with block b).

    Parameters
    ----------
    task : Task
    block_size : int
        Examples per block.
    max_depth : callable, optional
        From the block's index to the largest depth in it: the curriculum. None: the task's.
    deepest_asked : callable, optional
        From the block's index to the largest depth of the answers that are labelled; deeper ones stay in the text, but
        are not part of `answer_mask` and `depths`. None, or where it gives None: all are labelled.
    start : int
        The first block.
    **kwargs
        Further keywords of [`Task.examples`].
    """

    def __init__(
        self,
        task: Task,
        block_size: int,
        max_depth: Callable[[int], int] | None = None,
        deepest_asked: Callable[[int], int | None] | None = None,
        start: int = 0,
        **kwargs,
    ):
        self.task = task
        self.block_size = block_size
        self.max_depth = max_depth
        self.deepest_asked = deepest_asked
        self.start = start
        self.kwargs = kwargs

    def block(self, block_index: int) -> list[Example]:
        """The examples of one block."""
        index = range(block_index * self.block_size, (block_index + 1) * self.block_size)
        max_depth = self.max_depth(block_index) if self.max_depth else None
        examples = self.task.examples(index, max_depth=max_depth, **self.kwargs)
        deepest = self.deepest_asked(block_index) if self.deepest_asked else None
        if deepest is None:
            return examples
        examples = [without_deeper(example, deepest) for example in examples]
        if not any(example["depths"] for example in examples):
            raise ValueError(
                f"none of the {self.block_size} examples of step {block_index} has a question of at most {deepest} "
                f"{self.task.depth_name}, which are all that it asks for: take a larger batch, or more passes"
            )
        return examples

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for block_index in itertools.count(self.start + first, stride):
            yield from self.block(block_index)


def without_deeper(example: Example, deepest: int) -> Example:
    """The example with the answers of more than this depth as part of the text: they are not labelled."""
    mask = example["answer_mask"].copy()
    for (begin, end), depth in zip(runs(example["answer_mask"]), example["depths"], strict=True):
        if depth > deepest:
            mask[begin:end] = [0] * (end - begin)
    return {**example, "answer_mask": mask, "depths": [depth for depth in example["depths"] if depth <= deepest]}


def check_choice(name: str, value: str, choices: Sequence[str]):
    """Raise ValueError if `value` is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def check_context_length(context_length: int | None, window_size: int):
    """Raise ValueError if contexts of this length, if it is given, do not fill whole windows."""
    if context_length is not None and (context_length < 1 or context_length % window_size):
        raise ValueError(
            f"context_length must be a multiple of the window, {window_size} tokens, got {context_length}"
        )


def check_questions_fit(length: int, window_size: int):
    """Raise ValueError if questions take more than a window: a sleep amid them would be one more than depths tell."""
    if length > window_size:
        raise ValueError(f"window_size must hold all questions, {length} tokens, got {window_size}")


def draw_depths(rng: random.Random, available: Sequence[int], questions: int, wanted: Sequence[int]) -> list[int]:
    """
    Draw the depths of an example's questions.

    Parameters
    ----------
    rng : random.Random
    available : sequence of int
        The depth of everything that can be asked for, once each.
    questions : int
        How many are drawn, or fewer if there are not so many of the depths wanted.
    wanted : sequence of int
        Depths, of which those that are left are drawn evenly.
    """
    left = [depth for depth in wanted if depth in available]
    depths = []
    while len(depths) < questions and left:
        depth = left[int(rng.random() * len(left))]
        depths.append(depth)
        if depths.count(depth) == available.count(depth):
            left.remove(depth)
    return depths


def runs(flags: Iterable) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of true flags: where the answers are."""
    begin = None
    for i, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = i
        elif not flag and begin is not None:
            yield begin, i
            begin = None


def word_level_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose tokens are `words`, separated by spaces, in and out; `words[0]` is for padding."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))  # an unknown word raises
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return as_pretrained(tokenizer, pad_token=words[0])


def as_pretrained(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    """What a language model takes of a tokenizer: padded on the left, nothing tidied up, no token types."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )


def permutation(rng: random.Random, n: int) -> list[int]:
    """
    0..n-1 in random order.

    By `random()` alone: for no other method does Python promise the same numbers in every version.
    """
    keys = [rng.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)
