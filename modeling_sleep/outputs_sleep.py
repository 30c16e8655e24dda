"""What `forward` returns: transformers' own outputs, whose cache goes by both of its names.

From transformers 5.24 on it is called `cache`, and before `past_key_values`. Either can be read with any release.
"""

import dataclasses

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from .plan_sleep import Tokens, Wave
from .window_sleep import of_rows


# How the installed release calls the cache.
CACHE = "cache" if any(f.name == "cache" for f in dataclasses.fields(BaseModelOutputWithPast)) else "past_key_values"


class _BothNames:
    """Adds the name that the installed release does not know."""

    @classmethod
    def of_cache(cls, cache, **fields):
        """With `cache` by the name of the installed release."""
        return cls(**{CACHE: cache}, **fields)

    if CACHE == "past_key_values":

        @property
        def cache(self):
            return self.past_key_values

    else:  # not the parent's, which warns

        @property
        def past_key_values(self):
            return self.cache


class SleepModelOutput(_BothNames, BaseModelOutputWithPast):
    """[`BaseModelOutputWithPast`], whose cache is `past_key_values` and `cache`."""


class SleepCausalLMOutput(_BothNames, CausalLMOutputWithPast):
    """[`CausalLMOutputWithPast`], whose cache is `past_key_values` and `cache`."""


class SleepSequenceClassifierOutput(_BothNames, SequenceClassifierOutputWithPast):
    """[`SequenceClassifierOutputWithPast`], whose cache is `past_key_values` and `cache`."""


def record_of_layers(tokens: Tokens, read: list) -> dict:
    """
    What the waves recorded of every layer, in the columns of the call.

    Parameters
    ----------
    read : list[tuple[Wave, SleepWindowOutput]]
        The waves in their order, and what each gave.

    Returns
    -------
    dict
        `hidden_states` and `attentions`, as far as they were recorded.
    """
    record = {}
    if not read:
        return record
    waves, outputs = zip(*read, strict=True)
    if outputs[0].hidden_states is not None:
        record["hidden_states"] = tuple(
            tokens.write(waves, list(pieces), None) for pieces in zip(*(x.hidden_states for x in outputs), strict=True)
        )
    if outputs[0].attentions is not None:
        record["attentions"] = tuple(
            _block_diagonal(tokens, waves, pieces) for pieces in zip(*(x.attentions for x in outputs), strict=True)
        )
    return record


def _block_diagonal(tokens: Tokens, waves: tuple[Wave, ...], pieces: tuple) -> torch.Tensor | None:
    """Attention weights of all windows in one (batch, heads, length, keys): zeros across windows."""
    if pieces[0] is None or (len(pieces) == 1 and tokens.columns is None):
        return pieces[0]
    keys = sum(piece.shape[3] for piece in pieces)
    weights = pieces[0].new_zeros(tokens.batch, pieces[0].shape[1], tokens.length, keys)
    column = 0
    for wave, piece in zip(waves, pieces, strict=True):
        rows = range(tokens.batch) if wave.rows is None else wave.rows
        begin, lengths = (of_rows(n, len(rows)) for n in (wave.begin, wave.lengths))
        for i, row in enumerate(rows):
            place = torch.arange(begin[i], begin[i] + lengths[i], device=piece.device)
            place = place if tokens.columns is None else tokens.columns[row, place]
            weights[row, :, place, column : column + piece.shape[3]] = piece[i, :, : lengths[i]]
        column += piece.shape[3]
    return weights
