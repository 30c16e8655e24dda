"""Which keys outlive a sleep (`window_overlap`, `pinned_tokens`), and where they stand afterwards.

After a sleep the keys of the last w tokens stay, as in the paper's sliding-window eviction (arXiv 2605.26099 v3,
section 6.4), and for good those of a text's first p tokens, such as a system prompt or an attention sink. The next
window attends to them. No sleep replays them again: what they stand for has been consolidated once.

Positions count from the window's start, so that kept keys stand before it: a key of the overlap at -w ... -1, the one
behind which the window begins last, and pinned ones at -(w + p) ... -(w + 1), the first token first. A key is turned
to its new position, a rotation of a rotation, at most 1 + w / L times, and a pinned one once: nothing drifts.
"""

import torch

from .cache_sleep import SleepState
from .configuration_sleep import SleepConfig
from .rotary_sleep import rotary_embedding
from .window_sleep import Keep, column_of, of_rows, per_row


def kept_live(config: SleepConfig, state: SleepState, batch: int, device: torch.device) -> torch.Tensor | None:
    """(batch, kept columns) of bool: which of the keys before the window are any. None if all of them."""
    w, p = config.window_overlap, state.pinned_tokens
    if (state.kept, state.pinned) == (w, p):
        return None
    kept, pinned = (column_of(n, batch, device) for n in (state.kept, state.pinned))
    column = torch.arange(p + w, device=device)
    return torch.where(column < p, column < pinned, column >= p + w - kept)


def keys_to_keep(
    config: SleepConfig, state: SleepState, batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[Keep | None, dict]:
    """
    What a sleep over the window of `state` keeps.

    Returns
    -------
    tuple[Keep | None, dict]
        Where each kept key comes from and how it is turned, None if none is kept; and how many each row has then, as
        fields of [`SleepState`].
    """
    w, p = config.window_overlap, state.pinned_tokens
    if w + p == 0:
        return None, {}
    numbers = zip(*(of_rows(n, batch) for n in (state.stored, state.kept, state.pinned)), strict=True)
    orders, turns, kept_of_rows, pinned_of_rows = [], [], [], []
    for stored, kept, pinned in [next(numbers)] if _alike(state) else numbers:
        new = min(p - pinned, stored)  # tokens of this window that are pinned from now on
        order, turn = list(range(p)), [0] * p
        for i in range(pinned, pinned + new):
            position = i - pinned
            order[i], turn[i] = p + w + position, -(w + p) + i - position
        total = min(w, kept + stored - new)
        for column in range(w):  # from position column - w on, as seen from the next window
            position = stored - w + column  # as seen from this one
            in_use = column >= w - total
            order.append(p + w + position if in_use else p + column)
            turn.append(-stored if in_use else 0)
        orders.append(order)
        turns.append(turn)
        kept_of_rows.append(total)
        pinned_of_rows.append(pinned + new)
    rotation = rotary_embedding(config, torch.tensor(turns, device=device), dtype, is_shift=True)
    keep = Keep(torch.tensor(orders, device=device), rotation)
    return keep, {"kept_columns": w + p, "kept": per_row(kept_of_rows), "pinned": per_row(pinned_of_rows)}


def _alike(state: SleepState) -> bool:
    return not any(isinstance(number, tuple) for number in (state.stored, state.kept, state.pinned))
