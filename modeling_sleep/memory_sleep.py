"""The memory as a thing: save it, load it, fork it, join several, and ask it.

However long a text was, what is left of it is S and at most one window. So a memory is small, can be copied, and goes
on anywhere exactly where it stopped.

Of a [`SleepMemory`] nobody needs the text any more. That changes one rule: what `generate` is given with an ordinary
cache is the whole text, of which it skips what the cache has read; what it is given with a memory is *new*, always.
The type says which of the two holds, so that nothing has to be guessed from lengths. And `generate` works on a fork,
so that a memory is never changed behind anybody's back: ask it a hundred questions, and it is what it was.
"""

import copy
import datetime
from collections.abc import Sequence
from pathlib import Path

import torch

from .cache_sleep import ROW_NUMBERS, TENSORS, SleepCache, SleepState, check_cache, read_state, write_state
from .layers_sleep import AttentionState, DeltaNetState
from .memory_file_sleep import check_fingerprint, core_of, fingerprint, read_file, read_record, write_file
from .recall_memory_sleep import RecallState
from .window_sleep import PerRow, added, scaled


STATES = {"sleep_attention": AttentionState, "linear_attention": DeltaNetState, "recall_memory": RecallState}
NUMBERS = ("columns", "kept_columns", "seen", "pinned_tokens", *ROW_NUMBERS)


class SleepMemory(SleepCache):
    """
    A [`SleepCache`] whose text nobody needs any more: tokens given with it are new.

    `model.read` makes one of a text, `model.memory_of` of a cache, `SleepMemory.load` of a file, and `generate`
    returns one if it was given one. `forward` takes it as any cache, and changes it.

    Attributes
    ----------
    notes : dict
        Anything that JSON can hold, saved with the memory.
    sleep_passes : int | None
        N of its last reading, as far as `model.read` was told.
    interrupted : bool
        Whether `model.read` was stopped before the end of its text.
    """

    is_memory = True
    sleep_passes: int | None = None
    interrupted = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes: dict = {}

    @property
    def state(self) -> SleepState:
        """All that it holds."""
        common = next((x.common for x in self.layers if getattr(x, "common", None) is not None), SleepState.empty(0))
        return common._replace(
            layers=tuple(getattr(layer, "state", None) for layer in self.layers),
            window_start=tuple(getattr(layer, "window_start_state", None) for layer in self.layers),
        )

    @state.setter
    def state(self, state: SleepState) -> None:
        write_state(self, state, self)

    @property
    def layer_types(self) -> list[str]:
        """Of each layer, as in a configuration, as far as it matters to who carries what is kept once for all."""
        return [getattr(layer, "_layer_type", None) for layer in self.layers]

    @property
    def tokens(self) -> PerRow:
        """Tokens that were read, of each row or one number for all."""
        return self.state.read

    @property
    def sleeps(self) -> PerRow:
        """Windows that have been slept over, of each row or one number for all."""
        return self.state.sleeps

    @property
    def rows(self) -> int:
        """Number of rows, 0 before the first token."""
        last = self.state.last_hidden_state
        return 0 if last is None else last.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.state.nbytes()

    def fork(self, times: int = 1) -> "SleepMemory":
        """
        The same memory once more, or `times` times: every row becomes so many rows, one below the other.

        A single fork costs nothing, as the two share their tensors: states are replaced, never written into.
        """
        if times < 1:
            raise ValueError(f"`times` is a number of forks, at least 1, got {times}.")
        fork = copy.deepcopy(self, {id(x): x for x in self.state.tensors()})
        if times > 1 and self.rows:
            fork.batch_repeat_interleave(times)
        return fork

    def row(self, index: int) -> "SleepMemory":
        """One row, counted from 0, as a memory of its own."""
        if not 0 <= index < self.rows:
            raise ValueError(f"There is no row {index}: this memory has {self.rows}, counted from 0.")
        row = self.fork()
        row.reorder_cache(torch.tensor([index]))
        return row

    @classmethod
    def join(cls, memories: Sequence["SleepMemory"]) -> "SleepMemory":
        """
        Several memories of one model as the rows of one, in this order. Their windows may be filled differently.

        Raises
        ------
        ValueError
            If one of them is empty, or they differ in dtype, device or `pinned_tokens`.
        """
        if not memories or not all(memory.rows for memory in memories):
            raise ValueError("Memories to join must have read something, and there must be at least one.")
        states = [memory.state for memory in memories]
        kinds = {(s.last_hidden_state.dtype, s.last_hidden_state.device, s.pinned_tokens) for s in states}
        if len(kinds) > 1:
            raise ValueError(f"Memories to join must agree in dtype, device and `pinned_tokens`, got {kinds}.")
        seen, rows = max(state.seen for state in states), sum(memory.rows for memory in memories)
        same = {name: getattr(states[0], name) for name in ("pinned_tokens", "looped_layers")}
        whole = SleepState.empty(len(states[0].layers))._replace(seen=seen, **same)
        first = 0
        for memory, state in zip(memories, states, strict=True):
            # Shorter texts count as padded on the left.
            state = state._replace(places=added(state.places, scaled(state.read, seen - state.seen)))
            whole = whole.put(tuple(range(first, first + memory.rows)), state, rows)
            first += memory.rows
        joined = memories[0].fork()
        joined.state = whole
        return joined

    def save(
        self,
        path: str | Path,
        model,
        nap: bool = False,
        sleep_passes=None,
        row: int | None = None,
        notes: dict | None = None,
    ) -> None:
        """
        Save the memory as a file. The memory itself stays as it is.

        Going on from the file equals going on without the detour, bit for bit on one machine. Its size does not depend
        on how much was read.

        Parameters
        ----------
        path : str or Path
            Where the file goes. What is there is replaced, once the new file is whole.
        model : SleepPreTrainedModel
            The model that read the text.
        nap : bool, optional
            Sleep over the current window first, so that the file holds no keys and values. Default: a window is saved
            as it is, as full as it is.
        sleep_passes : int or Sleep, optional
            N of this nap. Default: `config.sleep_passes`.
        row : int, optional
            Save this row alone. Default: all.
        notes : dict, optional
            What is to stand in the file, beside what the memory notes already: anything that JSON can hold.

        Raises
        ------
        ValueError
            If `model` is of another make than the one that read the text. That its weights are those is not seen.
        """
        check_cache(self, model.config)
        memory = self if row is None else self.row(row)
        if nap:
            memory = model.sleep(memory.fork(), sleep_passes)
        state = memory.state
        record = {
            "model": fingerprint(model),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "tokens": state.read,
            "sleeps": state.sleeps,
            "sleep_passes": memory.sleep_passes or model.config.sleep_passes,
            "rows": memory.rows,
            "interrupted": memory.interrupted,
            "notes": {**memory.notes, **(notes or {})},
            "state": {name: getattr(state, name) for name in NUMBERS},
        }
        write_file(Path(path), _named(state), record)

    @classmethod
    def load(cls, path: str | Path, model, force: bool = False) -> "SleepMemory":
        """
        The memory in a file, on the device of `model`.

        Parameters
        ----------
        path : str or Path
            What `save` wrote.
        model : SleepPreTrainedModel
            The model that it belongs to.
        force : bool, optional
            Load it into a model of the same make with other weights or another dtype, too.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If it is damaged, no memory, written by newer code, or belongs to another model.
        """
        path = Path(path)
        tensors, record = read_file(path)
        check_fingerprint(path, record, model, force)
        core = core_of(model)
        memory = cls(config=model.config)
        read_state(memory, model.config)  # which gives every layer of the cache its own class
        state = _placed(_from_named(tensors, record["state"], model.config.layer_types), core)
        memory.state = state._replace(looped_layers=core.config.looped_layers)
        memory.sleep_passes, memory.interrupted = record["sleep_passes"], record["interrupted"]
        memory.notes = record["notes"]
        return memory

    @staticmethod
    def info(path: str | Path) -> dict:
        """What a file says of itself, for which no model is needed: tokens, sleeps, time, notes, ..."""
        return read_record(Path(path))


class MemoryMixin:
    """Adds `memory_of()` to a model."""

    def memory_of(self, past_key_values) -> SleepMemory:
        """
        What a cache of this model holds, as a memory, with which tokens given are new. The cache stays as it is.

        Parameters
        ----------
        past_key_values : Cache
            What `forward` or `generate` returned.
        """
        if getattr(past_key_values, "is_memory", False):
            return past_key_values.fork()
        state = read_state(past_key_values, self.config)
        memory = SleepMemory(config=self.config)
        read_state(memory, self.config)
        memory.state = state
        return memory


class MemoryTurn:
    """
    One call of `generate` with a memory: it works on a fork, whose text begins with the tokens given.

    transformers counts from the cache's first token; so the fork says that it has read nothing, until the call ends.

    Parameters
    ----------
    memory : SleepMemory
        Stays as it is.
    batch : int
        Rows of the tokens given. A memory of one row serves them all.
    times : int
        Into how many rows `generate` expands each of them: beams, or sequences to return.
    given : int
        Length of the token ids given, with which the sequences that come back begin.
    """

    def __init__(self, memory: SleepMemory, batch: int, times: int, given: int):
        if memory.rows not in (0, 1, batch):
            raise ValueError(
                f"The memory holds {memory.rows} rows, and the new tokens have {batch}. Give as many rows of "
                "tokens, or a memory of one row, which serves any number of them."
            )
        self.times, self.given = times, given
        self.memory = memory.fork(batch if memory.rows == 1 else 1)
        self.fork = self.memory.fork(times)
        self.before = self.fork.state
        self.fork.state = self.before._replace(seen=0, read=0, places=0)

    def new_mask(self, mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """Of the new tokens alone, where a mask speaks of all that was read, too."""
        seen = self.memory.state.seen
        return mask[:, seen:] if mask is not None and seen and mask.shape[1] == seen + length else mask

    def end(self) -> SleepMemory:
        """The fork, with all that it has read counted."""
        state, before = self.fork.state, self.before
        self.fork.state = state._replace(
            seen=before.seen + state.seen,
            read=added(before.read, state.read),
            places=added(added(before.places, state.places), scaled(state.read, before.seen)),
        )
        return self.fork


def _named(state: SleepState) -> dict[str, torch.Tensor]:
    """All tensors of a state, by names such as `layers.1.recurrent_state`."""
    named = {}
    for name in TENSORS:
        value = getattr(state, name)
        if not isinstance(value, tuple):
            named[name] = value
            continue
        for i, layer_state in enumerate(value):
            if layer_state is not None:
                named |= {f"{name}.{i}.{field}": x for field, x in layer_state._asdict().items()}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _from_named(tensors: dict[str, torch.Tensor], numbers: dict, layer_types: list[str]) -> SleepState:
    """The inverse of `_named`."""
    numbers = {name: tuple(x) if isinstance(x, list) else x for name, x in numbers.items()}
    values = {name: tensors.get(name) for name in TENSORS}
    for name in ("layers", "window_start"):
        states = []
        for i, layer_type in enumerate(layer_types):
            kind, prefix = STATES[layer_type], f"{name}.{i}."
            fields = {field: tensors[prefix + field] for field in kind._fields if prefix + field in tensors}
            states.append(kind(**fields) if fields else None)
        values[name] = tuple(states)
    return SleepState(**values, **numbers)


def _placed(state: SleepState, core) -> SleepState:
    """On the model's devices and in its dtype, S in float32 or better, and what is no number as it is."""
    dtype, S_dtype = core.dtype, torch.promote_types(core.dtype, torch.float32)

    def put(x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return x.to(device, dtype if x.is_floating_point() else None)

    layers = {"layers": [], "window_start": []}
    for name, placed in layers.items():
        for layer, layer_state in zip(core.layers, getattr(state, name), strict=True):
            if layer_state is not None:
                device, S = next(layer.parameters()).device, layer.fast_weights(layer_state)
                tensors = (x if x is None else put(x, device, S_dtype if x is S else dtype) for x in layer_state)
                layer_state = type(layer_state)(*tensors)
            placed.append(layer_state)
    state = state.map(lambda x: put(x, core.device, dtype))
    return state._replace(**{name: tuple(placed) for name, placed in layers.items()})


__all__ = ["SleepMemory"]
