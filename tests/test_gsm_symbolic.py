"""GSM-Symbolic: texts and answers against the source, splits, templates, the tokenizer, refusals."""

import copy
import hashlib
import random
import re
from collections import Counter, defaultdict

import pytest
import reasoning_gym
from transformers import AutoTokenizer

from examples.experiments.tasks import gsm_symbolic
from examples.experiments.tasks.gsm_symbolic import END, GsmSymbolic
from examples.experiments.tasks.task import SPLITS


TASK = GsmSymbolic()
BEFORE = GsmSymbolic(question="before")
TOKENIZER = TASK.tokenizer()
INSTRUCTION = "Give the result as your final answer. Do not include units."


def texts(example):
    """Context, question and answer."""
    context = TOKENIZER.decode(example["context_ids"])
    question, answer = TOKENIZER.decode(example["question_ids"]).split(" Answer:")
    return context, question, answer.removesuffix(END)


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_well_formed(split):
    for example in TASK.examples(range(1000), split=split, seed=1):
        context, question, answer = texts(example)
        assert question[-1] in "?." and context[-1] in ".?!" and INSTRUCTION not in context + question
        assert question not in context and re.fullmatch(r"0|[1-9]\d*", answer)
        labelled = [i for i, answered in zip(example["question_ids"], example["answer_mask"]) if answered]
        assert TOKENIZER.convert_ids_to_tokens(labelled) == [*answer, END]
        assert TASK.solve(example) == [labelled]
        assert len(example["depths"]) == 1 and 2 <= example["depths"][0] <= 7


def test_problems_are_the_sources():
    """With the source's own numbering of problems: the same words, and the answer of its worked solution."""
    source = reasoning_gym.create_dataset("gsm_symbolic", seed=5, size=1000)
    templates, generators = gsm_symbolic._source()
    assert len(templates) == len(set(templates)) == 85
    dropped = 0
    for i, problem in enumerate(source):

        class Fixed(random.Random):  # the source draws the template elsewhere
            def choice(self, options, first=[source.task_indices[i]]):  # noqa: B006
                return first.pop() if first else super().choice(options)

        drawn = gsm_symbolic._draw(Fixed(5 + i))
        if drawn is None:
            dropped += 1
            continue
        context, question, answer, steps = drawn
        assert f"{context} {question} {INSTRUCTION}" == problem["question"]
        assert answer == problem["answer"] == str(int(problem["metadata"]["answer_value"]))
        assert re.search(r"#### (.*)$", problem["metadata"]["answer_cot"])[1].replace(",", "") in (
            answer,
            answer + ".0",
        )
    assert dropped < 60


@pytest.mark.parametrize(
    "solution, expected",
    [
        ("So 3 * 4 = 12 apples\n#### 12", True),
        ("She needs 78 / 12 = 6 pans\n#### 6", False),  # the source cuts off
        ("5*0.5=2 tubes of blue paint", False),
        ("That is 120 / 5 = 24 minutes, and 24 + 2 = 25 minutes", False),
        ("80% of 1,000 students are 0.8*1,000 = 800 students", True),
        ("a fee of $10 + (20% * $50) = $20 in all", True),
        ("He walks 13 miles in 52 minutes, or 13/52 = 1/4 miles per minute", True),
        ("for 12÷1/2=24 minutes", True),  # not read
        ("so 2x+30=118", True),
        ("136 + T = 219", True),
        ("1 / 3 = 0.33", True),
        ("no equation", True),
    ],
)
def test_adds_up(solution, expected):
    assert gsm_symbolic.adds_up(solution) == expected


def test_what_does_not_add_up_is_dropped():
    templates, generators = gsm_symbolic._source()
    wrong = Counter()
    for template in templates:
        for i in range(20):
            solution = generators[template](random.Random(i), 1.0)["metadata"]["answer_cot"]
            wrong[template] += not gsm_symbolic.adds_up(solution)
    assert 0 < wrong.total() < 0.02 * 20 * len(templates)
    assert max(wrong.values()) < 20  # of no template all, so all depths stay


def test_a_template_has_one_depth():
    templates, generators = gsm_symbolic._source()
    depths, single_sentences = defaultdict(set), set()
    for template in templates:
        for i in range(30):
            problem = generators[template](random.Random(i), 1.0)
            depths[template].add(sum("=" in line for line in problem["metadata"]["answer_cot"].splitlines()))
            if not re.search(r"[.?!] \w", problem["question"].removesuffix(f" {INSTRUCTION}")):
                single_sentences.add(template)
    assert len(single_sentences) == 2 and all(len(found) == 1 for found in depths.values())
    counts = Counter(found.pop() for template, found in depths.items() if template not in single_sentences)
    assert counts == {2: 27, 3: 25, 4: 17, 5: 10, 6: 2, 7: 2}


def test_question_before_is_the_same_problem():
    for after, before in zip(TASK.examples(range(100)), BEFORE.examples(range(100))):
        assert before["question_ids"] == after["question_ids"]
        context, question, _ = texts(after)
        assert texts(before)[0] == f"{question} {context}"
        assert BEFORE.solve(before) == TASK.solve(after)
        for task, example in ((TASK, before), (BEFORE, after)):
            with pytest.raises(ValueError, match="malformed example"):
                task.solve(example)


def test_depths():
    for depth in (2, 4, 7):
        assert {e["depths"][0] for e in TASK.examples(range(20), depth=depth)} == {depth}
    assert {e["depths"][0] for e in TASK.examples(range(100), max_depth=3)} == {2, 3}
    assert {e["depths"][0] for e in TASK.examples(range(20), max_depth=1)} == {2}  # a curriculum may begin at 1
    assert {e["depths"][0] for e in GsmSymbolic(max_depth=4).examples(range(200))} == {2, 3, 4}
    assert {e["depths"][0] for e in TASK.examples(range(500))} == set(range(2, 8))


def test_splits_and_seeds():
    problems = {
        split: [texts(e)[:2] for seed in (0, 1) for e in TASK.examples(range(1500), split=split, seed=seed)]
        for split in SPLITS
    }
    assert not set(problems["train"]) & set(problems["eval"])
    for found in problems.values():
        assert len(set(found)) > 0.97 * len(found)
        assert len(set(found[:1500]) & set(found[1500:])) < 30  # seeds share no more than chance makes them


@pytest.mark.parametrize("split", SPLITS)
def test_an_example_depends_on_split_seed_and_index_alone(split):
    together = TASK.examples(range(30), seed=5, split=split)
    alone = [GsmSymbolic().examples([i], seed=5, split=split)[0] for i in reversed(range(30))]
    assert together == alone[::-1]
    shifted = [texts(e) for e in TASK.examples(range(1, 31), seed=4, split=split)]
    assert not {texts(e) for e in together} & set(shifted)  # as they would with reasoning-gym's own numbering


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    assert texts(TASK.examples([0])[0]) == (
        "Isabella is trying to decide whether to do her taxes herself or hire an accountant. If she does it herself, "
        "she'll be able to do 4 fewer hours of consulting work, losing £20/hour in missed income. The accountant "
        "charges £56.",
        "How much more money will she have if she hires the accountant?",
        "24",
    )
    vocabulary = "\n".join(sorted(TOKENIZER.get_vocab(), key=TOKENIZER.get_vocab().get))
    assert hashlib.sha256(vocabulary.encode()).hexdigest()[:16] == "1ecd70687140101c"


def test_tokenizer(tmp_path):
    assert len(TOKENIZER) == 1024 and TOKENIZER.pad_token_id == 0 and TOKENIZER.eos_token == END
    assert not [token for token in TOKENIZER.get_vocab() if re.search(r"\d.|.\d", token)]
    TOKENIZER.save_pretrained(tmp_path)
    examples = TASK.examples(range(200), split="eval")
    for candidate in (TOKENIZER, AutoTokenizer.from_pretrained(tmp_path)):
        for part in ("context_ids", "question_ids"):
            ids = [example[part] for example in examples]
            assert candidate(candidate.batch_decode(ids))["input_ids"] == ids
        assert candidate.decode(candidate("Zoë paid 1,250 €?")["input_ids"]) == "Zoë paid 1,250 €?"
    gsm_symbolic._train_tokenizer.cache_clear()
    assert TASK.tokenizer().get_vocab() == TOKENIZER.get_vocab()
    assert len(GsmSymbolic(vocab_size=400).tokenizer()) == 400


def test_batches():
    batch = TASK.collator()(TASK.examples(range(16)))
    assert (batch["labels"] >= 0).sum() > 16
    task = GsmSymbolic(window_size=16, context_length=64)
    examples = task.examples(range(300))
    assert max(len(example["context_ids"]) for example in examples) <= 64
    assert task.collator()(examples)["input_ids"].shape[1] < 64 + 100


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_depth": 1}, "max_depth must be"),
        ({"max_depth": 8}, "max_depth must be"),
        ({"question": "within"}, "question must be"),
        ({"window_size": 0}, "window_size must be"),
        ({"context_length": 100}, "context_length must be"),
        ({"context_length": 0}, "context_length must be"),
        ({"vocab_size": 100}, "vocab_size must be"),
    ],
)
def test_impossible_tasks_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GsmSymbolic(**fields)


def test_impossible_examples_are_refused():
    with pytest.raises(ValueError, match="split must be"):
        TASK.examples([0], split="test")
    for kwargs in ({"depth": 1}, {"depth": 8}, {"max_depth": 0}, {"max_depth": 8}):
        with pytest.raises(ValueError, match="the number of steps, must be"):
            TASK.examples([0], **kwargs)
    with pytest.raises(ValueError, match="too short"):
        GsmSymbolic(window_size=4, context_length=4).examples([0])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(context_ids=[]),
        lambda e: e["context_ids"].append(1),
        lambda e: e["context_ids"].append(1024),
        lambda e: e["question_ids"].append(1),
        lambda e: e["answer_mask"].__setitem__(0, 1),
        lambda e: e["answer_mask"].__setitem__(-1, 0),
        lambda e: e.update(answer_mask=[0] * len(e["answer_mask"])),
        lambda e: e["question_ids"].__setitem__(-1, e["question_ids"][0]),
        lambda e: e["question_ids"].__setitem__(-2, e["question_ids"][0]),
        lambda e: e.update(depths=[]),
        lambda e: e.update(depths=[1]),
        lambda e: e.update(context_ids=TOKENIZER(texts(e)[1])["input_ids"] + e["context_ids"]),
    ],
)
def test_malformed_examples_are_refused(change):
    example = copy.deepcopy(TASK.examples([3])[0])
    TASK.solve(example)
    change(example)
    with pytest.raises(ValueError, match="malformed example"):
        TASK.solve(example)
