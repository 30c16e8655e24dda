"""What is remembered between calls: the state that the model computes on, and the cache that carries it.

The model computes on a `SleepState`, tensors in and tensors out. `read_state` and `write_state` are the only places
where it touches a `Cache`. However long the text, the cache holds at most, for each row,

- for every attention layer: keys and values of the L tokens of the current window, and those kept from before it;
- once: the hidden states of these tokens, which a sleep replays, and the last one, which padding repeats;
- for every memory: S and what it needs of the current window; behind a `loop_span` also its state as it was when the
  window began, because a sleep takes these layers back there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionLayer,
    StaticLayer,
)

from .layers_sleep import DeltaNetState
from .window_sleep import PerRow, of_rows, per_row


class SleepState(NamedTuple):
    """
    Everything that the next token depends on. All tensors have rows first.

    Attributes
    ----------
    layers : tuple[tuple | None, ...]
        The state of every layer, see layers_sleep.py. None stands for nothing yet.
    window_start : tuple[tuple | None, ...]
        For every layer behind the looped span, its state when the window began. None for all others.
    kept_hidden_states : torch.Tensor | None
        (batch, columns, hidden_size): the window's hidden states at the end of the looped span.
    kept_inputs_embeds : torch.Tensor | None
        (batch, columns, hidden_size): the embeddings of its tokens, where a memory reads them asleep.
    last_hidden_state : torch.Tensor | None
        (batch, 1, hidden_size): what the model gave for each row's last token.
    columns : int
        Of the window's buffers: as many as the fullest row has tokens, or more.
    kept_columns : int
        Of the keys kept from before the window; see keep_sleep.py.
    stored : PerRow
        Tokens in the current window.
    kept : PerRow
        Keys of `window_overlap` that were kept from before it.
    pinned : PerRow
        Keys of `pinned_tokens` that are kept for good.
    sleeps : PerRow
        Windows that have been slept over, which is also the index of the current window.
    seen : int
        Columns since the beginning, padding included.
    read : PerRow
        Tokens since the beginning.
    places : PerRow
        Sum of the columns in which they stood, by which a mask that says otherwise is told.
    pinned_tokens : int
        How many of a text's first tokens are to keep their keys.
    looped_layers : tuple[int, int] | None
        Those of the model that has read, which what it keeps of the window belongs to. None: before the first token.
    """

    layers: tuple
    window_start: tuple
    kept_hidden_states: torch.Tensor | None = None
    kept_inputs_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    columns: int = 0
    kept_columns: int = 0
    stored: PerRow = 0
    kept: PerRow = 0
    pinned: PerRow = 0
    sleeps: PerRow = 0
    seen: int = 0
    read: PerRow = 0
    places: PerRow = 0
    pinned_tokens: int = 0
    looped_layers: tuple[int, int] | None = None

    @classmethod
    def empty(cls, num_layers: int) -> "SleepState":
        """The state before the first token."""
        return cls((None,) * num_layers, (None,) * num_layers)

    def is_even(self) -> bool:
        """Whether all rows stand at the same place of their windows, and the buffers hold nothing else."""
        return (
            not any(isinstance(x, tuple) for x in (self.stored, self.kept, self.pinned))
            and self.stored == self.columns
        )

    @property
    def has_begun(self) -> bool:
        """Whether anything stands before the next token."""
        return self.last_hidden_state is not None

    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        held = tuple(getattr(self, name) for name in TENSORS)
        return [x for x in tree_leaves(held) if isinstance(x, torch.Tensor)]

    def nbytes(self) -> int:
        """Bytes of all tensors of the state."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def map(self, function) -> "SleepState":
        """With `function` applied to every tensor."""
        return tree_map(lambda x: function(x) if isinstance(x, torch.Tensor) else x, self)

    def numbers_of(self, rows: Sequence[int], batch: int) -> dict[str, PerRow]:
        """What each of these rows, of `batch`, has for itself."""
        return {name: per_row([of_rows(getattr(self, name), batch)[i] for i in rows]) for name in ROW_NUMBERS}

    def select(self, rows: tuple[int, ...], batch: int) -> "SleepState":
        """Of `batch` rows, these."""
        numbers = self.numbers_of(rows, batch)
        tensors = self.tensors()
        if not tensors:
            return self._replace(**numbers)
        index = torch.tensor(rows, device=tensors[0].device)
        return self.map(lambda x: x.index_select(0, index.to(x.device)))._replace(**numbers)

    def put(self, rows: tuple[int, ...], part: "SleepState", batch: int) -> "SleepState":
        """With `part` in the place of these rows."""
        numbers = {}
        for name in ROW_NUMBERS:
            numbers[name] = list(of_rows(getattr(self, name), batch))
            for i, number in zip(rows, of_rows(getattr(part, name), len(rows)), strict=True):
                numbers[name][i] = number
        tensors = {name: _put(getattr(self, name), getattr(part, name), rows, batch) for name in TENSORS}
        numbers = {name: per_row(values) for name, values in numbers.items()}
        return self._replace(
            **tensors,
            **numbers,
            columns=max(self.columns, part.columns),
            kept_columns=max(self.kept_columns, part.kept_columns),
        )


TENSORS = ("layers", "window_start", "kept_hidden_states", "kept_inputs_embeds", "last_hidden_state")
# What every row has for itself.
ROW_NUMBERS = ("stored", "kept", "pinned", "sleeps", "read", "places")


def _put(whole, part, rows: tuple[int, ...], batch: int):
    """The same structure as `whole`, with the rows of `part`. What one of them lacks stands for zeros."""
    if isinstance(whole, tuple) or isinstance(part, tuple):
        if whole is None:
            whole = type(part)(*[None] * len(part)) if hasattr(part, "_fields") else (None,) * len(part)
        if part is None:
            part = (None,) * len(whole)
        items = [_put(x, y, rows, batch) for x, y in zip(whole, part, strict=True)]
        return type(whole)(*items) if hasattr(whole, "_fields") else tuple(items)
    if not isinstance(whole, torch.Tensor) and not isinstance(part, torch.Tensor):
        return whole
    if whole is None:
        whole = part.new_zeros(batch, *part.shape[1:])
    if part is None:
        part = whole.new_zeros(len(rows), *whole.shape[1:])
    shape = [max(sizes) for sizes in zip(whole.shape[1:], part.shape[1:], strict=True)]
    whole, part = (_padded(x, shape) for x in (whole, part))
    return whole.index_copy(0, torch.tensor(rows, device=whole.device), part)


def _padded(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """`x`, (rows, ...), with zeros behind up to (rows, *shape)."""
    missing = [size - have for size, have in zip(shape, x.shape[1:], strict=True)]
    if not any(missing):
        return x
    return torch.nn.functional.pad(x, [n for size in reversed(missing) for n in (0, size)])


class SleepCache(DynamicCache):
    """
    What `forward` and `generate` return as `past_key_values`: a [`DynamicCache`] of this model's layers.

    A `DynamicCache(config=model.config)` becomes one when the model first sees it.
    """

    is_memory = False  # whether tokens given with it are new, whatever transformers' rule says: see memory_sleep.py

    def save(self, path, model, **options) -> None:
        """Save what `model` has read as a file, as [`SleepMemory.save`] does; [`SleepMemory.load`] reads it."""
        model.memory_of(self).save(path, model, **options)

    def detach(self) -> "SleepCache":
        """
        Cut the gradient's way back into earlier calls, for truncated back-propagation over a stream of text. Changes
        the cache in place and returns it.
        """
        for layer in self.layers:
            layer.map_tensors(torch.Tensor.detach)
        return self


class StateLayer:
    """A layer of the cache: it carries the state of one layer of the model, a tuple of tensors with rows first."""

    is_croppable = False
    common: SleepState | None = None  # in one layer of the cache: what is kept once for all, without layers' states

    state: tuple | None = None
    window_start_state: tuple | None = None

    def store(self, state: tuple | None, window_start_state: tuple | None) -> None:
        """Replace the state, and what it was when the window began; None for nothing yet."""
        self.state, self.window_start_state = state, window_start_state
        first = next((x for x in state or () if x is not None), None)
        if first is not None:
            self.dtype, self.device = first.dtype, first.device

    def map_tensors(self, function) -> None:
        """Replace every tensor by what `function` makes of it."""
        on_tensors = lambda x: function(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
        self.store(tree_map(on_tensors, self.state), tree_map(on_tensors, self.window_start_state))
        if self.common is not None:
            self.common = self.common.map(function)

    def _choose_rows(self, index: torch.Tensor, batch: int) -> None:
        self.map_tensors(lambda x: x.index_select(0, index.to(x.device)))
        if self.common is not None and any(isinstance(getattr(self.common, name), tuple) for name in ROW_NUMBERS):
            self.common = self.common._replace(**self.common.numbers_of(index.tolist(), batch))

    def _batch(self) -> int:
        tensors = [x for x in tree_leaves((self.state, self.common)) if isinstance(x, torch.Tensor)]
        return tensors[0].shape[0] if tensors else 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._choose_rows(beam_idx, self._batch())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._choose_rows(torch.arange(self._batch()).repeat_interleave(repeats), self._batch())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if batch := self._batch():  # nothing is held after a sleep
            self._choose_rows(torch.arange(batch, device=indices.device)[indices], batch)

    def reset(self) -> None:
        self.store(None, None)
        self.common = None

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise RuntimeError(
                "The fast weights have taken these tokens in and cannot give them back, so this cache cannot be "
                "cropped. Copy it before the tokens that you may want to take back "
                "(`copy.deepcopy(past_key_values)`)."
            )


class SleepWindowLayer(StateLayer, DynamicLayer):
    """
    The cache of an attention layer: keys and values of the current window, and those kept from before it.

    Differs from its parent [`DynamicLayer`] in that it is emptied by every sleep, while `get_seq_length()` goes on
    counting, as in [`DynamicSlidingWindowLayer`]: generation and positions rely on the number of tokens seen. The
    first such layer of a cache also carries what is kept once for all layers, as `common`.
    """

    _layer_type = "sleep_attention"  # `DynamicCache(config=config)` finds this class by the config's `layer_types`

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cumulative_length = 0

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 as long as nothing is stored."""
        return self._batch() or -1

    @property
    def kept_hidden_states(self) -> torch.Tensor | None:
        """(batch, columns, hidden_size) of the window, in the first layer of its kind."""
        return self.common and self.common.kept_hidden_states

    @property
    def sleeps(self) -> PerRow:
        """Windows that have been slept over, in the first layer of its kind."""
        return self.common.sleeps if self.common is not None else 0

    def stored_length(self) -> int:
        """Number of tokens in the current window; of rows that differ, the largest."""
        return self.keys.shape[-2] if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Number of tokens seen since the beginning, those of past windows included."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of live keys with `query_length` new ones, and the position of the first of them in the text."""
        stored = self.stored_length()
        return stored + query_length, self.cumulative_length - stored

    def update(self, *args, **kwargs):
        raise RuntimeError(
            "Keys and values alone cannot be put into this cache: a sleep replays the hidden states that they were "
            "made of. Let the model read the text."
        )

    def store(self, state: tuple | None, window_start_state: tuple | None) -> None:
        super().store(state, window_start_state)
        self.keys, self.values = state[:2] if state is not None else (None, None)
        self.is_initialized = self.keys is not None

    def reset(self) -> None:
        super().reset()
        self.cumulative_length = 0


class NoStaticLayer(StaticLayer):
    """What a `StaticCache(config=config)` finds for this model: the reason why there is none."""

    _layer_type = "sleep_attention"

    def __init__(self, *args, **kwargs):
        raise ValueError(
            "A static cache does not know how to sleep. Use `DynamicCache(config=model.config)`, or none: this "
            "model's own cache never outgrows one window."
        )


class FastWeightsLayer(StateLayer, LinearAttentionLayer):
    """
    The cache of a memory: S, and what it needs of the current window.

    Differs from its parent [`LinearAttentionLayer`] in that states are replaced, never written in place, so that
    gradients can flow from one call of the model to the next; and in that its rows can be repeated and selected.
    """

    is_compileable = False

    def store(self, state: tuple | None, window_start_state: tuple | None) -> None:
        super().store(state, window_start_state)
        recurrent_state = state[0] if state is not None else None
        self.recurrent_states[0] = recurrent_state
        self.conv_states[0] = state[1] if isinstance(state, DeltaNetState) else None
        self.is_recurrent_states_initialized[0] = self.has_previous_state[0] = recurrent_state is not None
        self.is_conv_states_initialized[0] = self.conv_states[0] is not None


# `_layer_type` registers caches of keys and values alone. "linear_attention" is the parent's, see `read_state`.
DYNAMIC_LAYER_TYPE_MAPPING["recall_memory"] = FastWeightsLayer


def check_cache(cache: Cache, config) -> None:
    """
    Raise unless `cache` was made for `config`.

    Raises
    ------
    ValueError
        If it is not a `DynamicCache(config=config)`; the message says what it is instead.
    """
    hint = "Use `DynamicCache(config=model.config)`, or leave `past_key_values` out."
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache):
        raise ValueError(f"`past_key_values` must be a `DynamicCache`, got {type(cache).__name__}. {hint}")
    if getattr(cache, "offloading", False):
        raise ValueError(
            "This model's cache never outgrows one window, so it cannot be (and need not be) offloaded. " + hint
        )
    if len(cache.layers) != config.num_hidden_layers:
        raise ValueError(
            f"`past_key_values` ({type(cache).__name__}) has {len(cache.layers)} layers for a model of "
            f"{config.num_hidden_layers}: it was not made for this config. {hint}"
        )
    state_shape = (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    for i, (layer, layer_type) in enumerate(zip(cache.layers, config.layer_types, strict=True)):
        # By name: a model loaded as remote code brings its own copy of these classes.
        if layer_type == "sleep_attention":
            fits = getattr(layer, "_layer_type", None) == "sleep_attention"
        else:
            fits = hasattr(layer, "window_start_state") or _is_unused(layer)
        if not fits:
            if type(layer) is DynamicLayer and layer.is_initialized:  # a `DynamicCache` made of keys and values
                hint = (
                    "If PEFT's prefix tuning made it: the first sleep would drop its keys and values without having "
                    "replayed them. Use prompt tuning, whose virtual tokens are read and slept over like others, or "
                    "LoRA."
                )
            raise ValueError(
                f"Layer {i} of `past_key_values` ({type(cache).__name__}) is a {type(layer).__name__}, which cannot "
                f"serve a {layer_type!r} layer: static, quantised and foreign caches do not know how to sleep. {hint}"
            )
        if layer_type == "sleep_attention":
            # Not the number of heads, which tensor parallelism divides.
            _check_shape("keys", i, layer.keys, (config.head_dim,), hint)
            _check_shape("kept hidden states", i, layer.kept_hidden_states, (config.hidden_size,), hint)
        elif layer_type == "linear_attention":
            _check_shape("fast weights", i, layer.recurrent_states[0], state_shape, hint)
    common = window_layer(cache, config).common
    if common is not None and common.looped_layers not in (None, config.looped_layers):
        raise ValueError(
            f"`past_key_values` holds what a `loop_span` of {common.looped_layers} replays, and this model's is "
            f"{config.looped_layers}: the cache was made by another model. {hint}"
        )
    if common is not None and common.kept_columns not in (0, common.pinned_tokens + config.window_overlap):
        raise ValueError(
            f"`past_key_values` keeps {common.kept_columns - common.pinned_tokens} tokens from before its window, and "
            f"this model's `window_overlap` is {config.window_overlap}: the cache was made by another model. {hint}"
        )


def _check_shape(name: str, layer: int, tensor: torch.Tensor | None, expected: tuple[int, ...], hint: str) -> None:
    if tensor is not None and tuple(found := tensor.shape[-len(expected) :]) != expected:
        raise ValueError(
            f"The {name} of layer {layer} of `past_key_values` end in dimensions {tuple(found)}, this model's in "
            f"{expected}: the cache was made by another model. {hint}"
        )


def _is_unused(layer) -> bool:
    return type(layer) is LinearAttentionLayer and layer.recurrent_states[0] is None


def window_layer(cache: Cache, config) -> SleepWindowLayer:
    """The layer of `cache` that carries what is kept once for all layers: the first of attention."""
    return cache.layers[config.layer_types.index("sleep_attention")]


def read_state(cache: Cache | None, config) -> SleepState:
    """
    The state held by `cache`, or the one before the first token if there is no cache.

    `DynamicCache(config=config)` fills "linear_attention" layers with the stock class. As long as they are unused,
    they are exchanged for [`FastWeightsLayer`]s here, and the cache itself becomes a [`SleepCache`].
    """
    if cache is None:
        return SleepState.empty(config.num_hidden_layers)
    check_cache(cache, config)
    if type(cache) is DynamicCache and not torch.compiler.is_compiling():
        cache.__class__ = SleepCache  # which adds methods and no attributes
    for i, layer in enumerate(cache.layers):
        if _is_unused(layer):
            cache.layers[i] = FastWeightsLayer()
    common = window_layer(cache, config).common or SleepState.empty(0)
    return common._replace(
        layers=tuple(layer.state for layer in cache.layers),
        window_start=tuple(layer.window_start_state for layer in cache.layers),
    )


def write_state(cache: Cache, state: SleepState, config) -> None:
    """Put `state` into `cache`; tensors are handed over, not copied."""
    for layer, layer_state, window_start in zip(cache.layers, state.layers, state.window_start, strict=True):
        layer.store(layer_state, window_start)
        layer.cumulative_length = state.seen
    window_layer(cache, config).common = state._replace(layers=(), window_start=())
