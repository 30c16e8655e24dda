"""What all tasks share: the collator's windows, padding and labels, the stream's blocks, fixed sets."""

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader

from examples.experiments.tasks.depo import Depo
from examples.experiments.tasks.task import (
    IGNORE,
    SPLITS,
    Task,
    TaskStream,
    WindowCollator,
    make_dataset,
    make_stream,
    runs,
)
from modeling_sleep import SleepConfig, SleepForCausalLM


TASK = Depo(words=8, max_depth=3, queries=2, window_size=8)  # contexts of 6 to 16 tokens, one or two windows
TWO_TOKENS = dataclasses.replace(TASK, word_tokens=(1, 2), window_size=12)
TASKS = {"one token": TASK, "two tokens": TWO_TOKENS, "fixed": dataclasses.replace(TASK, context_length=24)}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_collator_puts_every_token_in_its_place(task):
    for start in range(0, 200, 10):
        examples = task.examples(range(start, start + 10))
        batch = task.collator()(examples)
        longest = max(len(example["context_ids"]) for example in examples)
        context = task.context_length or next(n for n in range(0, 99, task.window_size) if n >= longest)
        questions = max(len(example["question_ids"]) for example in examples)
        for tensor in batch.values():
            assert tensor.shape == (10, context + questions) and tensor.dtype == torch.long
        for i, example in enumerate(examples):
            fill = -len(example["context_ids"]) % task.window_size  # is read, so that the questions begin a window
            left = context - fill - len(example["context_ids"])
            right = questions - len(example["question_ids"])
            pad = task.tokenizer().pad_token_id
            read = example["context_ids"] + [pad] * fill + example["question_ids"]
            assert batch["input_ids"][i].tolist() == [pad] * left + read + [pad] * right
            assert batch["attention_mask"][i].tolist() == [0] * left + [1] * len(read) + [0] * right
            labels = [
                token if labelled else IGNORE
                for token, labelled in zip(example["question_ids"], example["answer_mask"])
            ]
            assert batch["labels"][i].tolist() == [IGNORE] * context + labels + [IGNORE] * right


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_labels_are_the_answers_and_the_tokens_they_stand_on(task):
    examples = task.examples(range(64), split="eval")
    batch = task.collator()(examples)
    labelled = batch["labels"] != IGNORE
    assert batch["labels"][labelled].equal(batch["input_ids"][labelled])
    assert batch["attention_mask"][labelled].all()
    for labels, example in zip(batch["labels"], examples):
        answers = [token for answer in task.solve(example) for token in answer]
        assert labels[labels != IGNORE].tolist() == answers


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@torch.no_grad()
def test_questions_see_nothing_of_a_context_but_what_a_sleep_has_kept(task):
    """However few tokens it has: attention alone, which keeps nothing, answers as if there were another context."""
    attention = ["sleep_attention"] * 2
    sizes = dict(vocab_size=len(task.tokenizer()), window_size=task.window_size, num_hidden_layers=2)
    model = SleepForCausalLM(SleepConfig.from_preset("tiny", layer_types=attention, sleep_passes=1, **sizes)).eval()
    examples = task.examples(range(12))
    others = [{**x, "context_ids": x["context_ids"][::-1]} for x in examples]
    first, second = map(task.collator(), (examples, others))
    assert not first["input_ids"].equal(second["input_ids"])
    questions = slice(-max(len(x["question_ids"]) for x in examples), None)
    logits = [model(x["input_ids"], x["attention_mask"]).logits[:, questions] for x in (first, second)]
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


def test_a_full_context_is_not_padded():
    (example,) = TASK.examples([0], split="eval")
    batch = TASK.collator()([example])
    assert batch["input_ids"].shape == (1, 16 + 8) and batch["attention_mask"].all()


def test_context_length_is_kept_or_refused():
    examples = TASK.examples(range(4), split="eval")
    assert WindowCollator(8, 0, 32)(examples)["input_ids"].shape == (4, 32 + 8)
    assert WindowCollator(8, 0, 16)(examples)["input_ids"].shape == (4, 16 + 8)
    with pytest.raises(ValueError, match="multiple of the window"):
        WindowCollator(8, 0, 20)
    with pytest.raises(ValueError, match="16 tokens, more than the context_length of 8"):
        WindowCollator(8, 0, 8)(examples)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_batch_b_is_block_b_whoever_loads_it(workers, start):
    stream = TaskStream(TASK, 6, max_depth=lambda block: 1 + block, start=start, seed=4)
    loader = DataLoader(stream, batch_size=6, num_workers=workers, collate_fn=TASK.collator())
    for b, batch in zip(range(start, start + 5), loader):
        expected = TASK.examples(range(6 * b, 6 * b + 6), seed=4, max_depth=1 + b)
        assert stream.block(b) == expected
        for name, tensor in TASK.collator()(expected).items():
            assert batch[name].equal(tensor)
        assert max(depth for example in expected for depth in example["depths"]) <= 1 + b


def test_a_stream_leaves_out_the_labels_of_deeper_answers():
    whole, stream = TaskStream(TASK, 16), TaskStream(TASK, 16, deepest_asked=[1, None, 3, 2].__getitem__)
    for block, deepest in enumerate([1, 3, 3, 2]):
        for example, full in zip(stream.block(block), whole.block(block), strict=True):
            assert (example["context_ids"], example["question_ids"]) == (full["context_ids"], full["question_ids"])
            answers = dict(zip(runs(full["answer_mask"]), full["depths"]))
            kept = {place: depth for place, depth in answers.items() if depth <= deepest}
            assert dict(zip(runs(example["answer_mask"]), example["depths"])) == kept
    assert any(len(example["depths"]) < 2 for example in stream.block(0))
    labels = TASK.collator()(stream.block(0))["labels"]
    assert (labels != IGNORE).sum() == sum(sum(example["answer_mask"]) for example in stream.block(0)) > 0
    with pytest.raises(ValueError, match="none of the 16 examples of step 0 has a question of at most 0 hops"):
        TaskStream(TASK, 16, deepest_asked=lambda block: 0).block(0)


@pytest.mark.parametrize("split", SPLITS)
def test_stream_and_fixed_set_agree(split):
    fixed = make_dataset(TASK, 40, split=split, seed=2, depth=3)
    assert len(fixed) == 40
    for example, streamed in zip(fixed, TaskStream(TASK, 8, split=split, seed=2, depth=3)):
        assert example == streamed
    for streamed in (make_stream(TASK, split=split, seed=2, depth=3), make_stream(TASK, split=split, seed=2, depth=3)):
        assert list(streamed.take(40)) == fixed.to_list()
        assert list(streamed.skip(30).take(5)) == fixed.select(range(30, 35)).to_list()
    assert next(iter(make_stream(TASK, start=7, split=split, seed=2, depth=3))) == fixed[7]
    later = make_dataset(TASK, 10, start=30, split=split, seed=2, depth=3)
    assert later.to_list() == fixed.select(range(30, 40)).to_list()


def test_a_dataset_can_be_collated():
    (batch,) = DataLoader(make_dataset(TASK, 5), batch_size=5, collate_fn=TASK.collator())
    for name, tensor in TASK.collator()(TASK.examples(range(5))).items():
        assert batch[name].equal(tensor)


def test_a_task_is_a_value():
    assert isinstance(TASK, Task) and (TASK.name, TASK.depth_name) == ("depo", "hops")
    assert dataclasses.replace(TASK) == TASK and hash(dataclasses.replace(TASK)) == hash(TASK)
    assert Depo(**dataclasses.asdict(TWO_TOKENS)) == TWO_TOKENS
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASK.words = 9
    with pytest.raises(TypeError):
        Task(max_depth=1)
