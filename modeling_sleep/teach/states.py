"""What the frozen model knows of a window, computed once.

A memory is read as it stood when a window began, and the layers before it do not see it. So what they make of a
window depends on the window alone, and on the keys that `window_overlap` and `pinned_tokens` keep of its text before
it: it is computed once, kept on disk, and shared by all steps and all runs. Of windows that ask, the keys and values
that the layers behind the memory make without it are kept as well, and what they predict; unless nothing is to be read
through these layers: then only those run of which keys are made.

One file holds the windows of one text. Its name tells the model's weights, in what they compute, and the tokens; the
oldest files go when the folder grows over its limit.
"""

import contextlib
import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..cache_sleep import SleepState
from ..heads_sleep import SleepForCausalLM
from ..layers_sleep import AttentionState
from ..masks_sleep import new_window, whole_window
from ..memory_file_sleep import digest_of
from ..window_sleep import per_row


AT_ONCE = 2_048  # tokens that the model reads at once


@dataclass
class Read:
    """
    A window as the model knows it without a memory.

    Attributes
    ----------
    ids : list[int]
    key_hidden_states : torch.Tensor
        (length, hidden_size), of which the memory makes keys: before it, or before `recall_key_layer`.
    hidden_states : torch.Tensor | None
        (length, hidden_size), before the memory; with `recall_key_layer`, of windows that ask.
    keys, values : torch.Tensor | None
        (layers behind the memory, key_value_heads, length, head_dim), of windows that ask.
    last_hidden_state : torch.Tensor | None
        (length, hidden_size), before the head, of windows that ask.
    kept_keys, kept_values : torch.Tensor | None
        Of the text's pinned tokens and of those of the overlap, turned to where they stand now, of windows that ask.
    kept_key_hidden_states : torch.Tensor | None
        (window_overlap, hidden_size), the same of the tokens before the window. None where none are kept.
    """

    ids: list[int]
    key_hidden_states: torch.Tensor
    hidden_states: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    kept_keys: torch.Tensor | None = None
    kept_values: torch.Tensor | None = None
    kept_key_hidden_states: torch.Tensor | None = None


# What of a window a file holds; of tokens kept from before it, what keys are made of is in the window before.
STORED = ("key_hidden_states", "hidden_states", "keys", "values", "last_hidden_state", "kept_keys", "kept_values")


class StateCache:
    """
    Reads texts with a model, once.

    Parameters
    ----------
    model : SleepForCausalLM
        With one recall memory.
    folder : Path
        Where to keep what it knows.
    limit : float
        Bytes that the folder may hold.
    autocast : torch.dtype, optional
        In which the layers compute.
    """

    def __init__(self, model: SleepForCausalLM, folder: Path, limit: float = 6e9, autocast: torch.dtype | None = None):
        self.model, self.folder, self.limit, self.autocast = model, Path(folder), limit, autocast
        self.place, self.key_layer = model.config.layer_types.index("recall_memory"), model.config.recall_key_layer
        kinds = model.config.layer_types
        # Other mixers than attention would have to be read again from the window's first token anyway.
        self.keeps_keys = set(kinds[self.place + 1 :]) == {"sleep_attention"}
        # Hybrids are read window by window, while their own state would go on.
        reads_on = set(kinds) <= {"sleep_attention", "recall_memory"}
        self.overlap = model.config.window_overlap if reads_on else 0
        self.pinned = model.config.pinned_tokens if reads_on else 0
        self.keeps = self.overlap + self.pinned > 0
        self.fingerprint = fingerprint(model)
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def layers(self) -> nn.Module:
        """Those that read, made when the first text is not on disk."""
        layers = self.model.model.layers
        return with_matrices_in(self.autocast, layers) if self.autocast else layers

    def read(
        self, story: Sequence[list[int]], asking: Sequence[list[int]] = (), through: bool = True
    ) -> tuple[list[Read], list[list[Read]]]:
        """
        What the model knows of each window of a story, and of each window of each text that asks behind it. Without
        `through`, of the latter what keys are made of alone.
        """
        place = self.place if self.key_layer is None else (self.key_layer, self.place)
        told = [self.fingerprint, str(self.autocast), place, self.overlap, self.pinned, story, asking]
        told += [] if through else ["keys alone"]
        path = self.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.safetensors"
        tensors = load(path)
        if tensors is None:
            tensors = {}
            with computing_in(self.autocast, self.model.device):
                self._read(story, asking, through, tensors)
            save(tensors, path)
            tensors = load(path) or tensors  # mapped from the disk
            self._make_room()
        story_reads = self._reads(tensors, "story", story)
        before = story_reads[-1] if story_reads else None
        return story_reads, [self._reads(tensors, i, self._windows(ids), before) for i, ids in enumerate(asking)]

    def _windows(self, ids: list[int]) -> list[list[int]]:
        size = self.model.config.window_size
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _reads(self, tensors: dict, text: str | int, windows: Sequence[list[int]], before: Read | None = None):
        """The windows of a text, which stands behind the window `before`."""
        reads = []
        for i, ids in enumerate(windows):
            read = Read(ids, **{field: tensors.get(tensor_name((text, i), field)) for field in STORED})
            if self.key_layer is None:
                read.key_hidden_states = read.hidden_states
            if self.overlap and before is not None:
                read.kept_key_hidden_states = before.key_hidden_states[-self.overlap :]
            reads.append(read)
            before = read
        return reads

    @torch.no_grad()
    def _read(self, story, asking, through: bool, tensors: dict[str, torch.Tensor]) -> None:
        state = SleepState.empty(len(self.model.model.layers))._replace(pinned_tokens=self.pinned)
        texts = [self._windows(ids) for ids in asking]
        if not self.keeps:  # windows do not know of one another: all at once
            told = [(("story", i), ids) for i, ids in enumerate(story)]
            asked = [((text, i), ids) for text, windows in enumerate(texts) for i, ids in enumerate(windows)]
            for named in (told, asked):
                for indices in batches([ids for _, ids in named]):
                    names, windows = zip(*(named[i] for i in indices))
                    self._window(state, names, windows, through, tensors)
            return
        for i, ids in enumerate(story):
            state = self._window(state, [("story", i)], [ids], through, tensors)
        for rows in batches(asking):
            before = state.select((0,) * len(rows), 1)
            for number in range(max(len(texts[row]) for row in rows)):
                going_on = [row for row in rows if len(texts[row]) > number]
                before = before.select(tuple(map(rows.index, going_on)), len(rows))
                rows = going_on
                names, windows = [(row, number) for row in rows], [texts[row][number] for row in rows]
                before = self._window(before, names, windows, through, tensors)

    def _window(
        self,
        state: SleepState,
        names: Sequence[tuple],
        windows: Sequence[list[int]],
        through: bool,
        tensors: dict[str, torch.Tensor],
    ) -> SleepState:
        """
        Read one window of each row, behind what `state` has kept; `through` all layers, if these or the next ones ask.
        Returns what is kept of them in turn.
        """
        model, place = self.model.model, self.place
        asks = through and names[0][0] != "story"
        embeds = model.embed_tokens(padded(windows).to(model.device))
        lengths = per_row([len(ids) for ids in windows])
        window = new_window(model.config, state, embeds, lengths, 1, {})
        first = place if self.key_layer is None else self.key_layer
        keyed, before = self.layers.run(embeds, list(state.layers[:first]), start=0, window=window)
        hidden_states, behind = keyed, []
        if asks or (through and self.keeps):
            between = list(state.layers[first:place])
            hidden_states, between = self.layers.run(keyed, between, start=first, window=window)
            before = [*before, *between]
            behind = list(state.layers[place + 1 :])
            last, behind = self.layers.run(hidden_states, behind, start=place + 1, window=window)
        for row, (name, ids) in enumerate(zip(names, windows, strict=True)):
            found = {} if self.key_layer is None else {"key_hidden_states": keyed[row, : len(ids)]}
            if asks or self.key_layer is None:
                found["hidden_states"] = hidden_states[row, : len(ids)]
            if asks:
                found["last_hidden_state"] = model.norm(last[row, : len(ids)])
            for field in ("keys", "values") if asks and self.keeps_keys else ():
                found[field] = torch.stack([getattr(x, field)[row, :, : len(ids)] for x in behind])
                if state.kept_columns:
                    found[f"kept_{field}"] = torch.stack([getattr(x, f"kept_{field}")[row] for x in behind])
            tensors |= {tensor_name(name, field): small(x) for field, x in found.items()}
        if not self.keeps:
            return state
        layers = (*before, None, *behind) if through else (*before, *state.layers[first:])
        state = state._replace(layers=layers, stored=lengths, columns=embeds.shape[1])
        return model._forget(state, whole_window(model.config, state, is_replayed=False))

    def _make_room(self) -> None:
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.safetensors")]
        excess = sum(size for _, size, _ in files) - self.limit
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def fingerprint(model: SleepForCausalLM) -> str:
    """Tells the weights that do not belong to a memory from others."""
    memories = tuple(f"model.layers.{i}." for i in model.config.memory_layers)
    return digest_of({name: x for name, x in model.named_parameters() if not name.startswith(memories)})


def tensor_name(window: tuple, field: str) -> str:
    """Of a window, `("story", number)` or `(text that asks, number)`, in a file."""
    return f"{window[0]}.{window[1]}.{field}"


def computing_in(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to a dtype, if there is one."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def with_matrices_in(dtype: torch.dtype, layers: nn.Module) -> nn.Module:
    """
    A copy of layers with their matrices in `dtype`, all else shared. Under autocast it gives the same, and autocast
    would cast them at every call.
    """
    shared = {id(parameter): parameter for parameter in layers.parameters()}
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            shared[id(module.weight)] = nn.Parameter(module.weight.to(dtype), requires_grad=False)
    return copy.deepcopy(layers, shared)


def batches(windows: Sequence[list[int]]) -> list[list[int]]:
    """Indices of windows that are read together: of similar lengths, and not too many tokens."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
    parts: list[list[int]] = []
    for i in order:
        if not parts or (len(parts[-1]) + 1) * len(windows[i]) > AT_ONCE:
            parts.append([])
        parts[-1].append(i)
    return parts


def padded(windows: Sequence[list[int]]) -> torch.Tensor:
    """Token ids, (windows, longest), padding behind."""
    longest = max(map(len, windows))
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in windows])


def small(tensor: torch.Tensor) -> torch.Tensor:
    """In half precision, on the CPU; in the one with the larger range where that is needed."""
    half = tensor.half()
    return (half if half.isfinite().all() else tensor.bfloat16()).cpu().contiguous()


def load(path: Path) -> dict[str, torch.Tensor] | None:
    """
    What lies in a file, if it is there and whole; it counts as used now. It is mapped from the disk, so that lessons
    take no memory that the system could not take back.
    """
    try:
        tensors = load_file(path)
        path.touch()
        return tensors
    except (OSError, SafetensorError):
        return None


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Nobody ever sees half a file."""
    partial = path.with_suffix(f".{torch.randint(2**31, (1,)).item()}.tmp")
    save_file(tensors, partial)
    partial.replace(path)


def attention_states(reads: Sequence[Read], lengths: Sequence[int], like: torch.Tensor) -> list[AttentionState]:
    """Keys and values of the first so many tokens of each window, and kept ones, for each layer behind the memory."""

    def joined(name: str, lengths: Sequence[int]) -> Sequence[torch.Tensor]:
        first = reads[0].keys
        whole = like.new_zeros(first.shape[0], len(reads), first.shape[1], max(lengths), first.shape[3])
        for row, (read, length) in enumerate(zip(reads, lengths, strict=True)):
            if length:
                whole[:, row, :, :length] = getattr(read, name)[:, :, :length].to(like)
        return whole.unbind(0)

    parts = [joined(name, lengths) for name in ("keys", "values")]
    kept = [0 if read.kept_keys is None else read.kept_keys.shape[2] for read in reads]  # all of a row's, or none
    if any(kept):
        parts += [joined(name, kept) for name in ("kept_keys", "kept_values")]
    return [AttentionState(*states) for states in zip(*parts, strict=True)]


def kept_tensors(reads: Sequence[Read], like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Of the tokens kept from before each window, what keys are made of, (windows, kept, hidden_size), and which are any;
    None if none are.
    """
    each = [read.kept_key_hidden_states for read in reads]
    some = next((kept for kept in each if kept is not None), None)
    if some is None:
        return None, None
    has_kept = torch.tensor([kept is not None for kept in each], device=like.device)
    kept = torch.stack([torch.zeros_like(some) if kept is None else kept for kept in each])
    return kept.to(like), has_kept.unsqueeze(1).expand(-1, len(some))
