"""How a memory writes stories and is read, by itself and through the layers behind it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..cache_sleep import SleepState
from ..heads_sleep import SleepForCausalLM
from ..masks_sleep import new_window
from ..recall_memory_sleep import RecallMemoryLayer, RecallState, write
from ..window_sleep import per_row
from .everyday import Plain
from .lessons import Asked, StoryTensors, window_tensors
from .states import Read, attention_states, computing_in, kept_tensors


# Tokens of the prompt, before the answer, that read the memory in training; those before them are left as they were.
LEAD = 6


def written(
    memory: RecallMemoryLayer, stories: StoryTensors, passes: int = 1, S: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    S after stories, and the betas of their tokens.

    Parameters
    ----------
    memory : RecallMemoryLayer
    stories : StoryTensors
    passes : int
        How often each window is written.
    S : torch.Tensor, optional
        (stories, 1, key_dim, value_dim), as it is before. Default: empty.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        (stories, 1, key_dim, value_dim) and (stories, windows, length).
    """
    if passes == 1:
        return written_at_once(memory, stories, S)[:2]
    known, log_decay, beta = gates_of(memory, stories)
    for told in zip(*(y.unbind(1) for y in (known, stories.embeddings, log_decay, beta)), strict=True):
        key, value, decay, step = keys_and_values(memory, *told)
        for n in range(passes):
            S = write(key, value, decay if n == 0 else torch.zeros_like(decay), step, S)
    return S, beta


class WrittenKeys(NamedTuple):
    """
    Keys of what was written of stories.

    Attributes
    ----------
    key : torch.Tensor
        (stories, most, key_dim), before they are normalised.
    place : torch.Tensor
        (stories, most): which token of its story each belongs to, windows behind one another.
    is_any : torch.Tensor
        (stories, most) of bool: False for padding.
    """

    key: torch.Tensor
    place: torch.Tensor
    is_any: torch.Tensor


def written_at_once(
    memory: RecallMemoryLayer, stories: StoryTensors, S: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, WrittenKeys]:
    """What [`written`] gives for one pass, and the keys. Windows behind one another are one sequence to the rule."""
    known, log_decay, beta = gates_of(memory, stories)
    place, *told = chosen(*(y.flatten(1, 2) for y in (known, stories.embeddings, log_decay, beta)))
    keys_values = keys_and_values(memory, *told)
    return write(*keys_values, S), beta, WrittenKeys(keys_values[0], place, told[-1] > 0)


def gates_of(memory: RecallMemoryLayer, stories: StoryTensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What [`RecallMemoryLayer.gates`] says of stories, (stories, windows, length, ...) each."""
    key_hidden_states, _, kept, is_kept = (None if x is None else x.flatten(0, 1) for x in stories)
    gates = memory.gates(buffers(memory, key_hidden_states, kept, is_kept), None)
    known, log_decay, beta = (y.unflatten(0, stories.key_hidden_states.shape[:2]) for y in gates)
    return known, log_decay, beta


def keys_and_values(
    memory: RecallMemoryLayer,
    known: torch.Tensor,
    embeddings: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """What the rule is given of tokens: of their [c_{t-1}, f_t] the keys, of their embeddings the values."""
    return memory.key(known), memory.v_proj(embeddings).to(beta.dtype), log_decay, beta


def chosen(
    known: torch.Tensor, embeddings: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """
    Of tokens, (rows, tokens, ...), those that are written, and how S decays up to each. Most are not, below the
    threshold, and keys are what costs. Padding, which is not written either, decays as what stands behind the last.
    """
    is_written = beta > 0
    number = is_written.sum(1, keepdim=True)
    place = torch.arange(int(number.max()) + 1, device=beta.device).expand(len(beta), -1)
    last = beta.shape[1] - 1
    order = is_written.long().argsort(dim=1, descending=True, stable=True).gather(1, place.clamp(max=last))
    order = order.masked_fill(place >= number, last)
    known, embeddings = (y.gather(1, order.unsqueeze(-1).expand(-1, -1, y.shape[-1])) for y in (known, embeddings))
    decayed = log_decay.cumsum(1).gather(1, order)
    log_decay = decayed.diff(dim=1, prepend=decayed.new_zeros(len(beta), 1))
    return order, known, embeddings, log_decay, beta.gather(1, order).masked_fill(place >= number, 0)


def buffers(
    memory: RecallMemoryLayer, key_hidden_states: torch.Tensor, kept: torch.Tensor | None, is_kept: torch.Tensor | None
) -> RecallState:
    """What the memory holds of windows, (windows, length, hidden_size), and of what is kept from before them."""
    x = memory.feature_norm(key_hidden_states)
    state = RecallState(None, x, memory.pool_k_proj(x))
    if kept is None:
        return state
    before = memory.feature_norm(kept)
    return state._replace(kept_features=before, kept_pool_keys=memory.pool_k_proj(before), kept=is_kept)


def asleep_before(
    memory: RecallMemoryLayer, S: torch.Tensor, asked: list[Asked], embeddings: torch.Tensor, passes: int = 1
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    S of each question, (questions, 1, key_dim, value_dim), after the windows that its own beginning has filled, each
    written `passes` times; and the betas of their tokens.
    """
    betas = []
    for number in range(max((len(x.before) for x in asked), default=0)):
        rows = [row for row, x in enumerate(asked) if len(x.before) > number]
        tensors = window_tensors([[asked[row].before[number]] for row in rows], embeddings, S.dtype)
        if len(rows) == len(asked):
            S, beta = written(memory, tensors, passes, S)
        else:
            after, beta = written(memory, tensors, passes, S[rows])
            S = S.index_copy(0, torch.tensor(rows, device=S.device), after)
        betas.append(beta)
    return S, betas


def queries_at(
    memory: RecallMemoryLayer, reads: list[Read], places: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries of some tokens of windows, (windows, most places, key_dim), else as [`context_at`]."""
    context, is_place = context_at(memory, reads, places)
    return memory.query(context), is_place


def context_at(
    memory: RecallMemoryLayer, reads: list[Read], places: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What queries of some tokens of windows are made of.

    Parameters
    ----------
    memory : RecallMemoryLayer
    reads : list[Read]
    places : list[list[int]]
        The tokens of each window that read, at least one.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        c, (windows, most places, (2 + poolings) * hidden_size), and which are any, (windows, most places) of bool.
    """
    weight = memory.v_proj.weight
    key_hidden_states, _ = joined([read.key_hidden_states for read in reads], weight)
    state = buffers(memory, key_hidden_states, *kept_tensors(reads, weight))
    x = state.features
    positions, is_place = joined([torch.tensor(p) for p in places], torch.zeros(1, dtype=torch.long))
    positions, is_place = positions.to(weight.device), is_place.to(weight.device)
    chosen = x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return memory.context(chosen, state, positions), is_place


class Through(NamedTuple):
    """
    What the model predicts where it reads a memory.

    Attributes
    ----------
    last_hidden_state : torch.Tensor
        (windows, longest, hidden_size), before the head, from token `begins` of each window on.
    begins : list[int]
    """

    last_hidden_state: torch.Tensor
    begins: list[int]


def read_through(
    model: SleepForCausalLM,
    place: int,
    S: torch.Tensor,
    reads: list[Read],
    begins: list[int],
    autocast: torch.dtype | None = None,
) -> Through:
    """
    Read S from the tokens `begins` on, and go on through the layers behind the memory. What stands before these tokens
    is as if nothing had been read there. Without keys of theirs, all is read from the first token on.

    Parameters
    ----------
    place : int
        Of the memory in the stack.
    S : torch.Tensor
        (windows, 1, key_dim, value_dim): what each window asks.
    reads : list[Read]
    begins : list[int]
    autocast : torch.dtype, optional
        In which the layers behind the memory compute.
    """
    if reads[0].keys is None:
        begins = [0] * len(reads)
    memory, stack = model.model.layers[place], model.model
    weight = memory.v_proj.weight
    hidden_states, _ = joined([read.hidden_states[begin:] for read, begin in zip(reads, begins)], weight)
    lengths = [len(read.ids) - begin for read, begin in zip(reads, begins)]
    kept, is_kept = kept_tensors(reads, weight)
    has_kept = [read.kept_keys is not None for read in reads]
    recalled = RecallState(S)
    behind = [None] * (len(stack.layers) - place - 1)
    if max(begins) > 0 or any(has_kept):
        before, _ = joined([read.key_hidden_states[:begin] for read, begin in zip(reads, begins)], weight)
        values = before.new_zeros(*before.shape[:2], memory.v_proj.out_features)  # never written
        recalled = buffers(memory, before, kept, is_kept)._replace(recurrent_state=S, values=values)
        behind = attention_states(reads, begins, weight)
    overlap, pinned = model.config.window_overlap, model.config.pinned_tokens
    state = SleepState.empty(len(stack.layers))._replace(
        stored=per_row(begins),
        columns=max(begins),
        kept=per_row([overlap * has for has in has_kept]),
        pinned=per_row([pinned * has for has in has_kept]),
        kept_columns=(overlap + pinned) * any(has_kept),
        pinned_tokens=pinned,
    )
    window = new_window(model.config, state, hidden_states, per_row(lengths), 1, {})
    if memory.key_layernorm is not None:
        keyed, _ = joined([read.key_hidden_states[begin:] for read, begin in zip(reads, begins)], weight)
        window = window._replace(key_hidden_states=keyed)
    hidden_states, _ = stack.layers.run(hidden_states, [recalled], start=place, window=window)
    with computing_in(autocast, hidden_states.device):
        hidden_states, _ = stack.layers.run(hidden_states, behind, start=place + 1, window=window)
    return Through(stack.norm(hidden_states), begins)


def joined(parts: list[torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(parts, longest, ...) in the dtype and on the device of `like`, zeros behind; and where there is something."""
    longest = max(map(len, parts))
    whole = parts[0].new_zeros(len(parts), longest, *parts[0].shape[1:])
    is_there = torch.zeros(len(parts), longest, dtype=torch.bool)
    for row, part in enumerate(parts):
        whole[row, : len(part)] = part
        is_there[row, : len(part)] = True
    return whole.to(like), is_there


def answer_begins(asked: Sequence[Asked | Plain]) -> list[int]:
    """Where windows that ask begin to read in training; from their first token where the answer begins before it."""
    return [max(0, x.begin - LEAD) for x in asked]
