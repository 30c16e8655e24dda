"""Rule 110: can a model roll a cellular automaton forward after it has lost sight of the initial state?

A row of cells is read, the window closes, and only the fast weights carry the row on to the window with the question.
Predicting the row after t steps takes t sequential steps of computation, so every further pass of a sleep may help.

Two layouts, both aligned to windows of L tokens:

    dense (ours)    window 1: [t=<t>] [cell 0] ... [cell W-1]       L = W + 1
                    window 2: [<query>] [cell 0] ... [cell W-1]     the row after t steps; loss on its W cells
    paper           windows 1-4: four unrelated rows of W cells     L = W
                    window 5: [<query>] and cell 0 of each row after t steps; loss on the four cells, t never shown

The paper's layout gives four bits of signal per 100 tokens and needs billions of tokens; the dense one gives W bits
per 2 L tokens and trains on a laptop. The query gives the first answer cell a token to be predicted at.

An example is a hash of (split, seed, index): there is no generator to keep in step, and a batch is written at once. A
hash also decides which *rows* belong to which split, rotations of a row together, so that an evaluation row (a quarter
of all rows) never is an initial row in training, whatever the seeds.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerFast

from .task import SPLITS, Example, Task, check_choice, word_level_tokenizer


LAYOUTS = ("dense", "paper")
BOUNDARIES = ("periodic", "zero")
MIN_WIDTH = 8  # below, whole splits could be empty
MAX_STEPS = 32

PAD_ID, QUERY_ID, CELL_ID, STEPS_ID = 0, 1, 2, 4  # cell c is CELL_ID + c, t steps are STEPS_ID + t - 1
VOCABULARY = ["<pad>", "<query>", "0", "1"] + [f"t={t}" for t in range(1, MAX_STEPS + 1)]

EVAL_SHARE = 4  # one row in four belongs to the eval split
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def evolve(state: np.ndarray, steps: int | np.ndarray, boundary: str = "periodic") -> np.ndarray:
    """
    Run Rule 110.

    Parameters
    ----------
    state : np.ndarray
        Cells in {0, 1}, shape (..., width).
    steps : int or np.ndarray
        Number of steps, one for all or one per row, shape (...).
    boundary : str
        `"periodic"` or `"zero"`.

    Returns
    -------
    np.ndarray
        The cells after that many steps, shape (..., width).
    """
    steps = np.asarray(steps)[..., None]
    for done in range(steps.max(initial=0)):
        left, right = np.roll(state, 1, axis=-1), np.roll(state, -1, axis=-1)
        if boundary == "zero":
            left[..., 0] = right[..., -1] = 0
        state = np.where(done < steps, (state | right) & ~(left & state & right), state)
    return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule110(Task):
    """
    Roll rows forward after they are forgotten; depth is the number t of steps.

    Parameters
    ----------
    max_depth : int
        Largest t in training. Dense examples draw theirs from 1..max_depth and show it; paper examples do not show
        it, and all take `max_depth`.
    layout : str
        `"dense"` or `"paper"`.
    width : int, optional
        Cells per row; 12 for dense and 24 for paper by default.
    rows : int, optional
        Unrelated rows in the context, one per window; 1 for dense and 4 for paper by default.
    boundary : str
        `"periodic"`: the row is a ring; `"zero"`: there are zeros around it.
    """

    max_depth: int = 6
    layout: str = "dense"
    width: int | None = None
    rows: int | None = None
    boundary: str = "periodic"

    name = "rule110"
    depth_name = "steps"
    deepest = MAX_STEPS

    def __post_init__(self):
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("boundary", self.boundary, BOUNDARIES)
        dense = self.layout == "dense"
        object.__setattr__(self, "width", self.width or (12 if dense else 24))
        object.__setattr__(self, "rows", self.rows or (1 if dense else 4))
        if not MIN_WIDTH <= self.width <= 64:
            raise ValueError(f"width must be in {MIN_WIDTH}..64, got {self.width}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")
        self._check_depth("max_depth", self.max_depth)

    @property
    def window_size(self) -> int:
        return self.width + 1 if self.layout == "dense" else self.width

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return word_level_tokenizer(VOCABULARY)

    def _examples(self, index, split, seed, depth, max_depth) -> list[Example]:
        index = np.asarray(index, dtype=np.uint64)
        key = _hash(index * GOLDEN + _hash(np.uint64(2 * seed + SPLITS.index(split))))  # (n,)
        cells = _draw_rows(key, self.rows, self.width, split)  # (n, rows, width)
        if depth is None and self.layout == "dense":
            steps = 1 + ((_hash(key) >> np.uint64(32)) * np.uint64(max_depth) >> np.uint64(32)).astype(np.int64)
        else:
            steps = np.full(len(index), depth or max_depth)
        after = evolve(cells, steps[:, None], self.boundary) + CELL_ID  # (n, rows, width)
        return [self._example(*row) for row in zip((cells + CELL_ID).tolist(), after.tolist(), steps.tolist())]

    def _example(self, before: list[list[int]], after: list[list[int]], t: int) -> Example:
        """Write down rows of token ids, before and after."""
        if self.layout == "dense":
            context = [token for row in before for token in (STEPS_ID + t - 1, *row)]
            question = [token for row in after for token in (QUERY_ID, *row)]
            mask = [0, *[1] * self.width] * self.rows
            depths = [t] * self.rows
        else:
            context = [token for row in before for token in row]
            question = [QUERY_ID, *(row[0] for row in after)]
            mask = [0, *[1] * self.rows]
            depths = [t]
        return Example(context_ids=context, question_ids=question, answer_mask=mask, depths=depths)

    def solve(self, example: Example) -> list[list[int]]:
        """Cell by cell from the rule's table, sharing nothing with [`evolve`]."""
        context, window = example["context_ids"], self.window_size
        if len(context) != self.rows * window:
            raise ValueError(f"a context of {self.rows} rows has {self.rows * window} tokens, not {len(context)}")
        answers = []
        for begin in range(0, len(context), window):
            row, t = context[begin : begin + window], self.max_depth
            if self.layout == "dense":
                t, row = row[0] - STEPS_ID + 1, row[1:]
            else:
                t = example["depths"][0]
            cells = [token - CELL_ID for token in row]
            if not set(cells) <= {0, 1} or not 1 <= t <= MAX_STEPS:
                raise ValueError(f"no row of cells with its number of steps: {context[begin : begin + window]}")
            for _ in range(t):
                edge = (cells[-1], cells[0]) if self.boundary == "periodic" else (0, 0)
                padded = [edge[0], *cells, edge[1]]
                cells = [110 >> (4 * p + 2 * q + r) & 1 for p, q, r in zip(padded, padded[1:], padded[2:])]
            answers.append([cell + CELL_ID for cell in cells])
        return answers if self.layout == "dense" else [[row[0] for row in answers]]


def render(cells: Iterable[int]) -> str:
    """Draw a row, given as token ids: dark for 1, light for 0, a question mark for what is no cell."""
    return "".join({CELL_ID: "░", CELL_ID + 1: "█"}.get(int(cell), "?") for cell in cells)


def _hash(x: np.ndarray) -> np.ndarray:
    """Splitmix64's output function: a bijection of the 64-bit integers under which neighbours look unrelated."""
    with np.errstate(over="ignore"):
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _in_eval_split(rows: np.ndarray, width: int) -> np.ndarray:
    """Whether rows, packed one per integer, belong to the eval split. All rotations of a row do, or none."""
    mask = np.uint64(2**width - 1)
    canonical = rows
    for shift in range(1, width):
        rotated = ((rows << np.uint64(shift)) | (rows >> np.uint64(width - shift))) & mask
        canonical = np.minimum(canonical, rotated)
    return _hash(canonical) % np.uint64(EVAL_SHARE) == 0


def _draw_rows(key: np.ndarray, num_rows: int, width: int, split: str) -> np.ndarray:
    """Draw rows of the split uniformly by rejection: keys (n,) -> cells (n, num_rows, width)."""
    key = _hash(key[:, None] ^ np.arange(1, num_rows + 1, dtype=np.uint64)).ravel()
    rows = np.zeros_like(key)
    pending = np.arange(len(key))
    while len(pending):
        key = _hash(key)
        rows[pending] = key & np.uint64(2**width - 1)
        rejected = _in_eval_split(rows[pending], width) != (split == "eval")
        key, pending = key[rejected], pending[rejected]
    return (rows.reshape(-1, num_rows, 1) >> np.arange(width, dtype=np.uint64) & np.uint64(1)).astype(np.int64)
