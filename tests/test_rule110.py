"""Rule 110: the automaton against one we did not write, the layouts, the splits, the stream, the tokenizer."""

import cellpylib
import numpy as np
import pytest
import torch
from tasks import rule110
from tasks.rule110 import (
    IGNORE,
    LAYOUTS,
    PAPER_ROWS,
    Rule110Stream,
    answer_start,
    build_tokenizer,
    evolve,
    exact_match_by_steps,
    make_dataset,
    make_examples,
    render,
    window_size,
)
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, default_data_collator


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


def test_evolve_takes_steps_per_row():
    states = np.random.default_rng(0).integers(0, 2, (20, 12))
    steps = np.arange(20)
    expected = np.stack([evolve(state, int(t)) for state, t in zip(states, steps)])
    np.testing.assert_array_equal(evolve(states, steps), expected)
    np.testing.assert_array_equal(evolve(states, 0), states)


@pytest.mark.parametrize("split", rule110.SPLITS)
@pytest.mark.parametrize("width", [12, 16])
def test_dense_layout(width, split):
    size = window_size("dense", width)
    assert size == width + 1
    examples = make_examples(range(300), width=width, t_max=6, seed=1, split=split)
    assert examples["input_ids"].shape == examples["labels"].shape == (300, 2 * size)
    for ids, labels in zip(examples["input_ids"], examples["labels"]):
        first, second = ids[:size], ids[size:]  # the two windows
        t = first[0] - rule110.STEPS_ID + 1
        assert 1 <= t <= 6
        assert second[0] == rule110.QUERY_ID
        np.testing.assert_array_equal(second[1:] - rule110.CELL_ID, reference(first[1:] - rule110.CELL_ID, t))
        assert (labels[: size + 1] == IGNORE).all()
        np.testing.assert_array_equal(labels[size + 1 :], second[1:])
    assert answer_start("dense", width) == size + 1


@pytest.mark.parametrize("split", rule110.SPLITS)
def test_paper_layout(split):
    examples = make_examples(range(30), layout="paper", t=32, seed=1, split=split)
    size = window_size("paper")
    assert size == 24
    assert examples["input_ids"].shape == examples["labels"].shape == (30, PAPER_ROWS * size + 1 + PAPER_ROWS)
    for ids, labels in zip(examples["input_ids"], examples["labels"]):
        states = ids[: PAPER_ROWS * size].reshape(PAPER_ROWS, size) - rule110.CELL_ID  # a state is a window
        assert set(states.ravel()) == {0, 1}
        assert len({tuple(state) for state in states}) == PAPER_ROWS
        assert ids[PAPER_ROWS * size] == rule110.QUERY_ID
        answer = ids[answer_start("paper") :]
        np.testing.assert_array_equal(answer - rule110.CELL_ID, [reference(state, 32)[0] for state in states])
        assert (labels[: answer_start("paper")] == IGNORE).all()
        np.testing.assert_array_equal(labels[answer_start("paper") :], answer)


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    words = build_tokenizer().decode(make_examples([7], seed=3)["input_ids"][0])
    assert words == "t=6 1 1 1 1 1 0 0 1 0 1 1 0 <query> 0 0 1 1 0 0 1 0 1 1 1 0"
    words = build_tokenizer().decode(make_examples([7], seed=3, layout="paper", t=32, split="eval")["input_ids"][0])
    assert words == (
        "1 1 0 1 1 0 1 0 1 1 1 0 0 0 1 1 1 1 0 1 0 1 0 0 "
        "1 1 1 0 0 0 0 1 0 1 0 0 0 0 0 1 0 0 0 0 1 1 0 1 "
        "0 1 1 1 1 1 0 1 1 1 0 1 1 1 0 1 0 0 1 1 0 0 1 1 "
        "0 0 0 1 1 0 1 0 1 1 1 0 1 0 1 1 1 0 0 0 1 1 0 0 "
        "<query> 0 0 1 1"
    )


@pytest.mark.parametrize("split", rule110.SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_example_depends_on_split_seed_and_index_alone(layout, split):
    task = {"layout": layout, "split": split}
    together = make_examples(range(50), seed=5, **task)["input_ids"]
    alone = np.concatenate([make_examples([i], seed=5, **task)["input_ids"] for i in range(50)])
    np.testing.assert_array_equal(together, alone)
    assert (together != make_examples(range(50), seed=6, **task)["input_ids"]).any(axis=1).all()
    assert len(np.unique(together, axis=0)) > 45


def test_t_max_changes_the_steps_but_not_the_rows():
    few, many = (make_examples(range(2000), t_max=t_max)["input_ids"] for t_max in (2, 6))
    np.testing.assert_array_equal(few[:, 1:13], many[:, 1:13])
    counts = np.bincount(many[:, 0] - rule110.STEPS_ID, minlength=6)
    assert len(counts) == 6 and counts.min() > 2000 / 6 * 0.8


@pytest.mark.parametrize("layout, width", [("dense", 8), ("dense", 12), ("paper", 12)])
def test_splits_share_no_initial_row_not_even_rotated(layout, width):
    rows = {}
    for split in rule110.SPLITS:
        ids = np.concatenate(
            [
                make_examples(range(3000), layout=layout, width=width, seed=seed, split=split)["input_ids"]
                for seed in range(3)
            ]
        )
        cells = ids[:, 1 : width + 1] if layout == "dense" else ids[:, : PAPER_ROWS * width].reshape(-1, width)
        rows[split] = {tuple(row) for row in cells}
    assert not rows["train"] & {rotated for row in rows["eval"] for rotated in rotations(row)}
    # Between them they hold nearly all rows: nothing is lost, and the eval split is not a handful.
    assert len(rows["train"]) + len(rows["eval"]) > 0.85 * 2**width
    assert 0.15 < len(rows["eval"]) / 2**width < 0.35


def test_rows_of_a_split_are_drawn_evenly():
    ids = make_examples(range(20000), width=8, split="train")["input_ids"]
    counts = np.unique(ids[:, 1:9], axis=0, return_counts=True)[1]
    assert counts.max() < 2 * counts.min()


@pytest.mark.parametrize(
    "task",
    [{"layout": "sparse"}, {"split": "test"}, {"width": 4}, {"width": 65}, {"t": 33}, {"t_max": 0}],
)
def test_impossible_tasks_are_refused(task):
    with pytest.raises(ValueError, match="must be"):
        make_examples([0], **task)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stream_and_fixed_set_agree(layout):
    fixed = make_dataset(96, layout=layout, seed=2, t_max=3)
    stream = iter(Rule110Stream(32, t_max=3, layout=layout, seed=2))
    for row, streamed in zip(fixed, stream):
        assert row.keys() == streamed.keys() == {"input_ids", "labels"}
        for name in row:
            torch.testing.assert_close(row[name], streamed[name], rtol=0, atol=0)
    assert make_dataset(10, start=86, layout=layout, seed=2, t_max=3)[:]["input_ids"].equal(fixed[86:]["input_ids"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_b_is_block_b_whoever_loads_it(workers):
    stream = Rule110Stream(16, t_max=lambda block: 1 + block)
    loader = DataLoader(stream, batch_size=16, num_workers=workers, collate_fn=default_data_collator)
    for b, batch in zip(range(5), loader):
        assert batch["input_ids"].equal(stream.block(b)["input_ids"])
        assert batch["labels"].equal(stream.block(b)["labels"])
        assert batch["input_ids"][:, 0].max() <= rule110.STEPS_ID + b


def test_tokenizer_round_trip(tmp_path):
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 36
    ids = make_examples(range(20), t_max=32)["input_ids"].tolist()
    tokenizer.save_pretrained(tmp_path)
    for candidate in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        texts = candidate.batch_decode(ids)
        assert texts[0].split()[13] == "<query>"
        assert candidate(texts)["input_ids"] == ids
        padded = candidate(["0 1 1", "1"], padding=True)
        assert padded["input_ids"] == [[2, 3, 3], [0, 0, 3]]
        assert padded["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
        assert candidate.decode([0, 0, 3], skip_special_tokens=True) == "1"
        assert candidate.pad_token_id == rule110.PAD_ID
        with pytest.raises(Exception, match="UNK"):
            candidate("t=33")


class Oracle(torch.nn.Module):
    """Answers right, but for rows rolled further than `sleep_passes` steps, where the last cell is wrong."""

    device = torch.device("cpu")

    def generate(self, prompt, *, max_new_tokens, do_sample, sleep_passes, attention_mask, **kwargs):
        assert not self.training and not do_sample and attention_mask.all()
        assert (prompt[:, -1] == rule110.QUERY_ID).all()
        t = prompt[:, 0].numpy() - rule110.STEPS_ID + 1
        answer = torch.from_numpy(evolve(prompt[:, 1:-1].numpy() - rule110.CELL_ID, t))
        assert answer.shape[1] == max_new_tokens
        answer[t > sleep_passes, -1] ^= 1
        return torch.cat([prompt, answer + rule110.CELL_ID], dim=1)


def test_exact_match_asks_for_the_whole_row():
    model = Oracle().train()
    accuracy = exact_match_by_steps(model, steps=[1, 2, 3], passes=[1, 2], num_examples=30, batch_size=8)
    assert accuracy == {1: {1: 1.0, 2: 0.0, 3: 0.0}, 2: {1: 1.0, 2: 1.0, 3: 0.0}}
    assert model.training


def test_render():
    assert render(torch.tensor([2, 3, 1])) == "░█?"
