"""Depo: the answers against matrix powers, the distributions, the splits, bad parameters, malformed examples."""

import copy
import dataclasses
import functools
import math
from collections import Counter

import numpy as np
import pytest

from examples.experiments.tasks.depo import ANSWER_ID, BEGIN_ID, HOPS_ID, MAX_HOPS, MIN_WORDS, PAD_ID, WORD_ID, Depo
from examples.experiments.tasks.task import SPLITS


MINI = Depo()
PAPER = Depo(words=75, max_depth=16, queries=10, word_tokens=(1, 2), context_length=300, window_size=75)
LONG_WORDS = Depo(words=8, vocabulary=4, word_tokens=[2, 3], queries=3, window_size=32)
DEPO2 = Depo(words=10, vocabulary=4, word_tokens=(5, 7), queries=4, window_size=70)
TASKS = {"mini": MINI, "paper": PAPER, "long words": LONG_WORDS, "Depo2": DEPO2}


def every_task(test):
    return pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)(test)


@functools.cache
def tokenizer_of(task):
    return task.tokenizer()


def read(task, example):
    """Edges, questions and answers as text: [(src, dst)], [(k, start, word)]."""
    tokenizer = tokenizer_of(task)
    words = [word.strip() for word in tokenizer.decode(example["context_ids"]).replace(".", ".|").split("|") if word]
    questions = []
    for question in tokenizer.decode(example["question_ids"]).split("k=")[1:]:
        head, word = question.split(" <answer> ")
        k, start = head.split(" ", 1)
        questions.append((int(k), start, word.strip()))
    return list(zip(words[::2], words[1::2])), questions


@pytest.mark.parametrize("depth", [None, 1, 5, MAX_HOPS])
@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_answers_are_powers_of_the_edge_matrix(task, split, depth):
    for example in task.examples(range(100), split=split, seed=1, depth=depth):
        edges, questions = read(task, example)
        sources = [source for source, _ in edges]
        assert len(set(sources)) == len(edges)
        matrix = np.zeros((len(edges), len(edges)))
        for source, destination in edges:
            matrix[sources.index(source), sources.index(destination)] = 1
        # One cycle, not several: no word returns to itself before the n-th power, and there all do.
        returns, power = [], matrix
        for _ in edges:
            returns.append(np.trace(power))
            power = power @ matrix
        assert returns == [0] * (len(edges) - 1) + [len(edges)]
        for k, start, word in questions:
            row = np.linalg.matrix_power(matrix, k)[sources.index(start)]
            assert row[sources.index(word)] == row.sum() == 1


@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_the_answers_are_those_of_solve(task, split):
    for example in task.examples(range(1000), split=split, seed=2):
        ids, mask = example["question_ids"], example["answer_mask"]
        answers = task.solve(example)
        assert [token for answer in answers for token in answer] == [t for t, labelled in zip(ids, mask) if labelled]
        assert len(mask) == len(ids) and len(answers) == len(example["depths"])
        assert example["depths"] == [k for k, _, _ in read(task, example)[1]]


def test_layout():
    (example,) = MINI.examples([3], split="eval")
    assert len(example["context_ids"]) == 16
    assert example["answer_mask"] == [0, 0, 0, 1] * 2
    for begin, depth in zip((0, 4), example["depths"]):
        hops, start, answer, word = example["question_ids"][begin : begin + 4]
        assert (hops, answer) == (HOPS_ID + depth - 1, ANSWER_ID)
        assert min(start, word) >= WORD_ID + 50 and max(start, word) < WORD_ID + 100


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    tokenizer = MINI.tokenizer()
    (example,) = MINI.examples([7], seed=3, split="eval")
    assert tokenizer.decode(example["context_ids"]) == (
        "w40. w1. w13. w14. w25. w43. w43. w12. w26. w13. w12. w26. w14. w40. w1. w25."
    )
    assert tokenizer.decode(example["question_ids"]) == "k=4 w1. <answer> w26. k=1 w43. <answer> w12."
    tokenizer = LONG_WORDS.tokenizer()
    (example,) = LONG_WORDS.examples([7], seed=3)
    assert tokenizer.decode(example["context_ids"]) == "w1 w2 w1. w2 w0 w1. w3 w3. w1 w2 w1. w2 w0 w1. w3 w3."
    assert tokenizer.decode(example["question_ids"]) == (
        "k=4 w3 w3. <answer> w1 w2 w1. k=4 w2 w0 w1. <answer> w3 w3. k=3 w1 w2 w1. <answer> w1 w2 w1."
    )


@every_task
def test_splits_share_no_cycle(task):
    def cycles(split):
        return {frozenset(read(task, example)[0]) for example in task.examples(range(500), split=split)}

    assert not cycles("train") & cycles("eval")


def test_the_depth_changes_neither_the_cycle_nor_the_starts():
    drawn, deep, curriculum = (MINI.examples(range(200), **kwargs) for kwargs in ({}, {"depth": 9}, {"max_depth": 1}))
    for one, other, third in zip(drawn, deep, curriculum):
        assert one["context_ids"] == other["context_ids"] == third["context_ids"]
        starts = [[start for _, start, _ in read(MINI, example)[1]] for example in (one, other, third)]
        assert starts[0] == starts[1] == starts[2]
        assert other["depths"] == [9, 9] and third["depths"] == [1, 1]


def test_forced_depth_reaches_beyond_training_and_around_the_cycle():
    for split in SPLITS:
        for k in (MINI.words, MINI.words + 1, MAX_HOPS):
            for example in MINI.examples(range(200), split=split, depth=k):
                assert example["depths"] == [k, k]
                edges, questions = read(MINI, example)
                follower = dict(edges)
                for _, start, word in questions:
                    assert k % len(edges) != 0 or word == start
                    assert k % len(edges) != 1 or word == follower[start]


def assert_distributed(values, probabilities):
    """Counts are within five standard deviations of what the probabilities promise."""
    counts, total = Counter(values), len(values)
    assert set(counts) <= set(probabilities) and math.isclose(sum(probabilities.values()), 1)
    for value, p in probabilities.items():
        assert abs(counts[value] - total * p) < 5 * math.sqrt(total * p * (1 - p)) + 1, value


@pytest.mark.parametrize("task", [MINI, PAPER], ids=["mini", "paper"])
def test_training_draws_few_words_more_often_and_hops_evenly(task):
    examples = task.examples(range(6000))
    weights = {n: 1 / (n + math.sqrt(task.words)) for n in range(MIN_WORDS, task.words + 1)}
    lengths = [len(read(task, example)[0]) for example in examples]
    assert_distributed(lengths, {n: weight / sum(weights.values()) for n, weight in weights.items()})
    for n, example in zip(lengths, examples):
        assert len(example["depths"]) == min(n, task.queries)
    depths = [k for example in examples for k in example["depths"]]
    assert_distributed(depths, dict.fromkeys(range(1, task.max_depth + 1), 1 / task.max_depth))
    lowered = [k for example in task.examples(range(2000), max_depth=3) for k in example["depths"]]
    assert_distributed(lowered, dict.fromkeys((1, 2, 3), 1 / 3))


@pytest.mark.parametrize("max_depth, powers", [(None, [1, 2, 4, 8, 16]), (15, [1, 2, 4, 8]), (1, [1])])
def test_eval_has_all_words_and_powers_of_two(max_depth, powers):
    examples = PAPER.examples(range(500), split="eval", max_depth=max_depth)
    assert {len(read(PAPER, example)[0]) for example in examples} == {75}
    depths = [k for example in examples for k in example["depths"]]
    assert len(depths) == 5000
    assert_distributed(depths, {k: 1 / len(powers) for k in powers})


def test_words_starts_and_edges_are_drawn_evenly():
    examples = MINI.examples(range(4000), split="eval")
    tokens = [token - WORD_ID - 50 for example in examples for token in example["context_ids"][::2]]
    assert_distributed(tokens, dict.fromkeys(range(50), 1 / 50))
    places = []  # of the edge that leaves the start, among the edges
    for example in examples:
        places.append(example["context_ids"][::2].index(example["question_ids"][1]))
    assert_distributed(places, dict.fromkeys(range(8), 1 / 8))
    sources = [source for example in PAPER.examples(range(100), split="eval") for source, _ in read(PAPER, example)[0]]
    two_tokens = np.mean([source.count("w") == 2 for source in sources])
    assert 0.57 < two_tokens < 0.63  # more than half: one-token words run out


def test_paper_size_fits():
    assert len(PAPER.tokenizer()) == 3 + MAX_HOPS + 100
    examples = PAPER.examples(range(500), split="eval") + PAPER.examples(range(500))
    assert 240 < max(len(example["context_ids"]) for example in examples) <= 300
    assert 50 < max(len(example["question_ids"]) for example in examples) <= 60
    batch = PAPER.collator()(examples[:8])
    assert batch["input_ids"].shape[1] <= 300 + 60


def test_all_words_can_be_used():
    task = Depo(words=20, vocabulary=4, word_tokens=(1, 2), queries=20, window_size=120)
    (example,) = task.examples([0], split="eval")
    assert len(dict(read(task, example)[0])) == 20
    task.solve(example)


@every_task
def test_where_tokens_begin(task):
    tokenizer = tokenizer_of(task)
    assert len(tokenizer) == 3 + MAX_HOPS + 2 * task.vocabulary
    ids = [PAD_ID, ANSWER_ID, HOPS_ID, HOPS_ID + 63, WORD_ID, WORD_ID + task.vocabulary]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<pad>", "<answer>", "k=1", "k=64", "w0", "w0."]


@pytest.mark.parametrize(
    "parameters",
    [
        {"words": 2},
        {"words": 51},
        {"words": 21, "vocabulary": 4, "word_tokens": (1, 2)},
        {"word_tokens": (0, 1)},
        {"word_tokens": (2, 1)},
        {"word_tokens": (1,)},
        {"queries": 0},
        {"vocabulary": 0},
        {"max_depth": 0},
        {"max_depth": MAX_HOPS + 1},
        {"window_size": 0},
        {"window_size": 7},
        {"context_length": 0},
        {"context_length": 24},
        {"context_length": 16, "words": 9},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match="must"):
        Depo(**parameters)


@pytest.mark.parametrize(
    "kwargs", [{"split": "test"}, {"depth": 0}, {"depth": MAX_HOPS + 1}, {"max_depth": 0}, {"max_depth": 65}], ids=str
)
def test_impossible_examples_are_refused(kwargs):
    with pytest.raises(ValueError, match="must be"):
        MINI.examples([0], **kwargs)


def test_a_recipe_from_json_is_the_same_task():
    assert Depo(word_tokens=[1, 2]) == Depo(word_tokens=(1, 2))
    assert hash(Depo(word_tokens=[1, 2])) == hash(Depo(word_tokens=(1, 2)))


def end(token):
    """The one-token word."""
    return WORD_ID + MINI.vocabulary + token


GOOD = {
    "context_ids": [end(t) for t in (4, 9, 1, 4, 9, 1)],
    "question_ids": [HOPS_ID + 1, end(4), ANSWER_ID, end(1), HOPS_ID + 3, end(9), ANSWER_ID, end(1)],
    "answer_mask": [0, 0, 0, 1] * 2,
    "depths": [2, 4],
}
TWO_CYCLES = [end(t) for t in (0, 1, 1, 2, 2, 0, 5, 6, 6, 7, 7, 5)]


def changed(name, position, value):
    example = copy.deepcopy(GOOD)
    example[name][position] = value
    return example


def test_solve_does_not_look_at_the_answers():
    assert MINI.solve(GOOD) == [[end(1)], [end(1)]]
    assert MINI.solve(changed("question_ids", 3, end(30))) == MINI.solve(GOOD)


@pytest.mark.parametrize(
    "example, complaint",
    [
        (GOOD | {"context_ids": TWO_CYCLES}, "not one cycle"),
        (GOOD | {"context_ids": TWO_CYCLES[6:] + TWO_CYCLES[:6]}, "not one cycle"),
        (GOOD | {"context_ids": [end(t) for t in (0, 1, 1, 2, 2, 3)]}, "not one cycle"),  # a path
        (GOOD | {"context_ids": [end(t) for t in (0, 1, 1, 2, 2, 1)]}, "not one cycle"),  # a rho
        (GOOD | {"context_ids": [end(t) for t in (3, 0, 0, 1, 1, 0)]}, "not one cycle"),
        (GOOD | {"context_ids": [end(t) for t in (0, 1, 1, 0)]}, "at least 3 words"),
        (GOOD | {"context_ids": []}, "at least 3 words"),
        (changed("context_ids", 2, end(4)), "two edges leave"),
        (GOOD | {"context_ids": GOOD["context_ids"][:-1]}, "missing"),
        (changed("context_ids", 5, WORD_ID + 1), "does not end"),
        (changed("context_ids", 2, WORD_ID + 1), "is not of"),  # a word of two tokens
        (changed("context_ids", 2, ANSWER_ID), "not of a word"),
        (changed("context_ids", 2, PAD_ID), "not of a word"),
        (changed("context_ids", 2, WORD_ID + 100), "not of a word"),
        (changed("question_ids", 0, ANSWER_ID), "number of hops"),
        (changed("question_ids", 0, HOPS_ID + MAX_HOPS), "number of hops"),
        (changed("question_ids", 1, end(30)), "of the cycle"),
        (changed("question_ids", 5, end(4)), "no other starts at"),
        (changed("question_ids", 2, end(4)), "followed by <answer>"),
        (GOOD | {"question_ids": GOOD["question_ids"][:-1]}, "missing"),
        (GOOD | {"question_ids": GOOD["question_ids"][:-2]}, "followed by <answer>"),
        (GOOD | {"question_ids": [], "answer_mask": [], "depths": []}, "none"),
        (changed("answer_mask", 2, 1), "answer_mask"),
        (GOOD | {"answer_mask": [0, 0, 0, 1]}, "answer_mask"),
        (changed("depths", 0, 3), "depths"),
    ],
)
def test_solve_refuses_malformed_examples(example, complaint):
    with pytest.raises(ValueError, match=complaint):
        MINI.solve(example)


def test_a_context_may_begin_with_a_token_of_its_own():
    task = dataclasses.replace(MINI, begin=True, window_size=17)
    for plain, begun in zip(MINI.examples(range(100)), task.examples(range(100))):
        assert begun == plain | {"context_ids": [BEGIN_ID, *plain["context_ids"]]}
        assert task.solve(begun) == MINI.solve(plain)
        with pytest.raises(ValueError, match="does not start with <begin>"):
            task.solve(plain)
    with pytest.raises(ValueError, match="must hold 8 edges, 17 tokens, got 16"):
        dataclasses.replace(MINI, begin=True, context_length=16)
