"""What the frozen model knows of a window, computed once.

A memory is read as it stood when a window began, and the layers before it do not see it. So what they make of a window
depends on the window alone: it is computed once, kept on disk, and shared by all steps and all runs. Of windows that
ask, the keys and values that the layers behind the memory make without it are kept as well, and what they predict.

One file holds the windows of one text. Its name tells the model's weights, in what they compute, and the tokens; the
oldest files go when the folder grows over its limit.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..cache_sleep import SleepState
from ..heads_sleep import SleepForCausalLM
from ..layers_sleep import AttentionState
from ..masks_sleep import new_window
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
    hidden_states : torch.Tensor
        (length, hidden_size), before the memory.
    keys, values : torch.Tensor | None
        (layers behind the memory, key_value_heads, length, head_dim), of windows that ask.
    last_hidden_state : torch.Tensor | None
        (length, hidden_size), before the head, of windows that ask.
    """

    ids: list[int]
    hidden_states: torch.Tensor
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


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

    def __init__(self, model: SleepForCausalLM, folder: Path, limit: float = 4e9, autocast: torch.dtype | None = None):
        self.model, self.folder, self.limit, self.autocast = model, Path(folder), limit, autocast
        self.place = model.config.layer_types.index("recall_memory")
        behind = model.config.layer_types[self.place + 1 :]
        # Other mixers than attention would have to be read again from the window's first token anyway.
        self.keeps_keys = bool(behind) and set(behind) == {"sleep_attention"}
        self.fingerprint = fingerprint(model)
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, windows: Sequence[list[int]], asking: Sequence[list[int]] = ()) -> tuple[list[Read], list[Read]]:
        """What the model knows of each of these windows, and of each of those that ask."""
        told = json.dumps([self.fingerprint, str(self.autocast), self.place, windows, asking])
        path = self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
        tensors = load(path)
        if tensors is None:
            tensors = {}
            with computing_in(self.autocast, self.model.device):
                self._run(windows, "story", False, tensors)
                self._run(asking, "asking", True, tensors)
            save(tensors, path)
            self._make_room()
        return tuple(
            [
                Read(ids, *(tensors.get(f"{kind}.{i}.{name}") for name in list(Read.__dataclass_fields__)[1:]))
                for i, ids in enumerate(part)
            ]
            for kind, part in (("story", windows), ("asking", asking))
        )

    @torch.no_grad()
    def _run(self, windows: Sequence[list[int]], kind: str, asks: bool, tensors: dict[str, torch.Tensor]) -> None:
        model, place = self.model.model, self.place
        behind = len(model.layers) - place - 1
        for indices in batches(windows):
            embeds = model.embed_tokens(padded([windows[i] for i in indices]).to(model.device))
            lengths = per_row([len(windows[i]) for i in indices])
            window = new_window(model.config, SleepState.empty(len(model.layers)), embeds, lengths, 1, {})
            hidden_states, _ = model.layers.run(embeds, [None] * place, start=0, window=window)
            if asks:
                last, states = model.layers.run(hidden_states, [None] * behind, start=place + 1, window=window)
                last = model.norm(last)
            for row, i in enumerate(indices):
                length = len(windows[i])
                tensors[f"{kind}.{i}.hidden_states"] = small(hidden_states[row, :length])
                if asks:
                    tensors[f"{kind}.{i}.last_hidden_state"] = small(last[row, :length])
                for name in ("keys", "values") if asks and self.keeps_keys else ():
                    both = torch.stack([getattr(state, name)[row, :, :length] for state in states])
                    tensors[f"{kind}.{i}.{name}"] = small(both)

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


def computing_in(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to a dtype, if there is one."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


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
    """What lies in a file, in memory and not mapped from the disk, if it is there and whole; it counts as used now."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())
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
    """Keys and values of the first so many tokens of each window, for each layer behind the memory."""
    columns = max(lengths)
    states = []
    for name in ("keys", "values"):
        first = getattr(reads[0], name)
        joined = like.new_zeros(first.shape[0], len(reads), first.shape[1], columns, first.shape[3])
        for row, (read, length) in enumerate(zip(reads, lengths, strict=True)):
            joined[:, row, :, :length] = getattr(read, name)[:, :, :length].to(like)
        states.append(joined)
    return [AttentionState(keys, values) for keys, values in zip(*states, strict=True)]
