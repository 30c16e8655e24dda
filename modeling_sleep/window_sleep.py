"""What one pass tells every layer of the tokens that it reads, and how their buffers grow.

The buffers of a window (keys, values, what a memory keeps) are left-aligned: column c of a row is its token at
position c of the window. Rows may hold different numbers of tokens; columns behind a row's last token are finite, mean
nothing, and are never looked at.

Numbers that every row has for itself, such as the tokens in its window, are host integers: one `int` where all rows
agree, which costs nothing, or else a tuple with one for each row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


PerRow = int | tuple[int, ...]


def of_rows(number: PerRow, batch: int) -> tuple[int, ...]:
    """One number for each of `batch` rows."""
    return number if isinstance(number, tuple) else (number,) * batch


def per_row(numbers: Sequence[int]) -> PerRow:
    """One `int` if all agree."""
    return numbers[0] if all(number == numbers[0] for number in numbers) else tuple(numbers)


def largest(number: PerRow) -> int:
    """Of all rows; also the columns of a buffer that holds so many tokens."""
    return max(number) if isinstance(number, tuple) else number


def column_of(number: PerRow, batch: int, device: torch.device) -> torch.Tensor:
    """(batch, 1): one number for each row, to be compared with columns."""
    return torch.tensor(of_rows(number, batch), device=device).unsqueeze(1)


def added(first: PerRow, second: PerRow) -> PerRow:
    """The sum, row by row."""
    if not (isinstance(first, tuple) or isinstance(second, tuple)):
        return first + second
    batch = len(first if isinstance(first, tuple) else second)
    return per_row([x + y for x, y in zip(of_rows(first, batch), of_rows(second, batch), strict=True)])


def scaled(number: PerRow, factor: int) -> PerRow:
    """`factor` times as much, row by row."""
    return tuple(x * factor for x in number) if isinstance(number, tuple) else number * factor


class Keep(NamedTuple):
    """
    Which keys and values outlive a sleep: see `keys_to_keep`.

    Attributes
    ----------
    order : torch.Tensor
        (1 or batch, kept): their columns in `[kept before | window]`.
    rotation : tuple[torch.Tensor, torch.Tensor] | None
        Cosines and sines that turn them to their positions before the next window. None without rotary positions.
    """

    order: torch.Tensor
    rotation: tuple[torch.Tensor, torch.Tensor] | None


class Window(NamedTuple):
    """
    The tokens of one pass: (batch, length) of them, behind what their window already holds.

    Attributes
    ----------
    inputs_embeds : torch.Tensor | None
        (batch, length, hidden_size): the tokens' embeddings, the same in every pass over a window.
    positions : torch.Tensor
        (1 or batch, length) of int: where each token stands in its window; also its column in a buffer.
    padding_mask : torch.Tensor | None
        (batch, length) of bool, False at padding, which stands behind a row's tokens. None: there is none.
    live : torch.Tensor | None
        (batch, columns) of bool: which columns of a buffer hold tokens, the new ones included. None: all.
    written : torch.Tensor | None
        (batch, length) of bool: which of the tokens memories write. None: all.
    order : torch.Tensor | None
        (batch, columns): where in `[past | new]` each column of a grown buffer comes from. None: in that order.
    attention_mask : torch.Tensor | None
        What attention takes: who sees whom, kept keys first.
    position_embeddings : tuple[torch.Tensor, torch.Tensor] | None
        Cosines and sines of the positions, (length, rotated) or (batch, length, rotated).
    count : int
        Whole windows that stand side by side along `length`, each of which begins with what the one before left.
    passes : int
        In `forget`: how often what a layer holds of the window is still to be written.
    keep : Keep | None
        In `forget`: the keys that outlive the window. None: none.
    options : dict
        What goes on to the attention function.
    is_dense : bool
        Whether `attention_mask` is one for "sdpa" and "eager", as other functions know no rows of unequal windows.
    key_hidden_states : torch.Tensor | None
        (batch, length, hidden_size): what entered layer `recall_key_layer` in this pass, for the memories behind it.
    """

    inputs_embeds: torch.Tensor | None
    positions: torch.Tensor
    padding_mask: torch.Tensor | None = None
    live: torch.Tensor | None = None
    written: torch.Tensor | None = None
    order: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None
    count: int = 1
    passes: int = 1
    keep: Keep | None = None
    options: dict = {}
    is_dense: bool = False
    key_hidden_states: torch.Tensor | None = None

    def attention(self, config) -> str:
        """The attention function to call: the config's, or "sdpa" where that one could not take the mask."""
        chosen = config._attn_implementation
        return "sdpa" if self.is_dense and chosen not in ("sdpa", "eager") else chosen

    def append(self, past: torch.Tensor | None, new: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Each row's `new` tokens behind its `past` ones, along `dim`; `past` is None if there is nothing yet."""
        joined = new if past is None else torch.cat([past, new], dim)
        if self.order is None:
            return joined
        columns = self.order.shape[1]
        if past is None or new.shape[dim] > 1 or columns != joined.shape[dim]:
            return select(joined, self.order, dim)
        # One token for each row: it alone is moved, and the last column of shorter rows means nothing.
        flat = joined.flatten(0, dim).index_copy_(0, _places(joined, self.positions, dim), new.flatten(0, dim))
        return flat.view(joined.shape)

    def last(self, values: torch.Tensor, number: int) -> torch.Tensor:
        """
        The last `number` columns of each row of `values`, (batch, before + length, ...), padding left out: before a
        row's first token stand `before` columns that count as its tokens.
        """
        end = values.shape[1]
        if self.padding_mask is None:
            return values[:, end - number :].clone()  # as a view would keep the whole window alive
        before = end - self.padding_mask.shape[1]
        first = self.padding_mask.sum(1, keepdim=True) + before - number
        return select(values, first + torch.arange(number, device=values.device), 1)


def select(tensor: torch.Tensor, order: torch.Tensor, dim: int) -> torch.Tensor:
    """Of `tensor` along `dim` what `order`, (1 or batch, number), names for each row."""
    if order.shape[0] == 1:
        return tensor.index_select(dim, order[0])
    # By whole vectors of what lies behind `dim`, as indices for every number would cost more than the copy.
    shape = tensor.shape
    chosen = tensor.flatten(0, dim).index_select(0, _places(tensor, order, dim))
    return chosen.view(*shape[:dim], order.shape[1], *shape[dim + 1 :])


def _places(tensor: torch.Tensor, columns: torch.Tensor, dim: int) -> torch.Tensor:
    """Where `columns`, (batch, number), of `dim` stand in `tensor.flatten(0, dim)`, for all dimensions before it."""
    between = tensor.shape[1:dim].numel()
    first = torch.arange(tensor.shape[0] * between, device=columns.device).view(-1, between, 1) * tensor.shape[dim]
    return (first + columns.unsqueeze(1)).flatten()
