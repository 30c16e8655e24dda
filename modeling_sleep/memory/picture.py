"""A picture of a memory: when its fast weights changed, layer by layer and head by head, and what a question reads.

    change      |S_k - S_{k-1}| / |S_k|: how much of S after the sleep over window k is new
    reading     |q (S_k - S_{k-1})|: how strongly a question's queries q read what changed in window k

The second is exact: the changes of all windows sum up to the last S, so that what a question reads is the sum of what
it reads of each window. A window that erased something counts as what it erased, with the other sign.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..gated_delta_rule import l2_normalise
from ..memory_file_sleep import core_of
from ..memory_sleep import SleepMemory
from ..window_sleep import largest


class Trace(NamedTuple):
    """
    Attributes
    ----------
    change : torch.Tensor
        (heads of all memories, windows).
    reading : torch.Tensor | None
        (heads of all memories, windows), the mean over a question's tokens. None without a question.
    heads : list[str]
        Names of the rows, such as "layer 3, head 0".
    memory : SleepMemory
        After the text.
    """

    change: torch.Tensor
    reading: torch.Tensor | None
    heads: list[str]
    memory: SleepMemory


class Changes:
    """
    How much of S is new, look by look.

    Parameters
    ----------
    model : SleepForCausalLM

    Raises
    ------
    ValueError
        If it has no fast weights.
    """

    def __init__(self, model):
        self.core = core_of(model)
        self.memories = [i for i, layer in enumerate(self.core.layers) if layer.is_memory]
        if not self.memories:
            raise ValueError("A model of attention layers alone has no fast weights to look at.")
        self.before: list[torch.Tensor] = []
        self.sizes: list[torch.Tensor | None] = []

    @torch.no_grad()
    def look(self, memory: SleepMemory) -> list[torch.Tensor]:
        """
        S now less S at the last look, (heads, key_dim, value_dim) of every memory layer; nothing before a first sleep,
        where a memory that is written asleep alone holds none.
        """
        S = self.core.fast_weights(memory.state)
        if any(S[i] is None for i in self.memories):
            self.sizes.append(None)
            return []
        after = [S[i][0].double() for i in self.memories]
        before = self.before or [torch.zeros_like(S) for S in after]
        changes = [S - S_before for S, S_before in zip(after, before, strict=True)]
        self.sizes.append(_norms(changes) / _norms(after).clamp_min(1e-30))
        self.before = after
        return changes

    def trace(self, memory: SleepMemory, reading: torch.Tensor | None = None) -> Trace:
        """What was seen so far."""
        heads = [f"layer {i}, head {h}" for i, S in zip(self.memories, self.before) for h in range(S.shape[0])]
        nothing = torch.zeros(len(heads), dtype=torch.float64)
        sizes = [nothing if size is None else size.cpu() for size in self.sizes]
        return Trace(torch.stack(sizes, dim=1), reading, heads, memory)


@torch.no_grad()
def trace(model, ids: torch.Tensor, question: torch.Tensor | None = None, sleep_passes=None) -> Trace:
    """
    Read a text window by window, with a nap after each, which is what its sleep would be, and look at S.

    Parameters
    ----------
    model : SleepForCausalLM
    ids : torch.Tensor
        (1, length).
    question : torch.Tensor, optional
        (1, length) of what is asked after the text, at most a window.
    sleep_passes : int or Sleep, optional
        N. Default: `config.sleep_passes`.
    """
    seen, changes, memory = Changes(model), [], SleepMemory(config=model.config)
    for window in ids.split(model.config.window_size, dim=1):
        memory = model.read(window, past_key_values=memory, sleep_passes=sleep_passes, progress=False)
        model.sleep(memory, sleep_passes)
        changes.append(seen.look(memory))
    reading = None
    if question is not None:
        queries = queries_of(model, question[:, : model.config.window_size], memory, seen.memories)
        reading = [
            torch.cat([(q @ x).norm(dim=-1).mean(-1) for q, x in zip(queries, change, strict=True)])
            for change in changes
        ]
        reading = torch.stack(reading, dim=1).cpu()
    return seen.trace(memory, reading)


def _norms(matrices: list[torch.Tensor]) -> torch.Tensor:
    """Of every head's matrix, layer by layer."""
    return torch.cat([matrix.norm(dim=(1, 2)) for matrix in matrices])


def queries_of(model, ids: torch.Tensor, memory: SleepMemory, memories: list[int]) -> list[torch.Tensor]:
    """What the memories of these layers are asked, (heads, length, key_dim) each, when `ids` are read."""
    core = core_of(model)
    if largest(memory.state.stored):
        raise ValueError("The window must have been slept over: its tokens are not in S yet.")
    queries = {}
    with ExitStack() as hooks:
        for i in memories:
            layer = core.layers[i]
            is_recall = layer.layer_type == "recall_memory"
            module = layer.q_proj if is_recall else layer.linear_attn.conv1d
            mixer = None if is_recall else layer.linear_attn

            def hear(module, inputs, output, i=i, mixer=mixer):
                output = output.double()
                if mixer is None:
                    queries[i] = l2_normalise(output).transpose(0, 1).reshape(1, output.shape[1], -1)
                    return
                query = F.silu(output.mT).split(mixer.split_sizes, dim=-1)[0].unflatten(-1, (-1, mixer.key_head_dim))
                query = query[0].transpose(0, 1).repeat_interleave(mixer.A_log.shape[0] // query.shape[2], dim=0)
                queries[i] = l2_normalise(query)

            hooks.callback(module.register_forward_hook(hear).remove)
        model.read(ids, past_key_values=memory, progress=False)
    return [queries[i] for i in memories]


def draw(
    trace: Trace, path: str | Path, title: str = "", question: str = "", column: str = "window of the text"
) -> None:
    """
    Draw a [`Trace`] as a PNG: windows from left to right, heads from top to bottom.

    Parameters
    ----------
    trace : Trace
    path : str or Path
    title, question : str, optional
        What is written over it, and over what a question reads.
    column : str, optional
        What stands between two looks.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("A picture needs matplotlib: `pip install matplotlib`.") from None
    maps = [(f"how much of S is new after each {column}", trace.change)]
    if trace.reading is not None:
        share = trace.reading / trace.reading.sum(1, keepdim=True).clamp_min(1e-30)
        maps.append((f"where what it reads was written: {question}" if question else "where it reads", share))
    heads, windows = trace.change.shape
    height = min(12, 1.2 + 0.16 * max(heads, 6))
    figure = Figure(figsize=(min(14, 5 + 0.12 * windows), height * len(maps)), layout="constrained", dpi=120)
    for axes, (name, values) in zip(figure.subplots(len(maps), squeeze=False)[:, 0], maps, strict=True):
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(column, fontsize=8)
        step = -(-heads // 40)
        axes.set_yticks(range(0, heads, step), trace.heads[::step], fontsize=6)
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
