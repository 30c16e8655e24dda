"""Windows as a pass sees them: where each token stands, and who sees whom.

Two masks have two names throughout. `padding_mask` is (batch, length) of bool: which tokens are none. `attention_mask`
is what the attention function takes: (batch, 1, length, keys), or what stands for it. The one that a caller gives by
that name says where padding is, as everywhere in transformers; it becomes a `padding_mask` at the door.
"""

import torch
from transformers.masking_utils import create_causal_mask

from .cache_sleep import SleepState
from .configuration_sleep import SleepConfig
from .keep_sleep import kept_live
from .rotary_sleep import rotary_embedding
from .window_sleep import PerRow, Window, added, column_of, largest


def new_window(
    config: SleepConfig, state: SleepState, inputs_embeds: torch.Tensor, lengths: PerRow, count: int, options: dict
) -> Window:
    """
    New tokens, (batch, length, hidden_size), behind those that the window of each row holds.

    Parameters
    ----------
    lengths : PerRow
        How many of the columns are tokens; those behind them are padding.
    count : int
        The whole windows that stand side by side along `length`.
    options : dict
        What goes on to the attention function.
    """
    batch, length = inputs_embeds.shape[:2]
    device, stored, columns = inputs_embeds.device, state.stored, state.columns
    order = None
    if not isinstance(stored, tuple) and stored == columns:
        positions = torch.arange(stored, stored + length // count, device=device).unsqueeze(0)
        columns = columns + length
    else:
        first = column_of(stored, batch, device)
        positions = first + torch.arange(length, device=device)
        past, columns = columns, largest(added(stored, lengths))
        column = torch.arange(columns, device=device)
        order = torch.where(column < first, column, past + (column - first).clamp(max=length - 1))
    window = Window(
        inputs_embeds=inputs_embeds,
        positions=positions,
        padding_mask=live_columns(lengths, batch, length, device),
        live=live_columns(added(stored, lengths), batch, columns, device),
        order=order,
        count=count,
        options={name: x for name, x in options.items() if not name.startswith(("output_", "return_"))},
    )
    rows = inputs_embeds.view(batch * count, length // count, -1)
    return _with_attention(config, window, state, rows, stored, columns, batch)


def whole_window(config: SleepConfig, state: SleepState, is_replayed: bool = True) -> Window:
    """All that the window of each row holds, to be read anew if it `is_replayed`, or to be forgotten at once."""
    example = state.tensors()[0]
    batch, device, columns = example.shape[0], example.device, state.columns
    live = live_columns(state.stored, batch, columns, device)
    window = Window(
        inputs_embeds=state.kept_inputs_embeds,
        positions=torch.arange(columns, device=device).unsqueeze(0),
        padding_mask=live,
        live=live,
    )
    if not is_replayed:
        return window
    return _with_attention(config, window, state, state.kept_hidden_states, 0, columns, batch)


def _with_attention(config, window: Window, state: SleepState, hidden_states, stored, columns: int, batch: int):
    """`window` with its rotary positions and attention mask; kept keys stand before all others."""
    device = hidden_states.device
    kept = state.kept_columns
    kept_mask = kept_live(config, state, batch, device) if kept else None
    is_dense = window.order is not None or kept_mask is not None
    if is_dense:
        _check_dense(config)
        if kept and kept_mask is None:
            kept_mask = torch.ones(1, kept, dtype=torch.bool, device=device)
        mask = dense_causal_mask(config, hidden_states.dtype, window.positions, columns, kept_mask)
    else:
        mask = causal_mask(config, hidden_states, kept + stored)
    positions = window.positions[0] if len(window.positions) == 1 else window.positions
    rotation = rotary_embedding(config, positions, hidden_states.dtype)
    return window._replace(attention_mask=mask, position_embeddings=rotation, is_dense=is_dense)


def _check_dense(config: SleepConfig) -> None:
    if config.base_config is not None and config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"Rows whose windows do not begin together need a mask that {config._attn_implementation!r} does not "
            'take. Load the model with `attn_implementation="sdpa"`, or give rows of one length.'
        )


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
    return torch.arange(columns, device=device) < column_of(numbers, batch, device)
