"""Packed rows: several documents one after the other in a row, as `DataCollatorWithFlattening` and TRL make them.

Each document is read as a row of its own: it has its own windows, sleeps and fast weights, and nothing leaks from one
into the next. Where documents begin is told by `position_ids` that begin anew at 0, `cu_seq_lens_q` or `seq_idx`.
A packing that tells nothing of it ("wrapped") cannot be told from one long text.
"""

from typing import NamedTuple

import torch
from transformers.utils import is_torchdynamo_compiling

from .window_sleep import PerRow, largest, per_row


# What tells of packing, or belongs to it.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class Documents(NamedTuple):
    """
    Attributes
    ----------
    counts : PerRow
        Tokens of each document.
    begin : torch.Tensor
        (documents, 1): where each begins in the (batch * length) columns of the call.
    document, number : torch.Tensor
        (batch, length): to which document a column's token belongs, and the how manieth of it it is; padding is -1.
    """

    counts: PerRow
    begin: torch.Tensor
    document: torch.Tensor
    number: torch.Tensor

    def unpack(self, inputs: torch.Tensor) -> torch.Tensor:
        """(documents, largest count, ...) of (batch, length, ...), padding behind."""
        column = self.begin + torch.arange(largest(self.counts), device=inputs.device)
        flat = inputs.flatten(0, 1)
        return flat[column.clamp(max=flat.shape[0] - 1)]

    def rows(self) -> tuple[int, ...]:
        """The row of the call in which each document stands."""
        return tuple((self.begin.squeeze(1) // self.document.shape[1]).tolist())

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `unpack`, zeros at padding."""
        packed = rows[self.document.clamp(min=0), self.number.clamp(min=0)]
        return packed.masked_fill((self.document < 0).unsqueeze(-1), 0)


def documents_of(position_ids, attention_mask, past_key_values, shape: tuple[int, int], options: dict):
    """
    The documents of a packed call, or None if every row is one text.

    Parameters
    ----------
    position_ids : torch.Tensor | None
        (1 or batch, length).
    attention_mask : torch.Tensor | None
        (batch, length) or (batch, past + length).
    shape : tuple[int, int]
        (batch, length) of the call.
    options : dict
        `cu_seq_lens_q`, (documents + 1,), counted over all rows; `seq_idx`, (batch, length), another number for every
        document.

    Returns
    -------
    Documents | None

    Raises
    ------
    ValueError
        If position ids neither run on nor begin anew, or packed rows come with a cache or recorded attention weights.
    """
    begins = _begins(position_ids, attention_mask, shape, options)
    if begins is None:
        return None
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError(
            "Packed rows cannot go on from `past_key_values`: which of their documents would? Give new documents rows "
            "of their own."
        )
    if options.get("output_attentions"):
        raise ValueError("`output_attentions` is not given for packed rows. Give every document a row of its own.")
    batch, length = shape
    is_token = torch.ones_like(begins) if attention_mask is None else attention_mask.to(begins.device) != 0
    # A document ends where the next begins, and where padding does.
    begins = is_token & (begins | ~torch.nn.functional.pad(is_token, (1, -1)))
    document = begins.flatten().cumsum(0) - 1
    begin = begins.flatten().nonzero()  # (documents, 1)
    counts = torch.bincount(document[is_token.flatten()], minlength=len(begin))
    number = torch.arange(batch * length, device=begins.device) - begin.squeeze(1)[document.clamp(min=0)]
    outside = ~is_token.flatten()
    return Documents(
        counts=per_row(counts.tolist()),
        begin=begin,
        document=document.masked_fill(outside, -1).view(batch, length),
        number=number.masked_fill(outside, -1).view(batch, length),
    )


def first_tokens(position_ids, attention_mask, shape: tuple[int, int], options: dict) -> torch.Tensor | None:
    """
    (batch, length) of bool: the tokens that no token of their text stands before, which hence are not predicted; None
    if these are the first column alone. Parameters are those of `documents_of`.
    """
    first = _begins(position_ids, attention_mask, shape, options)
    if attention_mask is not None:
        is_token = attention_mask[:, -shape[1] :] != 0
        behind_padding = is_token & (is_token.cumsum(1) == 1)
        first = behind_padding if first is None else first.to(is_token.device) | behind_padding
    return first


def _begins(position_ids, attention_mask, shape, options: dict) -> torch.Tensor | None:
    """(batch, length) of bool: where documents begin. None if every row is one text."""
    batch, length = shape
    if (seq_idx := options.get("seq_idx")) is not None:
        _check_shape("seq_idx", seq_idx, shape)
        return _first(seq_idx.diff(dim=-1) != 0, batch)
    if (offsets := options.get("cu_seq_lens_q")) is not None:
        if offsets.ndim != 1 or offsets[0] != 0 or offsets[-1] != batch * length or (offsets.diff() < 1).any():
            raise ValueError(
                f"`cu_seq_lens_q` must rise from 0 to batch * length = {batch * length}, got {offsets.tolist()}."
            )
        begins = torch.zeros(batch * length, dtype=torch.bool, device=offsets.device)
        begins[offsets[:-1].long()] = True
        begins = begins.view(batch, length)
        begins[:, 0] = True
        return begins
    if position_ids is None or is_torchdynamo_compiling():
        return None
    _check_shape("position_ids", position_ids, shape)
    if length == 1:
        return None
    steps = position_ids.expand(batch, -1).diff(dim=-1)
    runs_on = steps == 1
    if attention_mask is not None:
        mask = attention_mask[:, -length:].to(steps.device) != 0
        runs_on = runs_on | ~(mask[:, 1:] & mask[:, :-1])
    if runs_on.all():
        return None
    restarts = position_ids.expand(batch, -1)[:, 1:] == 0
    if not (runs_on | restarts).all():
        raise ValueError(
            "`position_ids` neither run on by one nor begin anew at 0, where the next document of a packed row would "
            "begin. Leave them out: positions count from the start of a window."
        )
    return _first(restarts & ~runs_on, batch)


def _first(later: torch.Tensor, batch: int) -> torch.Tensor:
    """(batch, length) of (batch, length - 1): the first column of a row begins a document, too."""
    return torch.nn.functional.pad(later.expand(batch, -1), (1, 0), value=True)


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> None:
    if tensor.ndim != 2 or tensor.shape[0] not in (1, shape[0]) or tensor.shape[1] != shape[1]:
        raise ValueError(f"`{name}` must have shape {shape}, got {tuple(tensor.shape)}.")
