"""Rule 110: can a model roll a cellular automaton forward after it has lost sight of the initial state?

A row of cells is read, the window closes, and only the fast weights carry the row on to the window with the question.
Predicting the row after t steps takes t sequential steps of computation, so every further pass of a sleep may help.

Two layouts, both aligned to windows of L tokens:

    dense (ours)    window 1: [t=<t>] [cell 0] ... [cell W-1]       L = W + 1
                    window 2: [<query>] [cell 0] ... [cell W-1]     the row after t steps; loss on its W cells
    paper           windows 1-4: four unrelated rows of W cells     L = W
                    window 5: [<query>] and cell 0 of each row after t steps; loss on the four cells, t never shown

The paper's layout gives four bits of signal per 100 tokens and needs billions of tokens; the dense one gives W bits
per 2 L tokens and trains on a laptop. Labels follow the Hugging Face convention: aligned with `input_ids`, -100 where
there is no loss, shifted inside the model. The first answer cell is therefore predicted at `<query>`.

An example is a pure function of (split, seed, index): a counter is hashed, there is no generator to keep in step. The
hash also decides which *rows* belong to which split, rotations of a row together, so that an evaluation row (a quarter
of all rows) never is an initial row in training, whatever the seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast


LAYOUTS = ("dense", "paper")
SPLITS = ("train", "eval")
DEFAULT_WIDTH = {"dense": 12, "paper": 24}
MIN_WIDTH = 8  # below, whole splits could be empty
PAPER_ROWS = 4
MAX_STEPS = 32

PAD_ID, QUERY_ID, CELL_ID, STEPS_ID = 0, 1, 2, 4  # cell c is CELL_ID + c, t steps are STEPS_ID + t - 1
VOCABULARY = ["<pad>", "<query>", "0", "1"] + [f"t={t}" for t in range(1, MAX_STEPS + 1)]
IGNORE = -100

EVAL_SHARE = 4  # one row in four belongs to the eval split
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: tokens separated by spaces, in and out."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}))  # an unknown word raises
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def evolve(state: np.ndarray, steps: int | np.ndarray) -> np.ndarray:
    """
    Run Rule 110 with a periodic boundary.

    Parameters
    ----------
    state : np.ndarray
        Cells in {0, 1}, shape (..., width).
    steps : int or np.ndarray
        Number of steps, one for all or one per row, shape (...).

    Returns
    -------
    np.ndarray
        The cells after that many steps, shape (..., width).
    """
    steps = np.asarray(steps)[..., None]
    for done in range(steps.max(initial=0)):
        left, right = np.roll(state, 1, axis=-1), np.roll(state, -1, axis=-1)
        state = np.where(done < steps, (state | right) & ~(left & state & right), state)
    return state


def window_size(layout: str = "dense", width: int | None = None) -> int:
    """Tokens per window, the L that the model must be configured with."""
    width = width or DEFAULT_WIDTH[layout]
    return width + 1 if layout == "dense" else width


def answer_start(layout: str = "dense", width: int | None = None) -> int:
    """Position of the first answer cell: everything before it is the prompt, everything from it on is the answer."""
    rows = 1 if layout == "dense" else PAPER_ROWS
    return rows * window_size(layout, width) + 1


def make_examples(
    index: np.ndarray | Sequence[int],
    *,
    layout: str = "dense",
    width: int | None = None,
    t: int | None = None,
    t_max: int = 6,
    seed: int = 0,
    split: str = "train",
) -> dict[str, np.ndarray]:
    """
    Write the examples with the given indices.

    Parameters
    ----------
    index : np.ndarray or sequence of int
        Which examples, shape (n,). The same (split, seed, index) has the same rows whatever `t` and `t_max` are.
    layout : str
        `"dense"` or `"paper"`.
    width : int, optional
        Cells per row; 12 for dense and 24 for paper by default.
    t : int, optional
        Steps for all examples. By default dense examples draw theirs uniformly from 1..t_max, and paper examples,
        which do not show t, all take t_max.
    t_max : int
        Largest number of steps drawn.
    seed : int
        Another seed is another set of examples from the same split.
    split : str
        `"train"` or `"eval"`; the initial rows of the two are disjoint.

    Returns
    -------
    dict[str, np.ndarray]
        `input_ids` and `labels`, int64, shape (n, tokens) with 2 L tokens (dense) or 4 L + 5 (paper).
    """
    if layout not in LAYOUTS or split not in SPLITS:
        raise ValueError(f"layout must be one of {LAYOUTS} and split one of {SPLITS}, got {layout!r} and {split!r}")
    width = width or DEFAULT_WIDTH[layout]
    if not MIN_WIDTH <= width <= 64:
        raise ValueError(f"width must be in {MIN_WIDTH}..64, got {width}")
    if not 1 <= (t or t_max) <= MAX_STEPS:
        raise ValueError(f"the number of steps must be in 1..{MAX_STEPS}, got {t or t_max}")

    key = _hash(np.asarray(index, dtype=np.uint64) * GOLDEN + _hash(np.uint64(2 * seed + SPLITS.index(split))))  # (n,)
    rows = _draw_rows(key, 1 if layout == "dense" else PAPER_ROWS, width, split)  # (n, rows, width)
    n = len(key)
    query = np.full((n, 1), QUERY_ID)
    if layout == "dense":
        if t is None:
            steps = 1 + ((_hash(key) >> np.uint64(32)) * np.uint64(t_max) >> np.uint64(32)).astype(np.int64)
        else:
            steps = np.full(n, t)
        answer = evolve(rows[:, 0], steps) + CELL_ID  # (n, width)
        prompt = [STEPS_ID + steps[:, None] - 1, rows[:, 0] + CELL_ID, query]
    else:
        answer = evolve(rows, t or t_max)[..., 0] + CELL_ID  # (n, PAPER_ROWS)
        prompt = [rows.reshape(n, -1) + CELL_ID, query]
    input_ids = np.concatenate([*prompt, answer], axis=1)
    labels = np.full_like(input_ids, IGNORE)
    labels[:, -answer.shape[1] :] = answer
    return {"input_ids": input_ids, "labels": labels}


def make_dataset(num_examples: int, *, start: int = 0, **task) -> datasets.Dataset:
    """Make a fixed set of the examples start, start + 1, ...; `task` are the keywords of [`make_examples`]."""
    examples = make_examples(np.arange(start, start + num_examples), **task)
    return datasets.Dataset.from_dict(examples).with_format("torch")


class Rule110Stream(IterableDataset):
    """
    An endless stream of examples in blocks; block b holds the examples b * block_size, b * block_size + 1, ...

    With `block_size` the global batch size, block b is the batch of optimizer step b. What a step sees then depends on
    its number alone: not on time, ranks or restarts (the `Trainer` skips the blocks already seen when it resumes).

    Parameters
    ----------
    block_size : int
        Examples per block.
    t_max : int or callable
        Largest number of steps, or a function from block index to it: the curriculum.
    **task
        Further keywords of [`make_examples`].
    """

    def __init__(self, block_size: int, t_max: int | Callable[[int], int] = 6, **task):
        self.block_size = block_size
        self.t_max = t_max
        self.task = task

    def block(self, block_index: int) -> dict[str, torch.Tensor]:
        """One block, tensors of shape (block_size, tokens)."""
        index = np.arange(block_index * self.block_size, (block_index + 1) * self.block_size)
        t_max = self.t_max(block_index) if callable(self.t_max) else self.t_max
        return {k: torch.from_numpy(v) for k, v in make_examples(index, t_max=t_max, **self.task).items()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        block_index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            block = self.block(block_index)
            for input_ids, labels in zip(block["input_ids"].unbind(), block["labels"].unbind()):
                yield {"input_ids": input_ids, "labels": labels}
            block_index += stride


@torch.no_grad()
def answer(
    model, prompt_ids: torch.Tensor, num_cells: int, *, sleep_passes: int | None = None, batch_size: int = 250
) -> torch.Tensor:
    """
    Let the model answer by greedy decoding.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model with `sleep_passes` in its `generate`.
    prompt_ids : torch.Tensor
        The examples up to and including `<query>`, shape (n, prompt).
    num_cells : int
        Cells to answer.
    sleep_passes : int, optional
        N, passes over each window before it is forgotten. None leaves it to the model's config.
    batch_size : int
        Examples per call of `generate`.

    Returns
    -------
    torch.Tensor
        Token ids of the answers, shape (n, num_cells).
    """
    kwargs = {} if sleep_passes is None else {"sleep_passes": sleep_passes}
    answers = [
        model.generate(
            chunk.to(model.device),
            attention_mask=torch.ones_like(chunk, device=model.device),
            max_new_tokens=num_cells,
            min_new_tokens=num_cells,
            do_sample=False,
            **kwargs,
        )[:, chunk.shape[1] :]
        for chunk in prompt_ids.split(batch_size)
    ]
    return torch.cat(answers).cpu()


def exact_match_by_steps(
    model,
    steps: Iterable[int],
    passes: Iterable[int],
    num_examples: int = 1000,
    *,
    layout: str = "dense",
    width: int | None = None,
    seed: int = 0,
    split: str = "eval",
    batch_size: int = 250,
) -> dict[int, dict[int, float]]:
    """
    Share of problems whose *whole* answer is right, for every number of passes N and of automaton steps t.

    All N answer the same problems.

    Returns
    -------
    dict[int, dict[int, float]]
        `{N: {t: accuracy}}`.
    """
    was_training = model.training
    model.eval()
    cut = answer_start(layout, width)
    accuracy = {n: {} for n in passes}
    for t in steps:
        examples = make_examples(np.arange(num_examples), layout=layout, width=width, t=t, seed=seed, split=split)
        prompt, target = torch.from_numpy(examples["input_ids"]).tensor_split([cut], dim=1)
        for n, by_steps in accuracy.items():
            predicted = answer(model, prompt, target.shape[1], sleep_passes=n, batch_size=batch_size)
            by_steps[t] = int((predicted == target).all(dim=1).sum()) / num_examples
    model.train(was_training)
    return accuracy


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
