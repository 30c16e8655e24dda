"""Who sees whom within a window.

Two masks have two names throughout. `padding_mask` is (batch, length) of bool: which tokens are none. `attention_mask`
is what the attention function takes: (batch, 1, length, keys), or what stands for it. The one that a caller gives by
that name says where padding is, as everywhere in transformers; it becomes a `padding_mask` at the door.
"""

import torch
from transformers.masking_utils import create_causal_mask

from .configuration_sleep import SleepConfig


class WindowSizes:
    """The few numbers that transformers' mask functions ask a cache for."""

    is_compileable = False

    def __init__(self, stored: int):
        self.stored = stored

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.stored

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.stored + query_length, 0


def causal_mask(config: SleepConfig, hidden_states: torch.Tensor, past: int):
    """
    The mask of rows that are all alike: `hidden_states`, (batch, length, hidden_size), see `past` keys, those of
    themselves and of the tokens before them. None where the attention function needs none.
    """
    if hidden_states.shape[1] == 1:  # a single token sees all that there is
        return None
    # The cache by position, as its name differs between releases of transformers.
    return create_causal_mask(config, hidden_states, None, WindowSizes(past) if past else None, position_ids=None)


def dense_causal_mask(
    config: SleepConfig, dtype: torch.dtype, positions: torch.Tensor, columns: int, kept: torch.Tensor | None
) -> torch.Tensor:
    """
    The mask of rows that differ, for "sdpa" (of bool) and "eager" (added to the weights).

    Parameters
    ----------
    positions : torch.Tensor
        (1 or batch, length): columns of the window at which the tokens stand.
    columns : int
        Columns of the window's keys.
    kept : torch.Tensor | None
        (batch, kept columns) of bool: which of the keys before them are any.

    Returns
    -------
    torch.Tensor
        (1 or batch, 1, length, kept columns + columns).
    """
    sees = torch.arange(columns, device=positions.device) <= positions.unsqueeze(-1)
    if kept is not None:
        batch = max(kept.shape[0], sees.shape[0])
        kept = kept.unsqueeze(1).expand(batch, sees.shape[1], -1)
        sees = torch.cat([kept, sees.expand(batch, -1, -1)], dim=-1)
    sees = sees.unsqueeze(1)
    if config._attn_implementation != "eager":
        return sees
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)


def live_columns(numbers, batch: int, columns: int, device: torch.device) -> torch.Tensor | None:
    """(batch, columns) of bool: the first so many of each row. None if that is all of them."""
    if not isinstance(numbers, tuple) and numbers == columns:
        return None
    numbers = torch.tensor(numbers, device=device).view(-1, 1).expand(batch, 1)
    return torch.arange(columns, device=device) < numbers
