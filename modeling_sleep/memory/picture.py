"""A picture of a memory: when its fast weights changed, layer by layer and head by head, and what questions read.

    change      |S_k - S_{k-1}| / |S_k|: how much of S after the sleep over window k is new
    reading     |q (S_k - S_{k-1})|: how strongly a question reads what changed in window k; q is the query of its last
                token, where the answer begins

The second is exact: the changes of all windows sum up to the last S, so that what a question reads is the sum of what
it reads of each window. A window that erased something counts as what it erased, with the other sign.
"""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..gated_delta_rule import l2_normalise
from ..memory_file_sleep import core_of
from ..memory_sleep import SleepMemory
from ..window_sleep import largest


DPI = 130
LABELS = 40  # of rows, at most


class Trace(NamedTuple):
    """
    Attributes
    ----------
    change : torch.Tensor
        (heads of all memories, windows).
    reading : torch.Tensor | None
        (questions, heads of all memories, windows). None without a question.
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
def trace(model, ids: torch.Tensor, questions: Sequence[torch.Tensor] = (), sleep_passes=None) -> Trace:
    """
    Read a text window by window, with a nap after each, which is what its sleep would be, and look at S.

    Parameters
    ----------
    model : SleepForCausalLM
    ids : torch.Tensor
        (1, length).
    questions : sequence of torch.Tensor, optional
        What is asked after the text, (1, length) each, of which the last L tokens count. Best they end with the
        beginning of an answer, as the value is looked for behind it.
    sleep_passes : int or Sleep, optional
        N. Default: `config.sleep_passes`.
    """
    seen, changes, memory = Changes(model), [], SleepMemory(config=model.config)
    for window in ids.split(model.config.window_size, dim=1):
        memory = model.read(window, past_key_values=memory, sleep_passes=sleep_passes, progress=False)
        model.sleep(memory, sleep_passes)
        changes.append(seen.look(memory))
    reading = []
    for question in questions:
        queries = queries_of(model, question[:, -model.config.window_size :], memory, seen.memories)
        read = [[(q[:, -1:] @ x).norm(dim=(1, 2)) for q, x in zip(queries, change, strict=True)] for change in changes]
        reading.append(torch.stack([torch.cat(heads) for heads in read], dim=1).cpu())
    return seen.trace(memory, torch.stack(reading) if reading else None)


def shares(reading: torch.Tensor) -> torch.Tensor:
    """Of what is read, how much each window has written; they sum up to 1."""
    return reading / reading.sum(-1, keepdim=True).clamp_min(1e-30)


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

            def hear(module, inputs, output, i=i, layer=layer, mixer=mixer):
                output = output.double()
                if mixer is None:
                    query = l2_normalise(layer.features_of(output))
                    queries[i] = query.transpose(0, 1).reshape(1, output.shape[1], -1)
                    return
                query = F.silu(output.mT).split(mixer.split_sizes, dim=-1)[0].unflatten(-1, (-1, mixer.key_head_dim))
                query = query[0].transpose(0, 1).repeat_interleave(mixer.A_log.shape[0] // query.shape[2], dim=0)
                queries[i] = l2_normalise(query)

            hooks.callback(module.register_forward_hook(hear).remove)
        model.read(ids, past_key_values=memory, progress=False)
    return [queries[i] for i in memories]


def draw(
    trace: Trace,
    path: str | Path,
    title: str = "",
    questions: Sequence[str] = (),
    column: str = "window of the text",
    told: Sequence[int] = (),
) -> None:
    """
    Draw a [`Trace`] as a PNG: windows from left to right, heads from top to bottom; below, what a question reads by
    head, or what several read, one below the other, by all heads together.

    Parameters
    ----------
    trace : Trace
    path : str or Path
    title : str, optional
        What is written over it.
    questions : sequence of str, optional
        The words of each question; several need them.
    column : str, optional
        What stands between two looks.
    told : sequence of int, optional
        Of each of several questions, the window that tells its answer, from 0 on. It is outlined.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
        from PIL import Image  # which matplotlib brings
    except ImportError:
        raise ImportError("A picture needs matplotlib: `pip install matplotlib`.") from None
    maps = [(f"How much of S is new after each {column}", trace.change, trace.heads)]
    if trace.reading is not None and len(trace.reading) == 1:
        asked = f": {questions[0]}" if questions else ""
        maps.append((f"Where what it reads was written{asked}", shares(trace.reading[0]), trace.heads))
    elif trace.reading is not None:
        names = [shorten(text, 56, placeholder=" ...") for text in questions]
        outlined = "; outlined: where it was told" if told else ""
        maps.append((f"Where what each question reads was written{outlined}", shares(trace.reading.mean(1)), names))
    columns = trace.change.shape[1]
    heights = [0.6 + min(9, 0.24 * len(names)) for _, _, names in maps]
    figure = Figure(figsize=(min(14, 7 + 0.12 * columns), sum(heights) + 0.3), layout="constrained", dpi=DPI)
    plots = figure.subplots(len(maps), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (name, values, names) in zip(plots, maps, strict=True):
        rows = len(names)
        extent = (0.5, columns + 0.5, rows - 0.5, -0.5)  # windows are counted from 1
        image = axes.imshow(100 * values, aspect="auto", interpolation="nearest", vmin=0, extent=extent)
        axes.set_title(name, fontsize=10)
        step = -(-rows // LABELS)
        axes.set_yticks(range(0, rows, step), names[::step], fontsize=9 if rows <= 20 else 6)
        axes.tick_params(axis="x", labelsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes, pad=0.01, format="%d %%").ax.tick_params(labelsize=8)
    for row, window in enumerate(told):
        axes.add_patch(Rectangle((window + 0.5, row - 0.5), 1, 1, fill=False, edgecolor="tab:red", linewidth=2))
    axes.set_xlabel(column, fontsize=9)
    figure.suptitle(title, fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    # 256 colours are enough, and a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256).save(path, format="png", optimize=True)
