"""The Rule 110 task: the automaton against one we did not write, both layouts, splits, determinism."""

import cellpylib
import numpy as np
import pytest
import torch

from examples.experiments.tasks import Rule110
from examples.experiments.tasks.rule110 import CELL_ID, QUERY_ID, STEPS_ID, evolve, render
from examples.experiments.tasks.task import SPLITS


TASKS = {
    "mini": Rule110(),
    "two rows between zeros": Rule110(rows=2, width=9, boundary="zero", max_depth=9),
    "paper": Rule110(layout="paper", max_depth=32),
    "paper, two rows between zeros": Rule110(layout="paper", boundary="zero", max_depth=32, rows=2, width=11),
}


def reference(state: np.ndarray, steps: int) -> np.ndarray:
    """Cellpylib's Rule 110: (width,) -> (width,)."""
    rows = cellpylib.evolve(
        state[None], timesteps=steps + 1, apply_rule=lambda n, c, t: cellpylib.nks_rule(n, 110), memoize=True
    )
    return rows[-1]


def rotations(row) -> set[tuple]:
    return {tuple(np.roll(row, shift)) for shift in range(len(row))}


@pytest.mark.parametrize("width", [8, 12, 13, 24])
def test_evolve_is_cellpylibs_rule_110(width):
    states = np.random.default_rng(width).integers(0, 2, (1000, width))
    for state, after in zip(states, evolve(states, 1)):
        np.testing.assert_array_equal(after, reference(state, 1))
    for state, after in zip(states[:50], evolve(states[:50], 32)):
        np.testing.assert_array_equal(after, reference(state, 32))


def test_evolve_between_zeros():
    """A ring with zeros around the row, wide enough that the other side is never felt."""
    states = np.random.default_rng(0).integers(0, 2, (300, 12))
    padded = np.pad(states, ((0, 0), (1, 1)))
    for after, ring in zip(evolve(states, 1, "zero"), padded):
        np.testing.assert_array_equal(after, reference(ring, 1)[1:-1])
    assert (evolve(states, 5, "zero") != evolve(states, 5)).any(axis=1).mean() > 0.3


def test_evolve_takes_steps_per_row():
    states = np.random.default_rng(0).integers(0, 2, (20, 12))
    steps = np.arange(20)
    expected = np.stack([evolve(state, int(t)) for state, t in zip(states, steps)])
    np.testing.assert_array_equal(evolve(states, steps), expected)
    np.testing.assert_array_equal(evolve(states, 0), states)


def read(examples):
    """Contexts and questions as arrays: (n, context), (n, question)."""
    return tuple(np.array([example[name] for example in examples]) for name in ("context_ids", "question_ids"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("width, rows", [(12, 1), (16, 1), (12, 3)])
def test_dense_layout(width, rows, split):
    task = Rule110(width=width, rows=rows)
    assert task.window_size == width + 1
    for example in task.examples(range(300), seed=1, split=split):
        context, question, mask = (
            np.array(example[name]).reshape(rows, width + 1)  # a row is a window
            for name in ("context_ids", "question_ids", "answer_mask")
        )
        assert len(set(context[:, 0])) == 1
        t = context[0, 0] - STEPS_ID + 1
        assert 1 <= t <= 6
        assert example["depths"] == [t] * rows
        assert (question[:, 0] == QUERY_ID).all()
        np.testing.assert_array_equal(mask, [[0] + [1] * width] * rows)
        for before, after in zip(context[:, 1:] - CELL_ID, question[:, 1:] - CELL_ID):
            np.testing.assert_array_equal(after, reference(before, t))


@pytest.mark.parametrize("split", SPLITS)
def test_paper_layout(split):
    task = Rule110(layout="paper", max_depth=32)
    assert task.window_size == 24
    for example in task.examples(range(30), seed=1, split=split):
        states = np.array(example["context_ids"]).reshape(4, 24) - CELL_ID  # a state is a window
        assert set(states.ravel()) == {0, 1}
        assert len({tuple(state) for state in states}) == 4
        assert example["depths"] == [32]
        query, *answer = example["question_ids"]
        assert query == QUERY_ID
        assert example["answer_mask"] == [0, 1, 1, 1, 1]
        np.testing.assert_array_equal(np.array(answer) - CELL_ID, [reference(state, 32)[0] for state in states])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_solver_finds_every_answer(task):
    for example in task.examples(range(2000)):
        answers = [token for token, answer in zip(example["question_ids"], example["answer_mask"]) if answer]
        solved = task.solve(example)
        assert sum(solved, []) == answers
        assert len(solved) == len(example["depths"])


def test_the_solver_refuses_what_is_no_example():
    task = Rule110()
    example = task.examples([0])[0]
    with pytest.raises(ValueError, match="13 tokens, not 12"):
        task.solve({**example, "context_ids": example["context_ids"][:-1]})
    with pytest.raises(ValueError, match="no row of cells"):
        task.solve({**example, "context_ids": example["context_ids"][:-1] + [QUERY_ID]})


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""

    def words(task, **kwargs):
        example = task.examples([7], seed=3, **kwargs)[0]
        return task.tokenizer().decode(example["context_ids"] + example["question_ids"])

    assert words(Rule110()) == "t=6 1 1 1 1 1 0 0 1 0 1 1 0 <query> 0 0 1 1 0 0 1 0 1 1 1 0"
    assert words(Rule110(layout="paper", max_depth=32), split="eval") == (
        "1 1 0 1 1 0 1 0 1 1 1 0 0 0 1 1 1 1 0 1 0 1 0 0 "
        "1 1 1 0 0 0 0 1 0 1 0 0 0 0 0 1 0 0 0 0 1 1 0 1 "
        "0 1 1 1 1 1 0 1 1 1 0 1 1 1 0 1 0 0 1 1 0 0 1 1 "
        "0 0 0 1 1 0 1 0 1 1 1 0 1 0 1 1 1 0 0 0 1 1 0 0 "
        "<query> 0 0 1 1"
    )


def test_the_curriculum_changes_the_steps_but_not_the_rows():
    task = Rule110()
    (few, _), (many, _) = (read(task.examples(range(2000), max_depth=t)) for t in (2, 6))
    np.testing.assert_array_equal(few[:, 1:], many[:, 1:])
    assert few[:, 0].max() == STEPS_ID + 1
    counts = np.bincount(many[:, 0] - STEPS_ID, minlength=6)
    assert len(counts) == 6 and counts.min() > 2000 / 6 * 0.8
    forced, _ = read(task.examples(range(100), depth=9))  # more than in training
    assert (forced[:, 0] == STEPS_ID + 8).all()


@pytest.mark.parametrize("layout, width", [("dense", 8), ("dense", 12), ("paper", 12)])
def test_splits_share_no_initial_row_not_even_rotated(layout, width):
    task = Rule110(layout=layout, width=width)
    rows = {}
    for split in SPLITS:
        context = np.concatenate([read(task.examples(range(3000), seed=seed, split=split))[0] for seed in range(3)])
        rows[split] = {tuple(row) for row in context.reshape(-1, task.window_size)[:, -width:]}
    assert not rows["train"] & {rotated for row in rows["eval"] for rotated in rotations(row)}
    # Between them they hold nearly all rows: nothing is lost, and the eval split is not a handful.
    assert len(rows["train"]) + len(rows["eval"]) > 0.85 * 2**width
    assert 0.15 < len(rows["eval"]) / 2**width < 0.35


def test_rows_of_a_split_are_drawn_evenly():
    context, _ = read(Rule110(width=8).examples(range(20000)))
    counts = np.unique(context[:, 1:], axis=0, return_counts=True)[1]
    assert counts.max() < 2 * counts.min()


@pytest.mark.parametrize(
    "task",
    [
        {"layout": "sparse"},
        {"boundary": "open"},
        {"width": 4},
        {"width": 65},
        {"rows": -1},
        {"max_depth": 33},
        {"max_depth": 0},
    ],
)
def test_impossible_tasks_are_refused(task):
    with pytest.raises(ValueError, match="must be"):
        Rule110(**task)


@pytest.mark.parametrize("options", [{"split": "test"}, {"depth": 33}, {"max_depth": 40}])
def test_impossible_examples_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        Rule110().examples([0], **options)


def test_where_tokens_begin():
    ids = [0, CELL_ID, CELL_ID + 1, QUERY_ID, STEPS_ID]
    assert Rule110().tokenizer().convert_ids_to_tokens(ids) == ["<pad>", "0", "1", "<query>", "t=1"]
    assert len(Rule110().tokenizer()) == 36


def test_render():
    assert render(torch.tensor([2, 3, 1])) == "░█?"
