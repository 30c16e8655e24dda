"""What is refused before any work is done: every message says what is wrong, and what to do."""

import difflib
from numbers import Integral

import torch
from transformers.utils import TransformersKwargs, is_torchdynamo_compiling

from .cache_sleep import SleepState
from .configuration_sleep import SleepConfig
from .window_sleep import of_rows, per_row


# What `forward` takes beside its own arguments: what transformers' training, recording and attention know. None of
# them changes what is read; all others are refused, as one that is dropped in silence might have been the memory.
OPTIONS = {
    *TransformersKwargs.__annotations__,
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "num_items_in_batch",
    "shift_labels",
    "ignore_index",
    "softcap",
    "seq_idx",
    "token_type_ids",  # which some tokenizers give
}


def check_options(options: dict, known: tuple[str, ...]) -> None:
    """Raise `TypeError` if there is an argument that would be dropped."""
    for name, value in options.items():
        if name in OPTIONS or value is None:
            continue
        near = difflib.get_close_matches(name, [*known, *OPTIONS], n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise TypeError(f"`forward` does not know the argument `{name}`, and would have to drop it.{hint}")


def one_cache(past_key_values, cache):
    """The cache of a call: transformers calls it `cache` from 5.24 on, and `past_key_values` before."""
    if past_key_values is not None and cache is not None:
        raise ValueError("Give one of `past_key_values` and `cache`, which are two names of the same.")
    return past_key_values if cache is None else cache


def check_shape(name: str, tensor: torch.Tensor, dimensions: tuple[int, ...] = ()) -> None:
    """Raise unless `tensor` is (batch, length, *dimensions) and holds something."""
    if tensor.ndim != 2 + len(dimensions) or tensor.shape[2:] != dimensions or tensor.numel() == 0:
        shape = ", ".join(map(str, ("batch", "length", *dimensions)))
        raise ValueError(f"`{name}` must have shape ({shape}), with at least one token, got {tuple(tensor.shape)}.")


def check_input_ids(input_ids: torch.Tensor, config: SleepConfig) -> None:
    """Raise if there is no token, or an id is not in the vocabulary."""
    check_shape("input_ids", input_ids)
    if is_torchdynamo_compiling():
        return
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"`input_ids` must lie between 0 and {config.vocab_size - 1} (the vocabulary of this model), got values "
            f"from {low} to {high}. Is this the model's own tokenizer?"
        )


def check_fits(state: SleepState, inputs_embeds: torch.Tensor) -> None:
    """Raise if the cache holds another number of rows than `inputs_embeds`, or was made in another dtype."""
    check_dtype(state, inputs_embeds.dtype, inputs_embeds.device.type)
    batch, made = inputs_embeds.shape[0], state.last_hidden_state
    if made is not None and made.shape[0] != batch:
        raise ValueError(
            f"`past_key_values` holds {made.shape[0]} rows, the new tokens have {batch}. To continue each row "
            "several times, call `past_key_values.batch_repeat_interleave(times)` first."
        )


def check_dtype(state: SleepState, dtype: torch.dtype, device_type: str) -> None:
    """Raise if the cache was made in another dtype than that in which the model computes."""
    made = state.last_hidden_state
    is_autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if made is not None and made.dtype != dtype and not is_autocast:
        raise ValueError(
            f"`past_key_values` was made in {made.dtype}, and this model computes in {dtype}. Go on with a model of "
            "that dtype, or read the text anew."
        )


def check_mask(attention_mask, seen: int, shape: tuple[int, int]) -> None:
    """Raise unless a mask is one of padding: of `shape`, (batch, length), or with the `seen` ones before."""
    (batch, length), both = shape, (shape[0], seen + shape[1])
    found = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
    if attention_mask is not None and found not in (both, (batch, length)):
        raise ValueError(
            f"`attention_mask` must have shape (batch, past + new tokens) = {both}, or {(batch, length)} for the new "
            f"ones alone, got {found}. Masks that are more than padding (4-D, block masks) have no meaning asleep."
        )


def padding_mask_of(attention_mask, state: SleepState, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
    """
    Which of the new tokens are none, as (batch, length) of bool, False at padding; None if all are tokens.

    Parameters
    ----------
    attention_mask : torch.Tensor | None
        (batch, past + length), or (batch, length) for the new tokens alone.

    Raises
    ------
    ValueError
        If it has another shape, or says of the past what is not what the cache has read.
    """
    if attention_mask is None:
        return None
    length = inputs_embeds.shape[1]
    return _padding_mask(attention_mask.to(device=inputs_embeds.device, dtype=torch.bool), length, state)


@torch.compiler.disable  # whether there is padding has to be known before a graph can be made
def _padding_mask(mask: torch.Tensor, length: int, state: SleepState) -> torch.Tensor | None:
    if mask.shape[1] > length:
        check_past(mask[:, : state.seen], state)
    mask = mask[:, -length:]
    return None if mask.all() else mask


def check_past(mask: torch.Tensor, state: SleepState) -> None:
    """Raise if `mask`, (batch, seen), is not what was read: told by the number and the sum of a row's columns."""
    column = torch.arange(mask.shape[1], device=mask.device)
    read, places = mask.sum(1).tolist(), (mask * column).sum(1).tolist()
    if (per_row(read), per_row(places)) == (state.read, state.places):
        return
    known = zip(of_rows(state.read, len(read)), of_rows(state.places, len(read)), strict=True)
    row = next(i for i, (a, b) in enumerate(zip(zip(read, places, strict=True), known, strict=True)) if a != b)
    raise ValueError(
        f"`attention_mask` says that {read[row]} of the first {state.seen} tokens of row {row} are no padding, but "
        f"`past_key_values` has read {of_rows(state.read, len(read))[row]} of them, or others. Give the mask that "
        "these tokens were read with; rows that ended early have padding behind their end. Or start from a new cache."
    )


def check_pinned_tokens(pinned_tokens: int, state: SleepState, config: SleepConfig) -> None:
    """Raise unless so many of a text's first tokens can be pinned."""
    if not isinstance(pinned_tokens, Integral) or isinstance(pinned_tokens, bool) or pinned_tokens < 0:
        hint = " `True` is for `generate`, `read` and conversations." if pinned_tokens is True else ""
        raise ValueError(f"`pinned_tokens` is a number of tokens, at least 0, got {pinned_tokens!r}.{hint}")
    if pinned_tokens > config.window_size:
        raise ValueError(
            f"`pinned_tokens` is {pinned_tokens}, more than the window of {config.window_size} tokens that a text "
            "begins with. Pin fewer, or make `window_size` larger."
        )
    if state.has_begun and pinned_tokens != state.pinned_tokens:
        raise ValueError(
            f"`pinned_tokens` is {pinned_tokens}, but the text of `past_key_values` began with "
            f"{state.pinned_tokens}: it can only be chosen with a text's first tokens."
        )
