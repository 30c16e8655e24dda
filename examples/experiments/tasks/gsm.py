"""Word problems by their number of operations: what is a quantity that is defined through others?

    terse, 5 tokens a sentence    ducks = hens + 2   geese = ducks - cows   hens = 3 , given   cows = 4 , given   ...
                                  geese ? Answer: 1
    prose, 9 tokens a sentence    The ducks are 2 more than the hens . The hens are exactly 3 in number today . ...
                                  How many geese are there ? Answer: 1

In the manner of GSM-Infinite (arXiv 2502.05252), with a generator of our own. Every sentence defines one quantity,
every quantity is defined once, and the sentences are shuffled. The depth of a question is the number of operations
that its answer takes. There is no chain of thought: the answer, one token, follows `Answer:` at once.

What is notable:
- questions ask for quantities picked at random among all those of a depth, so a distractor is what another question
  would have asked for, and nothing but its depth marks a quantity that is asked for
- an operation's operands share no ancestor, so nothing cancels and all operations below a quantity are needed
- all sentences are equally long and fill windows exactly: none is cut by the end of a window
- a hash of kinds and numbers, blind to names and order, decides the split of a problem, so that no evaluation problem
  is in training, not even renamed or reordered, whatever the seeds
- in topological order a reader may compute each value as it is defined; shuffled, it meets quantities before those
  that define them, and what the sleep must keep are equations

No shortcut: with a modulus m, given numbers are uniform and every operation but "product" is a bijection of each of
its operands, so as long as one quantity below is unknown all answers are equally likely: 1/m, exactly, over both
splits together. (A small task has few sets of kinds and numbers, and then the answers of a split are less even: the
eval split of `gsm-mini` has 10 sets, and one answer in up to 40 % of the problems of a depth.) A product has
no factor 0 and leaves 1/(m - 1), and so does a number of a sentence left unread, as none is 0: modulo 3, whoever
follows everything but one such number is right every other time. Plain integers leak (the sum of 70 and something is
at least 70), the more the more operations were followed. Share of right answers of [`Gsm.shallow_solve`], which
follows some of the operations, on the eval split (tests/test_gsm.py asserts these, with a margin):

    operations it takes                  1     2     4     6
    modulo 7, defaults     none        .143  .150  .139  .136     floor 1/7 = .143
                           half              .145  .163  .136
                           all but one       .145  .152  .163
    modulo 7, all kinds    none        .142  .135  .127  .141     floor of a product 1/6 = .167
                           half              .145  .138  .130
                           all but one       .145  .140  .141
    0..99, defaults        none        .011  .014  .009  .015     floor 1/100
                           half              .014  .018  .017
                           all but one       .014  .021  .036
    0..99, all kinds       none        .011  .010  .014  .015     floor 1/100
                           half              .025  .025  .032
                           all but one       .025  .039  .056

(about 2100 questions a number: standard errors of .008 modulo 7 and .002 to .005 on plain integers.)
"""

import dataclasses
import functools
import math
import random
import re
import zlib
from collections import Counter, deque
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from .task import (
    Example,
    Task,
    check_choice,
    check_context_length,
    check_questions_fit,
    draw_depths,
    word_level_tokenizer,
)


QUESTION_PLACES = ("after", "before")
ORDERS = ("shuffled", "topological")
UNARY = ("more", "fewer", "times")  # of a quantity and a number; the others are of two quantities
OPERATORS = ("sum", "difference", "product") + UNARY
KIND_CODES = {kind: i << 32 for i, kind in enumerate(("given",) + OPERATORS)}  # room for any number
OPPOSITES = {"sum": "difference", "difference": "sum", "more": "fewer", "fewer": "more"}

# {q} is defined by {x} and by {y}, a quantity, or {n}, a number. The last two are the question before the context,
# as long as a sentence, and the question after it.
STYLES = {
    "terse": {
        "given": "{q} = {n} , given",
        "sum": "{q} = {x} + {y}",
        "difference": "{q} = {x} - {y}",
        "product": "{q} = {x} * {y}",
        "more": "{q} = {x} + {n}",
        "fewer": "{q} = {x} - {n}",
        "times": "{q} = {x} * {n}",
        "announced": "{q} = ? , asked",
        "asked": "{q} ? Answer:",
    },
    "prose": {
        "given": "The {q} are exactly {n} in number today .",
        "sum": "The {q} are the {x} plus the {y} .",
        "difference": "The {q} are the {x} minus the {y} .",
        "product": "The {q} are the {x} times the {y} .",
        "more": "The {q} are {n} more than the {x} .",
        "fewer": "The {q} are {n} fewer than the {x} .",
        "times": "The {q} are {n} times all the {x} .",
        "announced": "How many {q} are there in all now ?",
        "asked": "How many {q} are there ? Answer:",
    },
}
NOUNS = """
    hens ducks geese cows pigs goats sheep horses cats dogs mice rats foxes wolves bears deer crows owls hawks doves
    swans larks robins wrens bees wasps ants flies moths beetles spiders snails frogs toads newts snakes lizards
    turtles crabs shrimps lobsters oysters clams squids whales seals otters beavers lions tigers zebras giraffes camels
    llamas monkeys apes parrots penguins pelicans storks herons gulls eagles ravens apples pears plums figs dates limes
    lemons oranges melons grapes berries cherries peaches mangoes olives bananas carrots onions leeks beans peas beets
    radishes turnips potatoes tomatoes peppers pumpkins squashes cabbages nuts seeds oaks elms pines firs birches
    maples willows palms roses tulips lilies daisies poppies violets ferns reeds cups plates bowls forks knives spoons
    pots pans jars bottles cans boxes bags baskets buckets barrels chairs tables desks beds sofas lamps clocks mirrors
    rugs curtains pillows blankets towels sheets candles vases books pens pencils papers maps letters stamps cards
    coins keys locks bells drums flutes harps pianos hats caps coats shirts skirts socks shoes boots gloves scarves
    belts rings beads ribbons buttons pins hammers nails screws saws axes shovels rakes hoes ropes chains wheels gears
    pipes wires bricks tiles cars trucks buses trains boats ships rafts canoes bikes carts sleds kites planes rockets
    tractors wagons dolls balls marbles puzzles dice tops blocks swings slides tents flags masks toys robots puppets
    balloons cakes pies buns rolls loaves cookies muffins waffles pancakes candies mints chips pickles sausages eggs
    cheeses rocks stones gems pearls shells bones feathers leaves twigs logs stumps roots hills lakes rivers islands
"""
NAMES = NOUNS.split()

PAD = "<pad>"
MAX_CONSTANT = 9  # of plain integers: large differences would tell much about either side
MAX_FACTOR = 4  # of plain integers: n times something is a multiple of n
EVAL_SHARE = 4  # one problem in four belongs to the eval split
ATTEMPTS = 200  # at an operation, before the whole problem is drawn anew, and at a problem
PRIOR_EXAMPLES = 2000  # from which the shallow solver knows which values are likely


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm(Task):
    """
    Word problems by their number of operations.

    At the paper's scale: `style="prose"`, `window_size=1998`, `context_length=1998`, `modulus=None`,
    `operators=OPERATORS`, `names=256`, `questions=1`.

    Parameters
    ----------
    max_depth : int
        Most operations in training. Contexts are drawn for it, with quantities of one operation more, so that the
        deepest questions too ask for what others may be defined by.
    shallowest : int
        Fewest operations in training: 1, or 0 to ask for given numbers, too. A curriculum begins with it, so that a
        small model learns to look quantities up before it learns to calculate with them.
    window_size : int
        L, a multiple of the length of a sentence: 5 tokens (terse) or 9 (prose).
    context_length : int
        Tokens, a multiple of L, that the sentences fill exactly.
    questions : int
        Questions per example, about distinct quantities; fewer where the context has no more of the wanted depth, but
        at least one.
    question : str
        `"after"` the context alone, so that what is kept cannot depend on it, or all of them `"before"` it as well.
    order : str
        Of the sentences: `"shuffled"`, or `"topological"`: no quantity is used before it is defined.
    style : str
        `"terse"` or `"prose"`.
    operators : sequence of str
        Kinds of sentences besides given numbers, out of `OPERATORS`. Plain integers need "sum" and "difference", or
        "more" and "fewer", both of a pair, or values would grow or shrink with depth.
    modulus : int, optional
        Values are reduced modulo it; a prime one for products. None: plain integers from 0 to `max_value`.
    max_value : int
        Largest plain integer.
    names : int
        Names that the quantities are drawn from.
    """

    max_depth: int = 6
    shallowest: int = 1
    window_size: int = 20
    context_length: int = 80
    questions: int = 4
    question: str = "after"
    order: str = "shuffled"
    style: str = "terse"
    operators: Sequence[str] = ("sum", "difference", "more", "fewer")
    modulus: int | None = 7
    max_value: int = 99
    names: int = 32

    name = "gsm"
    depth_name = "operations"

    def __post_init__(self):
        object.__setattr__(self, "operators", tuple(self.operators))  # recipes have lists
        for field, values in (("question", QUESTION_PLACES), ("order", ORDERS), ("style", STYLES)):
            check_choice(field, getattr(self, field), values)
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"operators must be some of {OPERATORS}, got {self.operators}")
        if len(set(self.operators)) < len(self.operators):
            raise ValueError(f"operators must be distinct, got {self.operators}")
        if self.modulus is None:
            lonely = [kind for kind in self.operators if OPPOSITES.get(kind, kind) not in self.operators]
            if lonely or not set(self.operators) & set(OPPOSITES):
                raise ValueError(
                    "operators on plain integers must contain sum and difference or more and fewer, both of a pair: "
                    f"values would grow or shrink with depth; got {self.operators}"
                )
            if self.max_value < MAX_CONSTANT:
                raise ValueError(f"max_value must be at least {MAX_CONSTANT}, got {self.max_value}")
        elif self.modulus < 3:
            raise ValueError(f"modulus must be at least 3, got {self.modulus}")
        elif "product" in self.operators and any(self.modulus % n == 0 for n in range(2, self.modulus)):
            raise ValueError(f"modulus must be prime for products, which tell too much otherwise, got {self.modulus}")
        if self.shallowest not in (0, 1):
            raise ValueError(f"shallowest must be 0 or 1, got {self.shallowest}")
        if self.questions < 1 or self.max_depth < 1:
            raise ValueError(f"questions and max_depth must be positive, got {self.questions} and {self.max_depth}")
        if self.window_size < 1 or self.window_size % self.sentence_size:
            raise ValueError(
                f"window_size must be a multiple of a {self.style} sentence, {self.sentence_size} tokens, "
                f"got {self.window_size}"
            )
        check_questions_fit(self.questions * (len(STYLES[self.style]["asked"].split()) + 1), self.window_size)
        check_context_length(self.context_length, self.window_size)
        slots = self.context_length // self.sentence_size
        if not slots <= self.names <= len(NAMES):
            raise ValueError(f"names must be from {slots}, the sentences, to {len(NAMES)}, got {self.names}")
        self._num_given(self.max_depth)

    @property
    def sentence_size(self) -> int:
        """Tokens per sentence."""
        return len(STYLES[self.style]["given"].split())

    @property
    def num_values(self) -> int:
        """Values are 0, 1, ..., num_values - 1."""
        return self.max_value + 1 if self.modulus is None else self.modulus

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """All words: padding, numbers, names, and those of the style."""
        style = " ".join(STYLES[self.style].values())
        words = dict.fromkeys(word for word in style.split() if not word.startswith("{"))
        return [PAD, *map(str, range(self.num_values)), *NAMES[: self.names], *words]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A word-level tokenizer: tokens separated by spaces, in and out."""
        return word_level_tokenizer(self.vocabulary)

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        # Contexts are drawn for `max_depth`, so the early ones of a curriculum are shallower and have more quantities
        # of each depth; `depth` only picks the questions, unless it is more than `max_depth`.
        deepest = max(max_depth, depth or 0, 1)
        num_given = self._num_given(deepest)
        wanted = range(self.shallowest, max_depth + 1) if depth is None else (depth,)
        return [
            self._example(random.Random(f"{self.name}/{split}/{seed}/{i}"), split, num_given, deepest, wanted)
            for i in index
        ]

    def _num_given(self, deepest: int) -> int:
        """How many quantities are given as numbers, for questions of up to `deepest` operations."""
        sentences = self._num_sentences
        # Operands share no ancestor, so without unary operators one more operation takes one more given number.
        fewest = 2 if set(self.operators) & set(UNARY) else deepest + 2
        if sentences < fewest + deepest:
            raise ValueError(
                f"context_length must hold {fewest + deepest} sentences for questions of {deepest} operations with "
                f"{self.operators}, got {sentences} sentences"
            )
        return max(fewest, min(sentences // 3, sentences - deepest))

    @property
    def _num_sentences(self) -> int:
        """Sentences per context, at least."""
        return self.context_length // self.sentence_size - (self.questions if self.question == "before" else 0)

    @functools.cached_property
    def _encoded(self) -> dict[str, tuple[list[int], list[int]]]:
        """By kind of sentence: its token ids, and where in it the names and numbers go, in the order q, x, y or n."""
        token_id = {word: i for i, word in enumerate(self.vocabulary)}
        encoded = {}
        for kind, sentence in STYLES[self.style].items():
            words = sentence.split()
            slots = [words.index(slot) for slot in ("{q}", "{x}", "{y}", "{n}") if slot in words]
            encoded[kind] = [token_id.get(word, 0) for word in words], slots
        return encoded

    def _write(self, kind: str, *token_ids: int) -> list[int]:
        """Write a sentence with these names and numbers in it."""
        sentence, slots = self._encoded[kind]
        sentence = sentence.copy()
        for slot, token_id in zip(slots, token_ids):
            sentence[slot] = token_id
        return sentence

    def _example(self, rng: random.Random, split: str, num_given: int, deepest: int, wanted: Sequence[int]) -> Example:
        """One example with questions of the wanted depths, among quantities of up to `deepest` + 1 operations."""
        # How many operations each quantity takes: all depths occur, and none more often than others.
        plan = [0] * num_given + list(range(1, deepest + 1))
        plan += [1 + int(rng.random() * (deepest + 1)) for _ in range(self._num_sentences - len(plan))]
        asked_depths = draw_depths(rng, plan, self.questions, wanted)
        if self.question == "before":  # where there are fewer questions, further given numbers take their room
            plan += [0] * (self.questions - len(asked_depths))
        plan.sort()
        for _ in range(ATTEMPTS):
            problem = self._draw_problem(rng, plan)
            if problem is not None and _in_eval_split(problem) == (split == "eval"):
                break
        else:
            raise ValueError(f"context_length, operators and values leave too few problems for two splits: {self}")

        of_depth = {depth: [i for i, other in enumerate(plan) if other == depth] for depth in asked_depths}
        asked = [of_depth[depth].pop(int(rng.random() * len(of_depth[depth]))) for depth in asked_depths]

        number_id = 1
        name_ids = [number_id + self.num_values + name for name in rng.sample(range(self.names), len(plan))]
        places = [rng.random() for _ in plan]
        if self.order == "topological":
            for i, (kind, x, y, _) in enumerate(problem):
                operands = () if kind == "given" else (x,) if kind in UNARY else (x, y)
                places[i] = max([places[i], *(places[operand] for operand in operands)])  # the sort is stable
        context_ids = []
        if self.question == "before":
            for i in asked:
                context_ids += self._write("announced", name_ids[i])
        for i in sorted(range(len(plan)), key=places.__getitem__):
            kind, x, y, _ = problem[i]
            if kind == "given":
                context_ids += self._write(kind, name_ids[i], number_id + y)
            else:
                last = number_id + y if kind in UNARY else name_ids[y]
                context_ids += self._write(kind, name_ids[i], name_ids[x], last)
        question_ids, answer_mask = [], []
        for i in asked:
            question = self._write("asked", name_ids[i])
            question_ids += [*question, number_id + problem[i][3]]
            answer_mask += [0] * len(question) + [1]
        return Example(
            context_ids=context_ids, question_ids=question_ids, answer_mask=answer_mask, depths=asked_depths
        )

    def _draw_problem(self, rng: random.Random, plan: Sequence[int]) -> list[tuple[str, int, int, int]] | None:
        """
        Draw quantities that take the planned numbers of operations, in ascending order.

        Returns
        -------
        list of (kind, x, y, value)
            y is a number if the kind is given or unary. None: some values ran out of bounds.
        """
        draw, modulus, num_values = rng.random, self.modulus, self.num_values
        operators, num_operators = self.operators, len(self.operators)
        if modulus is None:
            constants, factors = range(1, MAX_CONSTANT + 1), range(2, MAX_FACTOR + 1)
        else:
            constants = range(1, modulus)
            factors = [n for n in range(2, modulus) if math.gcd(n, modulus) == 1]
        problem, ancestors = [], []  # ancestors: one bit for each, and for the quantity itself
        by_depth = [[] for _ in range(plan[-1] + 1)]
        for i, depth in enumerate(plan):
            if depth == 0:
                value = int(draw() * num_values)
                problem.append(("given", 0, value, value))
                ancestors.append(1 << i)
                by_depth[0].append(i)
                continue
            for _ in range(ATTEMPTS):
                kind = operators[int(draw() * num_operators)]
                if kind in UNARY:
                    below = by_depth[depth - 1]
                    x = below[int(draw() * len(below))]
                    family = ancestors[x]
                    numbers = factors if kind == "times" else constants
                    y = b = numbers[int(draw() * len(numbers))]
                else:
                    left = int(draw() * depth)
                    below, beside = by_depth[left], by_depth[depth - 1 - left]
                    x, y = below[int(draw() * len(below))], beside[int(draw() * len(beside))]
                    if ancestors[x] & ancestors[y]:
                        continue
                    family = ancestors[x] | ancestors[y]
                    b = problem[y][3]
                a = problem[x][3]
                if kind in ("sum", "more"):
                    value = a + b
                elif kind in ("difference", "fewer"):
                    value = a - b
                else:
                    if kind == "product" and not (a and b):  # a factor 0 would be an answer by itself
                        continue
                    value = a * b
                if modulus is not None:
                    value %= modulus
                elif not 0 <= value < num_values:
                    continue
                problem.append((kind, x, y, value))
                ancestors.append(family | 1 << i)
                by_depth[depth].append(i)
                break
            else:
                return None
        return problem

    @functools.cached_property
    def _patterns(self) -> dict[str, re.Pattern]:
        """By kind of sentence, what its words look like."""
        name, number = r"[a-z]+", r"\d+"
        patterns = {}
        for kind, sentence in STYLES[self.style].items():
            pattern = re.escape(sentence).replace(r"\ ", " ")
            for slot, what in {"q": name, "x": name, "y": name, "n": number}.items():
                pattern = pattern.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{what})")
            patterns[kind] = re.compile(pattern)
        return patterns

    def _parse(self, example: Example) -> tuple[dict[str, tuple], list[str]]:
        """Read an example: `{name: (kind, *operands)}`, operands being names or numbers, and the names asked for."""
        vocabulary, size = self.vocabulary, self.sentence_size
        context_ids, question_ids = example["context_ids"], example["question_ids"]
        if not all(0 < i < len(vocabulary) for i in (*context_ids, *question_ids)):
            raise ValueError("malformed example: a token that is no word")
        context, question = ([vocabulary[i] for i in ids] for ids in (context_ids, question_ids))
        if len(context) != self.context_length:
            raise ValueError(f"malformed example: the context has {len(context)} tokens, not {self.context_length}")

        equations, announced = {}, []
        for begin in range(0, len(context), size):
            sentence = " ".join(context[begin : begin + size])
            matches = {kind: match for kind, p in self._patterns.items() if (match := p.fullmatch(sentence))}
            if len(matches) != 1 or "asked" in matches:
                raise ValueError(f"malformed example: {sentence!r} is no sentence")
            ((kind, match),) = matches.items()
            slots = match.groupdict()
            name = slots.pop("q")
            if kind == "announced":
                if equations:
                    raise ValueError(f"malformed example: {sentence!r} comes within the context")
                announced.append(name)
                continue
            if name in equations:
                raise ValueError(f"malformed example: {name!r} is defined twice")
            operands = [slots[slot] for slot in "xyn" if slot in slots]
            equations[name] = (kind, *(int(word) if word.isdigit() else word for word in operands))

        size = len(STYLES[self.style]["asked"].split()) + 1
        asked = []
        for begin in range(0, len(question), size):
            *words, answer = question[begin : begin + size]
            match = self._patterns["asked"].fullmatch(" ".join(words))
            if not match or not answer.isdigit():
                raise ValueError(f"malformed example: {' '.join([*words, answer])!r} is no question with its answer")
            asked.append(match["q"])
        if not asked or len(set(asked)) < len(asked):
            raise ValueError(f"malformed example: questions about {asked}")
        if announced != (asked if self.question == "before" else []):
            raise ValueError(f"malformed example: {announced} before the context, {asked} after it")
        if list(example["answer_mask"]) != ([0] * (size - 1) + [1]) * len(asked):
            raise ValueError("malformed example: answer_mask marks other tokens than the answers")
        if len(example["depths"]) != len(asked):
            raise ValueError(f"malformed example: {len(example['depths'])} depths of {len(asked)} questions")
        return equations, asked

    def _compute(self, kind: str, a: int, b: int) -> int | None:
        """One operation; None where its value is out of bounds."""
        if kind in ("sum", "more"):
            value = a + b
        elif kind in ("difference", "fewer"):
            value = a - b
        else:
            value = a * b
        if self.modulus is not None:
            return value % self.modulus
        return value if 0 <= value <= self.max_value else None

    def solve(self, example: Example) -> list[list[int]]:
        """Read the sentences back and solve them, see [`Task.solve`]."""
        equations, asked = self._parse(example)

        @functools.cache
        def value(operand: str | int, above: tuple[str, ...]) -> int:
            if isinstance(operand, int):
                return operand
            if operand not in equations or operand in above:
                raise ValueError(f"malformed example: {operand!r} is undefined or defined by itself")
            kind, *operands = equations[operand]
            operands = [value(o, (*above, operand)) for o in operands]
            result = operands[0] if kind == "given" else self._compute(kind, *operands)
            if result is None:
                raise ValueError(f"malformed example: {operand!r} is out of 0..{self.max_value}")
            return result

        return [[1 + value(name, ())] for name in asked]

    def shallow_solve(self, example: Example, operations: int) -> list[list[int]]:
        """
        Answer with too few operations: the floor that a model must be above to have followed the rest.

        Of each question it follows the `operations` operations next to the quantity asked for, reads given numbers,
        takes whatever else it meets to be distributed like all answers in training, and answers with the most likely
        value. Going forward from the given numbers instead solves what takes so many operations, as this does, and
        tells nothing about what takes more: operands share no ancestor, so what is left out is independent of it.

        Returns
        -------
        list[list[int]]
            Token ids of each answer.
        """
        equations, asked = self._parse(example)
        answers = []
        for name in asked:
            followed, queue = set(), deque([name])
            while queue and len(followed) < operations:
                kind, *operands = equations[queue[0]]
                if kind != "given":
                    followed.add(queue[0])
                    queue.extend(operand for operand in operands if isinstance(operand, str))
                queue.popleft()
            belief = self._belief(name, equations, followed)
            answers.append([1 + max(range(self.num_values), key=lambda value: belief.get(value, 0))])
        return answers

    def _belief(self, operand: str | int, equations: dict[str, tuple], followed: set[str]) -> dict[int, float]:
        """How likely which value is, with the followed operations known."""
        if isinstance(operand, int):
            return {operand: 1.0}
        kind, *operands = equations[operand]
        if kind == "given":
            return {operands[0]: 1.0}
        if operand not in followed:
            return _prior(self)
        left, right = (self._belief(o, equations, followed) for o in operands)
        belief = {}
        for a, p in left.items():
            for b, q in right.items():
                value = self._compute(kind, a, b)
                if value is not None and not (kind == "product" and 0 in (a, b)):
                    belief[value] = belief.get(value, 0) + p * q
        return belief


def _in_eval_split(problem: Sequence[tuple[str, int, int, int]]) -> bool:
    """Whether a problem belongs to the eval split. All its renamed and reordered forms do, or none."""
    blind = sorted([KIND_CODES[kind] + (y if kind in UNARY else value) for kind, _, y, value in problem])
    return zlib.crc32(repr(blind).encode()) % EVAL_SHARE == 0


@functools.lru_cache
def _prior(task: Gsm) -> dict[int, float]:
    """How likely which answer is, over all depths in training."""
    counts = Counter()
    for example in task.examples(range(PRIOR_EXAMPLES)):
        counts.update(i - 1 for i, answer in zip(example["question_ids"], example["answer_mask"]) if answer)
    return {value: count / counts.total() for value, count in counts.items()}
