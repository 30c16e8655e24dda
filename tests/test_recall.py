"""Recall: the answers against a search in the text, depths and places of facts, bad parameters, malformed examples."""

import copy
import functools
import math
import re
from collections import Counter

import numpy as np
import pytest

from examples.experiments.tasks.recall import ANSWER_ID, ASK_ID, KEY_ID, PAD_ID, Recall
from examples.experiments.tasks.task import SPLITS


MINI = Recall(max_depth=4)
CROWDED = Recall(max_depth=3, window_size=12, facts=6, queries=3, keys=6, values=3, fillers=1)
LARGE = Recall(max_depth=8, window_size=64, facts=32, queries=16, keys=64, values=64, fillers=64)
TASKS = {"mini": MINI, "crowded": CROWDED, "large": LARGE}


def every_task(test):
    return pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)(test)


@functools.cache
def tokenizer_of(task):
    return task.tokenizer()


def read(task, example):
    """Facts and questions as text: {key: (value, sleeps since, place in the window)}, [(key, value)]."""
    words = tokenizer_of(task).decode(example["context_ids"]).split()
    windows = [" ".join(words[i : i + task.window_size]) for i in range(0, len(words), task.window_size)]
    facts = {}
    for ago, window in enumerate(reversed(windows), start=1):
        for match in re.finditer(r"(k\d+) (v\d+)", window):
            assert match[1] not in facts
            facts[match[1]] = (match[2], ago, window[: match.start()].count(" "))
        assert re.sub(r"k\d+ v\d+", "f0 f0", window).count("f") == task.window_size  # whole facts and filler, no more
    text = tokenizer_of(task).decode(example["question_ids"])
    questions = re.findall(r"<ask> (k\d+) <answer> (v\d+)", text)
    assert text == " ".join(f"<ask> {key} <answer> {value}" for key, value in questions)
    return facts, questions


@pytest.mark.parametrize("depth", [None, 1, 3, 11])
@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_answers_stand_in_the_text(task, split, depth):
    for example in task.examples(range(150), split=split, seed=1, depth=depth):
        facts, questions = read(task, example)
        assert len(example["context_ids"]) == max(task.max_depth, depth or 1) * task.window_size
        assert len(facts) == task.facts
        assert len(questions) == len({key for key, _ in questions}) == task.queries == len(example["depths"])
        assert example["answer_mask"] == [0, 0, 0, 1] * task.queries
        for (key, value), ago in zip(questions, example["depths"]):
            assert facts[key][:2] == (value, ago)
            assert ago == depth if depth else 1 <= ago <= task.max_depth


@pytest.mark.parametrize("depth", [None, 20])
@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_the_answers_are_those_of_solve(task, split, depth):
    for example in task.examples(range(500), split=split, seed=2, depth=depth):
        answers = [token for answer in task.solve(example) for token in answer]
        assert answers == [t for t, labelled in zip(example["question_ids"], example["answer_mask"]) if labelled]


def test_sixty_four_sleeps_when_trained_to_eight():
    task = Recall(max_depth=8)
    for example in task.examples(range(100), split="eval", depth=64):
        facts, questions = read(task, example)
        assert len(example["context_ids"]) == 64 * 16
        assert example["depths"] == [64, 64] and all(facts[key][1] == 64 for key, _ in questions)
        task.solve(example)


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    tokenizer = MINI.tokenizer()
    (example,) = MINI.examples([7], seed=3, max_depth=2)
    assert tokenizer.decode(example["context_ids"]) == (
        "k11 v3 f5 f14 f15 f10 f8 f14 f15 f7 f7 f14 f3 k1 v7 f1 f2 f2 k0 v15 f3 f9 f6 f0 k23 v7 f9 f5 f10 f3 f4 f9"
    )
    assert tokenizer.decode(example["question_ids"]) == "<ask> k11 <answer> v3 <ask> k1 <answer> v7"


def test_the_depth_changes_neither_the_facts_nor_the_questions():
    for example, deep in zip(MINI.examples(range(200)), MINI.examples(range(200), depth=9)):
        values, deep_values = ({k: v[0] for k, v in read(MINI, e)[0].items()} for e in (example, deep))
        assert values == deep_values
        assert example["question_ids"] == deep["question_ids"]


def assert_even(values, expected):
    """Every expected value comes equally often, within five standard deviations."""
    counts, expected = Counter(values), list(expected)
    assert set(counts) <= set(expected)
    p = 1 / len(expected)
    for value in expected:
        assert abs(counts[value] - len(values) * p) < 5 * math.sqrt(len(values) * p * (1 - p)) + 1, value


def test_depths_keys_values_and_fillers_are_drawn_evenly():
    examples = MINI.examples(range(4000))
    assert_even([depth for example in examples for depth in example["depths"]], range(1, 5))
    drawn = [read(MINI, example) for example in examples]
    assert_even([key for facts, _ in drawn for key in facts], [f"k{i}" for i in range(MINI.keys)])
    assert_even([key for _, questions in drawn for key, _ in questions], [f"k{i}" for i in range(MINI.keys)])
    assert_even([value for _, questions in drawn for _, value in questions], [f"v{i}" for i in range(MINI.values)])
    first = KEY_ID + MINI.keys + MINI.values
    fillers = [token - first for example in examples for token in example["context_ids"] if token >= first]
    assert_even(fillers, range(MINI.fillers))
    # The facts that nobody asks for are spread over all windows.
    idle = [ago for facts, asked in drawn for key, (_, ago, _) in facts.items() if key not in dict(asked)]
    assert_even(idle, range(1, 5))


def test_an_asked_fact_may_stand_anywhere_in_its_window_before_or_after_the_others():
    examples = CROWDED.examples(range(3000), max_depth=1)  # all facts in the one window, which they fill
    drawn = [read(CROWDED, example) for example in examples]
    assert_even([facts[questions[0][0]][2] for facts, questions in drawn], range(0, 12, 2))
    alone = Recall(max_depth=2, facts=1, queries=1)
    drawn = [read(alone, example) for example in alone.examples(range(3000))]
    assert_even([facts[questions[0][0]][2] for facts, questions in drawn], range(15))


def test_the_curriculum_shortens_contexts():
    examples = MINI.examples(range(500), max_depth=2)
    assert {len(example["context_ids"]) for example in examples} == {2 * 16}
    assert {depth for example in examples for depth in example["depths"]} == {1, 2}


def test_contexts_fill_windows_without_padding():
    batch = MINI.collator()(MINI.examples(range(8)))
    assert batch["input_ids"].shape == (8, 4 * 16 + 8) and batch["attention_mask"].all()


def test_the_floor_of_guessing_is_what_the_docstring_says():
    task = Recall(max_depth=1)
    right = []
    for example in task.examples(range(4000)):
        facts, questions = read(task, example)
        guess = Counter(value for value, _, _ in facts.values()).most_common(1)[0][0]
        right += [value == guess for _, value in questions]
    assert np.mean(right) == pytest.approx(0.34, abs=0.02)


@every_task
def test_where_tokens_begin(task):
    tokenizer = tokenizer_of(task)
    assert len(tokenizer) == 3 + task.keys + task.values + task.fillers
    ids = [PAD_ID, ASK_ID, ANSWER_ID, KEY_ID]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<pad>", "<ask>", "<answer>", "k0"]


@pytest.mark.parametrize(
    "parameters",
    [{name: 0} for name in ("max_depth", "window_size", "facts", "queries", "keys", "values", "fillers")]
    + [{"keys": 3}, {"queries": 5}, {"facts": 9}, {"window_size": 7}, {"facts": 5, "queries": 5}],
    ids=str,
)
def test_impossible_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match="must"):
        Recall(**parameters)


@pytest.mark.parametrize("kwargs", [{"split": "test"}, {"depth": 0}, {"max_depth": 0}], ids=str)
def test_impossible_examples_are_refused(kwargs):
    with pytest.raises(ValueError, match="must be"):
        MINI.examples([0], **kwargs)


SMALL = Recall(max_depth=2, window_size=8, facts=2, queries=1, keys=8, values=8, fillers=8)


def encode(context, questions, mask, depths):
    context_ids, question_ids = SMALL.tokenizer()([context, questions])["input_ids"]
    return {"context_ids": context_ids, "question_ids": question_ids, "answer_mask": mask, "depths": depths}


GOOD = encode("f3 k7 v1 f0 f0 f5 f2 f6 f1 f1 f4 f7 f2 k0 v3 f5", "<ask> k7 <answer> v1", [0, 0, 0, 1], [2])


def changed(name, **tokens):
    """The good example with the token at `_<position>` replaced."""
    example = copy.deepcopy(GOOD)
    for position, token in tokens.items():
        example[name][int(position[1:])] = SMALL.tokenizer().convert_tokens_to_ids(token)
    return example


def test_solve_does_not_look_at_the_answers():
    value = SMALL.tokenizer().convert_tokens_to_ids("v1")
    assert SMALL.solve(GOOD) == SMALL.solve(changed("question_ids", _3="v5")) == [[value]]


@pytest.mark.parametrize(
    "example, complaint",
    [
        (GOOD | {"context_ids": GOOD["context_ids"][1:]}, "windows of 8"),
        (GOOD | {"context_ids": []}, "windows of 8"),
        (changed("context_ids", _2="f0"), "facts `key value`"),
        (changed("context_ids", _2="k3"), "facts `key value`"),
        (changed("context_ids", _1="f0"), "facts `key value`"),
        (changed("context_ids", _3="v1"), "facts `key value`"),
        (changed("context_ids", _0="<ask>"), "facts `key value`"),
        (changed("context_ids", _0="<pad>"), "facts `key value`"),
        (changed("context_ids", _13="k7"), "twice"),
        (changed("context_ids", _7="k3", _8="v3"), "in its window"),  # a fact that a sleep would cut
        (changed("context_ids", _15="k3"), "in its window"),
        (changed("question_ids", _1="k3"), "of the context"),
        (changed("question_ids", _1="f3"), "of the context"),
        (changed("question_ids", _0="<answer>"), "a question is"),
        (changed("question_ids", _2="<ask>"), "a question is"),
        (changed("question_ids", _3="f1"), "a question is"),
        (GOOD | {"question_ids": GOOD["question_ids"][:3]}, "4 tokens each"),
        (GOOD | {"question_ids": []}, "4 tokens each"),
        (GOOD | {"question_ids": GOOD["question_ids"] * 2}, "once"),
        (GOOD | {"answer_mask": [0, 0, 1, 1]}, "answer_mask"),
        (GOOD | {"answer_mask": [0, 0, 0, 1] * 2}, "answer_mask"),
        (GOOD | {"depths": [1]}, "depths"),
        (GOOD | {"depths": [2, 2]}, "depths"),
    ],
)
def test_solve_refuses_malformed_examples(example, complaint):
    with pytest.raises(ValueError, match=complaint):
        SMALL.solve(example)
