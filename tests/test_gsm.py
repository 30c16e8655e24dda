"""Word problems: answers and depths against a reader of our own here, the floor of guessing, splits, refusals."""

import copy
import dataclasses
import functools
import re
from collections import Counter

import pytest

from examples.experiments.tasks.gsm import NAMES, OPERATORS, STYLES, Gsm
from examples.experiments.tasks.task import SPLITS


MINI = Gsm()
TASKS = {
    "mini": MINI,
    "sums and differences": Gsm(operators=["sum", "difference"]),
    "before": Gsm(question="before", context_length=100),
    "topological": Gsm(order="topological"),
    "all operators": Gsm(operators=OPERATORS),
    "modulus 10": Gsm(modulus=10, operators=("sum", "times")),
    "integers": Gsm(modulus=None, operators=OPERATORS),
    "prose": Gsm(style="prose", window_size=36, context_length=180, modulus=None, questions=2),
    "prose before": Gsm(
        style="prose", window_size=36, context_length=180, modulus=None, operators=OPERATORS, question="before"
    ),
    "paper": Gsm(
        style="prose",
        window_size=1998,
        context_length=1998,
        modulus=None,
        operators=OPERATORS,
        names=256,
        questions=1,
        max_depth=8,
    ),
}
SYMBOLS = {"plus": "+", "more than": "+", "minus": "-", "fewer than": "-", "times": "*", "times all": "*"}


def every_task(test):
    return pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)(test)


@functools.cache
def tokenizer_of(task):
    return task.tokenizer()


def sentences(task, example):
    tokenizer, size = tokenizer_of(task), task.sentence_size
    ids = example["context_ids"]
    return [tokenizer.decode(ids[begin : begin + size]) for begin in range(0, len(ids), size)]


def read(task, example):
    """What the sentences say, `{name: (left, symbol, right)}` or `{name: number}`, and what is asked before them."""
    equations, announced = {}, []
    for sentence in sentences(task, example):
        words = sentence.split()
        if "?" in words:
            announced.append(words[2] if task.style == "prose" else words[0])
        elif task.style == "terse":
            name, _, *rest = words
            assert name not in equations
            equations[name] = int(rest[0]) if rest[1:] == [",", "given"] else tuple(rest)
        else:
            name, *rest = sentence.removeprefix("The ").removesuffix(" .").replace("the ", "").split()
            rest = " ".join(rest[1:])
            assert name not in equations
            if given := re.fullmatch(r"exactly (\d+) in number today", rest):
                equations[name] = int(given[1])
            else:
                left, symbol, right = re.fullmatch(
                    r"(\w+) (plus|minus|times|more than|fewer than|times all) (\w+)", rest
                ).groups()
                if "than" in symbol:
                    left, right = right, left
                equations[name] = (left, SYMBOLS[symbol], right)
    return equations, announced


def questions(task, example):
    """Names, and the answers to the questions about them."""
    text = tokenizer_of(task).decode(example["question_ids"])
    name = r"(\w+) \? Answer: (\d+)" if task.style == "terse" else r"How many (\w+) are there \? Answer: (\d+)"
    found = re.findall(name, text)
    assert len(re.sub(name, "", text).strip()) == 0
    return [name for name, _ in found], [int(answer) for _, answer in found]


def work_out(task, equations, name):
    """The value of a quantity and the names of those of its ancestors, itself included, that are operations."""
    if name.isdigit():
        return int(name), set()
    if isinstance(equations[name], int):
        return equations[name], set()
    left, symbol, right = equations[name]
    a, first = work_out(task, equations, left)
    b, second = work_out(task, equations, right)
    assert not first & second
    value = {"+": a + b, "-": a - b, "*": a * b}[symbol]
    if task.modulus is not None:
        value %= task.modulus
    assert 0 <= value < task.num_values
    return value, first | second | {name}


def answers(example):
    return [[i] for i, answer in zip(example["question_ids"], example["answer_mask"]) if answer]


@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_answers_and_depths_are_right(task, split):
    few = task.context_length > 1000
    for example in task.examples(range(20 if few else 500), split=split, seed=1):
        equations, announced = read(task, example)
        asked, found = questions(task, example)
        worked_out = [work_out(task, equations, name) for name in asked]
        assert [value for value, _ in worked_out] == found
        assert [len(operations) for _, operations in worked_out] == example["depths"]
        assert all(1 <= depth <= task.max_depth for depth in example["depths"])
        assert 1 <= len(asked) == len(set(asked)) <= task.questions
        assert announced == (asked if task.question == "before" else [])
        assert task.solve(example) == answers(example)
        assert tokenizer_of(task).batch_decode(answers(example)) == [str(value) for value in found]


@every_task
def test_sentences_fill_windows(task):
    sizes = {len(sentence.split()) for kind, sentence in STYLES[task.style].items() if kind != "asked"}
    assert sizes == {task.sentence_size} and task.window_size % task.sentence_size == 0
    for depth in (None, 1, task.max_depth):
        for example in task.examples(range(10), depth=depth):
            assert len(example["context_ids"]) == task.context_length
            starts, ends = ("The", "How"), (".", "?", "now ?")
            for sentence in sentences(task, example):
                words = sentence.split()
                if task.style == "prose":
                    assert words[0] in starts and words[-1] in ends
                else:
                    assert words[0] in NAMES and words[1] == "="


@every_task
def test_forced_depth(task):
    few = task.context_length > 1000
    for depth in (1, 3, task.max_depth):
        examples = task.examples(range(5 if few else 100), depth=depth, split="eval")
        assert all(set(example["depths"]) == {depth} for example in examples)
        for example in examples:
            assert task.solve(example) == answers(example)
    deeper = task.max_depth + 2
    if task.operators != ("sum", "difference"):
        example = task.examples([0], depth=deeper)[0]
        assert set(example["depths"]) == {deeper} and task.solve(example) == answers(example)


def test_forced_depth_asks_the_same_contexts_as_training():
    for one, other in zip(MINI.examples(range(50)), MINI.examples(range(50), depth=2)):
        # The questions are drawn from the same generator, so that contexts need not be equal, but their shape is.
        depths = [
            sorted(len(work_out(MINI, equations, name)[1]) for name in equations)
            for equations, _ in (read(MINI, one), read(MINI, other))
        ]
        assert all(max(d) <= MINI.max_depth + 1 and set(d) >= set(range(MINI.max_depth + 1)) for d in depths)


def test_curriculum_bounds_the_context_too():
    for example in MINI.examples(range(100), max_depth=2):
        equations, _ = read(MINI, example)
        assert max(example["depths"]) <= 2
        assert max(len(work_out(MINI, equations, name)[1]) for name in equations) <= 3


def test_depths_are_drawn_evenly():
    examples = MINI.examples(range(2000))
    depths = Counter(depth for example in examples for depth in example["depths"])
    assert set(depths) == set(range(1, 7)) and sum(depths.values()) == 8000
    assert min(depths.values()) > 8000 / 6 * 0.9


def test_what_is_asked_cannot_be_told_by_its_use():
    """Of one depth and context, what is asked is as often used by others, and stands as early, as what is not."""
    excess, lateness, used, total = 0.0, 0.0, 0, 0
    for example in MINI.examples(range(2000)):
        equations, _ = read(MINI, example)
        asked, _ = questions(MINI, example)
        names = list(equations)
        operands = {word for equation in equations.values() if isinstance(equation, tuple) for word in equation}
        depths = {name: len(work_out(MINI, equations, name)[1]) for name in names}
        for name in asked:
            alike = [other for other in names if depths[other] == depths[name]]
            excess += (name in operands) - sum(other in operands for other in alike) / len(alike)
            lateness += names.index(name) - sum(map(names.index, alike)) / len(alike)
            used += name in operands
            total += 1
    assert abs(excess / total) < 0.015 and abs(lateness / total) < 0.15
    assert 0.3 < used / total < 0.9


def test_order():
    def forward_references(task):
        count = 0
        for example in task.examples(range(100)):
            equations, _ = read(task, example)
            names = list(equations)
            for place, equation in enumerate(equations.values()):
                if isinstance(equation, tuple):
                    count += sum(word in names[place:] for word in equation)
        return count

    assert forward_references(TASKS["topological"]) == 0
    assert forward_references(MINI) > 500
    # Givens do not all come first, nor does the deepest quantity come last.
    firsts = {sentences(MINI, example)[0].endswith("given") for example in TASKS["topological"].examples(range(5))}
    lasts = [sentences(MINI, example)[-1] for example in TASKS["topological"].examples(range(50))]
    assert firsts == {True} and any(last.endswith("given") for last in lasts)


def accuracy(task, depth, operations, num_examples=400):
    right = total = 0
    for example in task.examples(range(num_examples), split="eval", depth=depth):
        pairs = list(zip(task.shallow_solve(example, operations), answers(example)))
        right += sum(guess == answer for guess, answer in pairs)
        total += len(pairs)
    return right / total


@pytest.mark.parametrize("operations", ["none", "half", "all but one"])
@pytest.mark.parametrize(
    "name, floor",
    [("mini", 1 / 7), ("sums and differences", 1 / 7), ("all operators", 1 / 6), ("integers", 0.02)],
)
def test_no_shortcut(name, floor, operations):
    """Whoever follows fewer operations than it takes answers about as well as by guessing."""
    task = TASKS[name]
    for depth in (2, 4, 6):
        followed = {"none": 0, "half": depth // 2, "all but one": depth - 1}[operations]
        assert accuracy(task, depth, followed) < floor + 0.05


@every_task
def test_enough_operations_solve(task):
    depth = 4
    for example in task.examples(range(3 if task.context_length > 1000 else 20), depth=depth):
        assert task.shallow_solve(example, depth) == task.solve(example)


@pytest.mark.parametrize("name", ["mini", "all operators", "integers"])
def test_answers_do_not_tell_depths(name):
    task = TASKS[name]
    values = {}
    for depth in (1, 6):
        found = [answer[0] - 1 for e in task.examples(range(1500), depth=depth) for answer in answers(e)]
        values[depth] = Counter(value * 5 // task.num_values for value in found)
        assert max(Counter(found).values()) / len(found) < 1.5 / task.num_values + 0.02
    shares = [[counts[i] / counts.total() for i in range(5)] for counts in values.values()]
    assert sum(abs(a - b) for a, b in zip(*shares)) / 2 < (0.12 if task.modulus is None else 0.04)


def test_examples_are_the_same_on_any_machine():
    """If this fails, published results no longer belong to the data that the code makes."""
    example = MINI.examples([7], seed=3)[0]
    assert tokenizer_of(MINI).decode(example["context_ids"] + example["question_ids"]) == (
        "pigs = swans - 5 rats = cows - 1 robins = 0 , given beetles = 0 , given "
        "swans = 1 , given horses = 2 , given crows = 2 , given dogs = cows - 1 "
        "bees = crows + 2 wasps = pigs + bees wrens = rats + 6 geese = beetles + wasps "
        "cows = flies + 4 foxes = bees - 5 sheep = cows - 2 flies = wasps + 2 "
        "cows ? Answer: 6 foxes ? Answer: 6 dogs ? Answer: 5 bees ? Answer: 4"
    )
    assert example["depths"] == [5, 2, 6, 1]
    task = dataclasses.replace(TASKS["prose before"], window_size=9, context_length=90, max_depth=2, questions=1)
    example = task.examples([7], seed=3, split="eval")[0]
    assert task.tokenizer().decode(example["context_ids"] + example["question_ids"]) == (
        "How many flies are there in all now ? "
        "The bees are 9 fewer than the ants . "
        "The deer are exactly 48 in number today . "
        "The rats are 2 times all the deer . "
        "The pigs are exactly 39 in number today . "
        "The flies are 3 times all the robins . "
        "The snails are the robins plus the pigs . "
        "The wrens are 5 fewer than the ants . "
        "The ants are 2 times all the snails . "
        "The robins are exactly 8 in number today . "
        "How many flies are there ? Answer: 24"
    )


@pytest.mark.parametrize("name", ["mini", "integers", "before"])
def test_splits_share_no_problem_not_even_renamed(name):
    task = TASKS[name] if name == "before" else dataclasses.replace(TASKS[name], context_length=20, max_depth=1)

    def blind(example):
        """Kinds with numbers or values: what neither names nor order change."""
        equations, _ = read(task, example)
        lines = []
        for quantity, equation in equations.items():
            operator = equation[1] if isinstance(equation, tuple) else ""
            number = equation[2] if operator and equation[2].isdigit() else ""
            lines.append((operator, number, "" if number else work_out(task, equations, quantity)[0]))
        return tuple(sorted(map(str, lines)))

    found = {
        split: {blind(e) for seed in range(3) for e in task.examples(range(500), split=split, seed=seed)}
        for split in SPLITS
    }
    assert not found["train"] & found["eval"]
    assert all(len(problems) > 300 for problems in found.values())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"question": "within"}, "question must be"),
        ({"order": "sorted"}, "order must be"),
        ({"style": "verse"}, "style must be"),
        ({"operators": ()}, "operators must be some"),
        ({"operators": ("sum", "root")}, "operators must be some"),
        ({"operators": ("sum", "sum")}, "operators must be distinct"),
        ({"operators": ("sum",), "modulus": None}, "both of a pair"),
        ({"operators": ("product",), "modulus": None}, "both of a pair"),
        ({"operators": ("sum", "difference", "more"), "modulus": None}, "both of a pair"),
        ({"modulus": None, "max_value": 8}, "max_value must be"),
        ({"modulus": 2}, "modulus must be at least"),
        ({"modulus": 10, "operators": OPERATORS}, "modulus must be prime"),
        ({"shallowest": 2}, "shallowest must be 0 or 1"),
        ({"questions": 0}, "must be positive"),
        ({"max_depth": 0}, "must be positive"),
        ({"window_size": 24}, "window_size must be"),
        ({"window_size": 0}, "window_size must be"),
        ({"questions": 6}, "window_size must hold all questions, 24 tokens, got 20"),
        ({"style": "prose"}, "window_size must be"),
        ({"context_length": 70}, "context_length must be"),
        ({"context_length": 0}, "context_length must be"),
        ({"names": 15}, "names must be"),
        ({"names": 257}, "names must be"),
        ({"max_depth": 15}, "context_length must hold"),
        ({"max_depth": 8, "operators": ("sum", "difference")}, "context_length must hold"),
        ({"question": "before", "context_length": 40}, "context_length must hold"),
    ],
)
def test_impossible_tasks_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Gsm(**fields)


def test_impossible_examples_are_refused():
    with pytest.raises(ValueError, match="split must be"):
        MINI.examples([0], split="test")
    for kwargs in ({"depth": 0}, {"max_depth": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            MINI.examples([0], **kwargs)
    with pytest.raises(ValueError, match="context_length must hold"):
        MINI.examples([0], depth=15)
    tiny = Gsm(context_length=20, max_depth=1, modulus=3, operators=("times",), questions=1)
    try:  # six problems at most, all of which may have fallen to one split: an end, rather than a search for ever
        tiny.examples(range(20), split="eval")
    except ValueError as error:
        assert "too few problems" in str(error)


@pytest.mark.parametrize("name", ["mini", "before", "prose", "prose before"])
def test_malformed_examples_are_refused(name):
    task = TASKS[name]
    example = task.examples([0])[0]
    size, tokenizer = task.sentence_size, tokenizer_of(task)
    names = [next(word for word in line.split() if word in NAMES) for line in sentences(task, example)]
    definitions = [i for i, line in enumerate(sentences(task, example)) if "?" not in line]
    absent = next(word for word in NAMES if word not in names)

    def rewrite(change):
        broken = copy.deepcopy(example)
        change(broken)
        with pytest.raises(ValueError, match="malformed example"):
            task.solve(broken)

    def replace_sentence(broken, i, ids):
        broken["context_ids"][i * size : (i + 1) * size] = ids

    def rename(broken, old, new, where="context_ids"):
        old, new = tokenizer.convert_tokens_to_ids([old, new])
        broken[where] = [new if i == old else i for i in broken[where]]

    def self_reference(broken):
        kind = "{q} = {q} + {q}" if task.style == "terse" else "The {q} are the {q} plus the {q} ."
        asked = questions(task, example)[0][0]
        at = next(i for i in definitions if names[i] == asked)
        replace_sentence(broken, at, tokenizer(kind.replace("{q}", asked))["input_ids"])

    rewrite(lambda e: e["context_ids"].pop())
    rewrite(lambda e: e["context_ids"].pop(0))
    rewrite(lambda e: e.update(context_ids=e["context_ids"][size:]))
    rewrite(lambda e: e["context_ids"].__setitem__(0, 0))
    rewrite(lambda e: e["context_ids"].__setitem__(0, 9999))
    rewrite(lambda e: e["context_ids"].__setitem__(slice(0, 2), e["context_ids"][1::-1]))
    first, last = (example["context_ids"][i * size : (i + 1) * size] for i in (definitions[0], definitions[-1]))
    rewrite(lambda e: replace_sentence(e, definitions[-1], first))
    rewrite(lambda e: replace_sentence(e, definitions[0], last))
    rewrite(self_reference)
    rewrite(lambda e: rename(e, questions(task, example)[0][0], absent))
    rewrite(lambda e: rename(e, questions(task, example)[0][0], absent, "question_ids"))
    rewrite(lambda e: rename(e, *questions(task, example)[0][:2], "question_ids"))
    rewrite(lambda e: e["question_ids"].pop())
    rewrite(lambda e: e.update(question_ids=[], answer_mask=[], depths=[]))
    rewrite(lambda e: e["question_ids"].__setitem__(-1, e["question_ids"][-2]))
    rewrite(lambda e: e["answer_mask"].__setitem__(0, 1))
    rewrite(lambda e: e["answer_mask"].pop())
    rewrite(lambda e: e["depths"].pop())
    if task.question == "before":
        rewrite(lambda e: replace_sentence(e, 0, first))
        late = example["context_ids"][:size]
        rewrite(lambda e: e.update(context_ids=e["context_ids"][size:] + late))
    if task.modulus is None:
        given = "The {q} are exactly {n} in number today ."
        lines = [given.replace("{q}", names[i]).replace("{n}", "99") for i in definitions]
        big = f"The {names[definitions[0]]} are the {names[definitions[1]]} plus the {names[definitions[2]]} ."
        asked = questions(task, example)[0]
        for name in asked:
            lines[names[len(names) - len(definitions) :].index(name)] = big.replace(names[definitions[0]], name, 1)

        def overflow(broken):
            for i, line in zip(definitions, lines):
                replace_sentence(broken, i, tokenizer(line)["input_ids"])

        rewrite(overflow)


@every_task
def test_tokens_are_a_vocabulary_that_begins_with_values(task):
    tokenizer = tokenizer_of(task)
    assert len(tokenizer) == len(task.vocabulary) == len(set(task.vocabulary))
    assert tokenizer.convert_tokens_to_ids(str(task.num_values - 1)) == task.num_values


def test_mini_fits_a_laptop():
    assert len(tokenizer_of(MINI)) < 64
    batch = MINI.collator()(MINI.examples(range(16)))
    assert batch["input_ids"].shape == (16, 96) and batch["attention_mask"].all()
    assert (batch["labels"] >= 0).sum() == 64


def test_names():
    assert len(set(NAMES)) == len(NAMES) == 256
    words = {word for style in STYLES.values() for sentence in style.values() for word in sentence.split()}
    assert not words & set(NAMES) and all(re.fullmatch("[a-z]+", name) for name in NAMES)


def test_given_numbers_are_asked_for_on_demand():
    task = dataclasses.replace(MINI, shallowest=0)
    depths = Counter()
    for example in task.examples(range(500)):
        answers = [token for token, answer in zip(example["question_ids"], example["answer_mask"]) if answer]
        assert sum(task.solve(example), []) == answers
        depths.update(example["depths"])
    assert set(depths) == set(range(7))
    assert 0.8 / 7 < depths[0] / depths.total() < 1.2 / 7
    assert {depth for example in task.examples(range(50), max_depth=0) for depth in example["depths"]} == {0}
    assert {depth for example in task.examples(range(50), depth=0) for depth in example["depths"]} == {0}
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        MINI.examples([0], depth=0)
