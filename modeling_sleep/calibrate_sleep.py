"""What a recall memory begins with: it recalls before any training.

A memory finds what it wrote if keys of what differs differ. Hidden states of a language model lie in a narrow cone, so
their directions are whitened: principal components of what the model knows while it reads some text, each scaled to
variance 1 (a little less where there is hardly any). Queries and keys begin with the same map. So are embeddings, of
which values are made: those of any two words have much in common, and what S gives is a sum of many values, in which
the word that is sought must stand out.

The output map is zero at first: an untaught memory changes nothing. With `read_out`, where teaching begins, it is the
way back from values to embeddings, along which the word that was recalled gains in the logits: it answers some
questions without any teaching, and disturbs everything else.

The text matters little. By default it is the manual that comes with Python.
"""

import math
import pydoc_data.topics

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .low_rank_linear import LowRankLinear
from .recall_memory_sleep import RecallMemoryLayer, RecallState, sees_inputs


logger = logging.get_logger(__name__)

TOKENS = 8_192  # to be read, at least
AT_ONCE = 2_048
SAMPLED_EMBEDDINGS = 32_768
BLOCKS = 4  # of c that queries and keys see from the beginning: x, the mean, two poolings; more hardly differ yet
SMOOTHING = 0.02  # of the mean variance, so that what hardly varies is not blown up to noise
VALUE_SMOOTHING = 1.0  # of the mean square of embeddings, most of which is what all of them share


def calibration_windows(
    texts: list[str] | list[list[int]] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    window_size: int,
    vocab_size: int,
) -> torch.Tensor:
    """
    Windows to be read by a model that is calibrated.

    Parameters
    ----------
    texts : list[str] or list[list[int]], optional
        Texts, or their tokens. Default: Python's manual; without a tokenizer, random tokens.
    tokenizer : PreTrainedTokenizerBase, optional
        For texts.
    window_size, vocab_size : int
        Of the model.

    Returns
    -------
    torch.Tensor
        (windows, window_size) of int. Texts that are too short for that many tokens give fewer.

    Raises
    ------
    ValueError
        If texts are given without a tokenizer, or too short for a window.
    """
    if texts is None and tokenizer is None:
        logger.warning_once(
            "The memory is calibrated with random tokens, as there is no tokenizer: give `calibration`, some texts' "
            "tokens, for a better one."
        )
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocab_size, (-(-TOKENS // window_size), window_size), generator=generator)
    texts = list(pydoc_data.topics.topics.values()) if texts is None else texts
    windows: list[list[int]] = []
    for text in texts:
        if isinstance(text, str):
            if tokenizer is None:
                raise ValueError("`calibration` holds texts, but there is no tokenizer: give their tokens instead.")
            text = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += [text[i : i + window_size] for i in range(0, len(text) - window_size + 1, window_size)]
        if len(windows) * window_size >= TOKENS:
            break
    if not windows:
        raise ValueError(
            f"`calibration` holds no text of {window_size} tokens, which is one window: give longer texts."
        )
    return torch.tensor(windows)


@torch.no_grad()
def calibrate(model: nn.Module, windows: torch.Tensor, read_out: float = 0.0) -> None:
    """
    Calibrate all recall memories of a [`SleepModel`], in place.

    Parameters
    ----------
    model : SleepModel
    windows : torch.Tensor
        (windows, window_size) of token ids, each read by itself.
    read_out : float
        Of the hidden state's length, how much is added where a memory is sure of a word.
    """
    memories = [layer for layer in model.layers if isinstance(layer, RecallMemoryLayer)]
    key_layer = model.config.recall_key_layer
    # Of each memory, the layer whose input its keys are made of.
    keyed = {memory: memory if key_layer is None else model.layers[key_layer] for memory in memories}
    hidden_states = {layer: [] for layer in (*keyed, *keyed.values())}
    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: hidden_states[module].append(inputs[0]))
        for layer in hidden_states
    ]
    try:
        for batch in windows.split(max(1, AT_ONCE // windows.shape[1])):
            model(batch.to(model.embed_tokens.weight.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for memory in memories:
        calibrate_memory(memory, hidden_states[keyed[memory]], model.embed_tokens.weight)
        if read_out:
            open_read_out(memory, hidden_states[memory], weight_of(model.norm), read_out)


@torch.no_grad()
def calibrate_memory(
    memory: RecallMemoryLayer, key_hidden_states: list[torch.Tensor], embeddings: torch.Tensor
) -> None:
    """
    Set up queries, keys and values of one memory, in place, from what the model knows before it, or before
    `recall_key_layer`.

    Parameters
    ----------
    memory : RecallMemoryLayer
    key_hidden_states : list[torch.Tensor]
        Of windows, (windows, length, hidden_size) each.
    embeddings : torch.Tensor
        (vocab_size, hidden_size).
    """
    moments = None
    for batch in key_hidden_states:
        x = memory.feature_norm(batch)
        state = RecallState(features=x, pool_keys=memory.pool_k_proj(x))
        context = memory.context(x, state, torch.arange(x.shape[1], device=x.device).unsqueeze(0))
        blocks = context.flatten(0, 1).unflatten(-1, (-1, x.shape[-1])).transpose(0, 1)[:BLOCKS].double()
        new = blocks.shape[1], blocks.sum(1), blocks.mT @ blocks
        moments = new if moments is None else tuple(a + b for a, b in zip(moments, new, strict=True))
    number, total, squares = moments
    mean = total / number
    whitening(memory, mean, squares / number - mean.unsqueeze(-1) * mean.unsqueeze(-2))

    if memory.v_proj.out_features > embeddings.shape[-1]:
        raise ValueError(
            f"`recall_value_dim` is {memory.v_proj.out_features}, but embeddings have only {embeddings.shape[-1]} "
            "directions: choose a smaller one."
        )
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(embeddings), generator=generator)[:SAMPLED_EMBEDDINGS]
    E = embeddings[sample.to(embeddings.device)].double()
    white = whitened(E.T @ E / len(E), memory.v_proj.out_features, VALUE_SMOOTHING)
    memory.v_proj.weight.copy_(white / (E @ white.T).std().clamp_min(1e-12))


@torch.no_grad()
def open_read_out(
    memory: RecallMemoryLayer, hidden_states: list[torch.Tensor], final_norm: torch.Tensor, share: float
) -> None:
    """
    Let the output map lead from values back to embeddings, in place.

    Parameters
    ----------
    memory : RecallMemoryLayer
        Calibrated.
    hidden_states : list[torch.Tensor]
        Before it.
    final_norm : torch.Tensor
        (hidden_size,): the weight of the norm before the head, which is to weight the embedding's directions alike.
    share : float
        Of the hidden states' length, how much is added where the memory is sure of a word.
    """
    length = torch.cat([batch.float().norm(dim=-1).flatten() for batch in hidden_states]).median()
    weight = final_norm.float()
    directions = F.normalize(memory.v_proj.weight.float(), dim=-1)
    back = directions.T / weight.clamp_min(0.1 * weight.abs().mean()).unsqueeze(-1) * weight.abs().mean()
    memory.o_proj.weight.copy_(share * length / math.sqrt(len(directions)) * back)


@torch.no_grad()
def weight_of(norm: nn.Module) -> torch.Tensor:
    """What an RMS norm multiplies by, (hidden_size,), however it keeps it: as the weight, or as the weight minus 1."""
    return norm(torch.ones_like(norm.weight))


def whitened(moments: torch.Tensor, components: int, smoothing: float) -> torch.Tensor:
    """
    The map, (components, d), to the first principal components, each scaled to variance 1, of what has these second
    moments, (d, d); `smoothing`, a share of their mean, is added to each before.
    """
    variance, directions = torch.linalg.eigh(moments)  # ascending
    variance, directions = variance[-components:].clamp_min(0), directions[:, -components:]
    return (directions * (variance + smoothing * moments.diagonal().mean()).rsqrt()).T


def whitening(memory: RecallMemoryLayer, mean: torch.Tensor, covariance: torch.Tensor) -> None:
    """Queries and keys: the first principal components of each part of the context by itself, to variance 1."""
    first = sees_inputs(memory.q_proj)
    rows = first.out_features
    sizes = [rows // len(mean) + (i < rows % len(mean)) for i in range(len(mean))]
    weight, bias = torch.zeros_like(first.weight), first.weight.new_zeros(rows)
    row = 0
    for i, size in enumerate(sizes):
        size = min(size, covariance.shape[-1])
        part = whitened(covariance[i], size, SMOOTHING)
        columns = slice(i * part.shape[1], (i + 1) * part.shape[1])
        weight[row : row + size, columns] = part.to(weight)
        bias[row : row + size] = -(part @ mean[i]).to(bias)
        row += size
    for projection in (memory.q_proj, memory.k_proj):  # what keys see in hindsight is left to teaching
        sees_inputs(projection).weight[:, : weight.shape[1]] = weight
        if isinstance(projection, LowRankLinear):  # components alike in all directions, as they are without `up`
            mixed = torch.randn(projection.out_features, rows, generator=torch.Generator().manual_seed(0))
            projection.up.weight.copy_(torch.linalg.qr(mixed).Q)
            projection.bias.copy_(projection.up.weight @ bias)
        else:
            projection.bias.copy_(bias)
