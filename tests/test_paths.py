"""Paths: the answers against powers of the edge matrix, the depths, what guessing gives, malformed examples."""

import copy
from collections import Counter

import numpy as np
import pytest

from examples.experiments.tasks.paths import ANSWER_ID, TO_ID, VALUE_ID, Paths
from examples.experiments.tasks.task import SPLITS


MINI = Paths()
SMALL = Paths(words=7, fewest_words=3, max_depth=2, queries=2, vocabulary=9, values=3)
TASKS = {"mini": MINI, "small": SMALL}


def every_task(test):
    return pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)(test)


def matrix_of(example, task):
    """From every word to where it points, words first, then values, which point to themselves."""
    context = np.array(example["context_ids"]).reshape(-1, 3)
    words, values = sorted(context[:, 0]), range(VALUE_ID, VALUE_ID + task.values)
    names = [*words, *values]
    matrix = np.zeros((len(names), len(names)), dtype=int)
    for source, to, destination in context:
        assert to == TO_ID
        matrix[names.index(source), names.index(destination)] += 1
    for value in values:
        matrix[names.index(value), names.index(value)] = 1
    assert (matrix.sum(1) == 1).all() and len(set(words)) == len(words)
    return matrix, words, names


@pytest.mark.parametrize("depth", [None, 1, 3, 7])
@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_answers_are_where_powers_of_the_edge_matrix_stay(task, split, depth):
    for example in task.examples(range(100), split=split, seed=1, depth=depth):
        matrix, words, names = matrix_of(example, task)
        assert split == "train" and len(words) >= task.fewest_words or len(words) == task.words
        last = np.linalg.matrix_power(matrix, len(words))
        assert (last @ matrix == last).all() and not last[:, : len(words)].any()  # no way goes round
        questions = np.array(example["question_ids"]).reshape(-1, 3)
        assert len(set(questions[:, 0])) == len(questions)
        for (start, ask, value), hops in zip(questions, example["depths"]):
            row, column = names.index(start), names.index(value)
            at = [np.linalg.matrix_power(matrix, k)[row, column] for k in range(len(words) + 1)]
            assert ask == ANSWER_ID and at == [0] * hops + [1] * (len(words) + 1 - hops)  # not there before
        if depth is not None:
            assert set(example["depths"]) == {depth}
        assert task.solve(example) == [[value] for value in questions[:, 2]]
        assert example["answer_mask"] == [0, 0, 1] * len(questions)


@every_task
def test_no_two_edges_meet_but_at_values(task):
    """Paths, not trees."""
    for example in task.examples(range(50)):
        matrix, words, _ = matrix_of(example, task)
        assert (matrix.sum(0)[: len(words)] <= 1).all()


def test_training_asks_for_no_more_than_its_depth_and_for_all_depths():
    examples = MINI.examples(range(1000))
    depths = Counter(depth for example in examples for depth in example["depths"])
    assert set(depths) == {1, 2, 3, 4} and min(depths.values()) > 300
    assert {len(example["context_ids"]) // 3 for example in examples} == set(range(4, 17))
    for example in examples[:200]:
        matrix, words, _ = matrix_of(example, MINI)
        assert not np.linalg.matrix_power(matrix, 4)[:, : len(words)].any()
    ramp = Counter(depth for example in MINI.examples(range(200), max_depth=1) for depth in example["depths"])
    assert set(ramp) == {1}


@pytest.mark.parametrize("depth, paths", [(2, 8), (4, 4), (6, 2), (8, 2), (12, 1), (16, 1)])
def test_all_paths_have_the_depth_asked_for_as_far_as_words_go(depth, paths):
    for example in MINI.examples(range(50), split="eval", depth=depth):
        matrix, words, _ = matrix_of(example, MINI)
        ends = [i for i in range(16) if matrix[i, 16:].any()]
        before = matrix[:16, :16]
        lengths = sorted(sum(np.linalg.matrix_power(before, k)[:, end].sum() for k in range(16)) for end in ends)
        assert lengths[-paths:] == [depth] * paths and sum(lengths) == 16
        assert len(example["depths"]) == min(paths, MINI.queries)


def test_an_example_is_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    (example,) = MINI.examples([0], split="eval", depth=5)
    decode = MINI.tokenizer().decode
    assert decode(example["context_ids"]) == (
        "w14 > w8 w18 > w21 w17 > w29 w3 > w28 w10 > v6 w4 > w18 w24 > w14 w15 > w3 "
        "w29 > w24 w28 > w0 w21 > v0 w6 > v2 w0 > w6 w8 > v5 w12 > w31 w31 > w4"
    )
    assert decode(example["question_ids"]) == ("w12 <answer> v0 w17 <answer> v5 w15 <answer> v2")


def test_who_follows_fewer_hops_than_are_asked_for_guesses():
    """The floors that docs/LONGER_SLEEP.md gives, with a margin."""

    def right(depth, hops):
        examples = MINI.examples(range(500), split="eval", depth=depth)
        pairs = [pair for e in examples for pair in zip(MINI.shallow_solve(e, hops), MINI.solve(e))]
        return 100 * sum(guess == answer for guess, answer in pairs) / len(pairs)

    for depth in (1, 2, 4, 8):
        assert right(depth, depth) == right(depth, depth + 3) == 100
    assert right(4, 0) < 37 and right(4, 3) < 44  # nothing is looked up; one hop is missed
    assert right(5, 4) < 49 and right(6, 4) < 57 and right(8, 4) < 61  # all of training's hops, and a guess


def test_bad_parameters_are_refused():
    for settings, message in (
        ({"words": 1}, "fewest_words and words must be in 2..32"),
        ({"words": 33}, "fewest_words and words must be in 2..32"),
        ({"words": 3}, "in this order, got 4 and 3"),
        ({"queries": 0}, "queries must be positive"),
        ({"queries": 17}, "window_size must hold all questions"),
        ({"values": 1}, "values must be at least 2"),
        ({"max_depth": 17}, "the number of hops, must be in 1..16, got 17"),
    ):
        with pytest.raises(ValueError, match=message):
            Paths(**settings)
    with pytest.raises(ValueError, match="depth, the number of hops, must be in 1..7, got 8"):
        SMALL.examples([0], depth=8)


def test_malformed_examples_are_refused():
    (good,) = SMALL.examples([0], split="eval", depth=2)
    for change, message in (
        (lambda e: e["context_ids"].pop(), "a context is up to 7 edges"),
        (lambda e: e["context_ids"].extend(e["context_ids"][:3]), "a context is up to 7 edges"),
        (lambda e: e["context_ids"].__setitem__(1, ANSWER_ID), "a context is up to 7 edges"),
        (lambda e: e["context_ids"].__setitem__(0, e["context_ids"][3]), "every word has one edge"),
        (lambda e: e["context_ids"].__setitem__(0, VALUE_ID), "every word has one edge"),
        (lambda e: e["context_ids"].__setitem__(2, TO_ID), "leads to a word of the context or to a value"),
        (lambda e: e["question_ids"].pop(), "a question is a word, <answer> and a value"),
        (lambda e: e["question_ids"].clear(), "there is at least one"),
        (lambda e: e["question_ids"].__setitem__(0, TO_ID), "begins with a word of the context"),
        (lambda e: e["answer_mask"].reverse(), "its last token is the answer"),
        (lambda e: e["depths"].__setitem__(0, 1), "hops away"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValueError, match=message):
            SMALL.solve(bad)
    ring = copy.deepcopy(good)
    sources = ring["context_ids"][::3]
    ring["context_ids"][2::3] = sources[1:] + sources[:1]
    with pytest.raises(ValueError, match="a path without an end"):
        SMALL.solve(ring)
