"""How a memory writes stories and is read, by itself and through the layers behind it."""

from typing import NamedTuple

import torch

from ..cache_sleep import SleepState
from ..heads_sleep import SleepForCausalLM
from ..masks_sleep import new_window
from ..recall_memory_sleep import RecallMemoryLayer, RecallState, recall, write
from ..window_sleep import per_row
from .lessons import Asked
from .states import Read, attention_states, computing_in


# Tokens of the prompt, before the answer, that read the memory in training; those before them are left as they were.
LEAD = 6


def written(
    memory: RecallMemoryLayer,
    hidden_states: torch.Tensor,
    embeddings: torch.Tensor,
    passes: int = 1,
    S: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    S after stories, and the betas of their tokens.

    Parameters
    ----------
    memory : RecallMemoryLayer
    hidden_states, embeddings : torch.Tensor
        (stories, windows, length, hidden_size) each.
    passes : int
        How often each window is written.
    S : torch.Tensor, optional
        (stories, 1, key_dim, value_dim), as it is before. Default: empty.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        (stories, 1, key_dim, value_dim) and (stories, windows, length).
    """
    x = memory.input_layernorm(hidden_states.flatten(0, 1))
    state = RecallState(None, x, memory.pool_k_proj(x), memory.v_proj(embeddings.flatten(0, 1)))
    inputs = [y.unflatten(0, hidden_states.shape[:2]) for y in memory.write_inputs(state, None)]
    beta = inputs[3]
    if passes == 1:  # windows one behind the other are one long sequence to the rule
        return write(*(y.flatten(1, 2) for y in inputs), S), beta
    for key, value, log_decay, step in zip(*(y.unbind(1) for y in inputs), strict=True):
        for n in range(passes):
            S = write(key, value, log_decay if n == 0 else torch.zeros_like(log_decay), step, S)
    return S, beta


def found_alone(
    memory: RecallMemoryLayer, S: torch.Tensor, rows: list[int], reads: list[Read], places: list[list[int]]
) -> torch.Tensor:
    """
    What S gives, without any layer of the model.

    Parameters
    ----------
    S : torch.Tensor
        (stories, 1, key_dim, value_dim).
    rows : list[int]
        The story that each window asks.
    reads : list[Read]
    places : list[list[int]]
        The tokens of each window that read, at least one.

    Returns
    -------
    torch.Tensor
        (all places, value_dim).
    """
    weight = memory.q_proj.weight
    hidden_states, _ = joined([read.hidden_states for read in reads], weight)
    x = memory.input_layernorm(hidden_states)
    positions, is_place = joined([torch.tensor(p) for p in places], torch.zeros(1, dtype=torch.long))
    positions, is_place = positions.to(weight.device), is_place.to(weight.device)
    chosen = x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    context = memory.context(chosen, RecallState(None, x, memory.pool_k_proj(x)), positions)
    return recall(memory.q_proj(context), S[rows])[is_place]


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
    rows: list[int],
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
    S, rows, reads :
        As in `found_alone`.
    begins : list[int]
    autocast : torch.dtype, optional
        In which the layers behind the memory compute.
    """
    if reads[0].keys is None:
        begins = [0] * len(reads)
    memory, stack = model.model.layers[place], model.model
    weight = memory.q_proj.weight
    hidden_states, _ = joined([read.hidden_states[begin:] for read, begin in zip(reads, begins)], weight)
    lengths = [len(read.ids) - begin for read, begin in zip(reads, begins)]
    recalled = RecallState(S[rows])
    behind = [None] * (len(stack.layers) - place - 1)
    if max(begins) > 0:
        before, _ = joined([read.hidden_states[:begin] for read, begin in zip(reads, begins)], weight)
        x = memory.input_layernorm(before)
        values = x.new_zeros(*x.shape[:2], memory.v_proj.out_features)  # never written
        recalled = RecallState(S[rows], x, memory.pool_k_proj(x), values)
        behind = attention_states(reads, begins, weight)
    state = SleepState.empty(len(stack.layers))._replace(stored=per_row(begins), columns=max(begins))
    window = new_window(model.config, state, hidden_states, per_row(lengths), 1, {})
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


def answer_begins(asked: list[Asked]) -> list[int]:
    """Where windows that ask begin to read in training."""
    return [max(0, x.begin - LEAD) for x in asked]
