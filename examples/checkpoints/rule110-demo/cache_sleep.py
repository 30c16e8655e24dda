"""What is remembered: the window's cache layer, the fast weights' layer, and the state they hold together.

The model computes on a `SleepState`, tensors in and tensors out. `read_state` and `write_state` are the only places
where it touches a `Cache`. However long the text, the cache holds at most

- for every attention layer: keys and values of the L tokens of the current window;
- once: the hidden states of these tokens, which a sleep replays, and which of them are padding;
- for every Gated DeltaNet layer: S and the last inputs of its convolution; behind a `loop_span` also S as it was when
  the window began, because a sleep takes these layers back there.
"""

from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache, LinearAttentionLayer


class SleepState(NamedTuple):
    """
    Everything that the next token depends on.

    Attributes
    ----------
    layers : list[tuple[torch.Tensor | None, torch.Tensor | None]]
        For an attention layer `(keys, values)`, each (batch, key_value_heads, stored, head_dim); for a Gated DeltaNet
        layer `(recurrent_state, conv_state)`: S, (batch, value_heads, key_dim, value_dim), and
        (batch, conv_kernel - 1, conv_dim). None stands for nothing yet.
    window_start_states : list[torch.Tensor | None]
        For every layer behind the looped span, its S when the window began. None stands for zeros.
    kept_hidden_states : torch.Tensor | None
        (batch, stored, hidden_size): the window's hidden states at the end of the looped span.
    kept_mask : torch.Tensor | None
        (batch, stored) of bool, False at padding. None if there is none in the window.
    stored : int
        Tokens in the current window.
    seen : int
        Tokens since the beginning.
    sleeps : int
        Windows that have been slept over, which is also the index of the current window.
    slept : bool
        Whether `sleeps` has changed since the state was read.
    """

    layers: list
    window_start_states: list
    kept_hidden_states: torch.Tensor | None = None
    kept_mask: torch.Tensor | None = None
    stored: int = 0
    seen: int = 0
    sleeps: int = 0
    slept: bool = False

    @classmethod
    def empty(cls, num_layers: int) -> "SleepState":
        """The state before the first token."""
        return cls(layers=[(None, None)] * num_layers, window_start_states=[None] * num_layers)

    def nbytes(self) -> int:
        """Bytes of all tensors of the state."""
        layers = [tensor for pair in self.layers for tensor in pair]
        tensors = [*layers, *self.window_start_states, self.kept_hidden_states, self.kept_mask]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class RowsLayer:
    """What both kinds of layers do with the rows of a batch: `_map_rows` applies a function to all tensors held."""

    is_croppable = False

    def _map_rows(self, function) -> None:
        raise NotImplementedError

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_rows(lambda x: x[indices])

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise RuntimeError(
                "The fast weights have taken these tokens in and cannot give them back, so this cache cannot be "
                "cropped. Copy it before the tokens that you may want to take back "
                "(`copy.deepcopy(past_key_values)`)."
            )


class SleepWindowLayer(RowsLayer, DynamicLayer):
    """
    The cache of an attention layer: keys and values of the current window alone.

    Differs from its parent [`DynamicLayer`] in that it is emptied by every sleep, while `get_seq_length()` goes on
    counting, as in [`DynamicSlidingWindowLayer`]: generation and positions rely on the number of tokens seen. The
    first such layer of a cache also carries what is kept once for all layers: the window's hidden states and mask, and
    the number of sleeps.
    """

    _layer_type = "sleep_attention"  # `DynamicCache(config=config)` finds this class by the config's `layer_types`

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cumulative_length = 0
        self.sleeps = 0
        self.kept_hidden_states: torch.Tensor | None = None
        self.kept_mask: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 as long as nothing is stored."""
        return self.keys.shape[0] if self.is_initialized else -1

    def stored_length(self) -> int:
        """Number of tokens in the current window."""
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

    def store(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """Replace what is stored by `keys` and `values`, (batch, key_value_heads, stored, head_dim), or by nothing."""
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None
        if keys is not None:
            self.dtype, self.device = keys.dtype, keys.device

    def reset(self) -> None:
        # Not the parent's: before transformers 5.18 it filled keys and values with zeros instead of dropping them.
        self.store(None, None)
        self.cumulative_length = self.sleeps = 0
        self.kept_hidden_states = self.kept_mask = None

    def _map_rows(self, function) -> None:
        if self.is_initialized:
            self.keys, self.values = function(self.keys), function(self.values)
        if self.kept_hidden_states is not None:
            self.kept_hidden_states = function(self.kept_hidden_states)
        if self.kept_mask is not None:
            self.kept_mask = function(self.kept_mask)


class FastWeightsLayer(RowsLayer, LinearAttentionLayer):
    """
    The cache of a Gated DeltaNet layer: S, the convolution's last inputs and, behind a `loop_span`, S as it was when
    the window began.

    Differs from its parent [`LinearAttentionLayer`] in that states are replaced, never written in place, so that
    gradients can flow from one call of the model to the next; and in that its rows can be repeated and selected.
    """

    is_compileable = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.window_start_state: torch.Tensor | None = None

    def store(self, recurrent_state, conv_state, window_start_state) -> None:
        """Replace the states; each may be None for nothing yet."""
        self.recurrent_states[0], self.conv_states[0] = recurrent_state, conv_state
        self.window_start_state = window_start_state
        self.is_recurrent_states_initialized[0] = self.has_previous_state[0] = recurrent_state is not None
        self.is_conv_states_initialized[0] = conv_state is not None
        if recurrent_state is not None:
            self.dtype, self.device = recurrent_state.dtype, recurrent_state.device

    def reset(self) -> None:
        self.store(None, None, None)

    def _map_rows(self, function) -> None:
        states = (self.recurrent_states[0], self.conv_states[0], self.window_start_state)
        self.store(*(None if state is None else function(state) for state in states))


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
    key_shape, kept_shape = (config.head_dim,), (config.hidden_size,)
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
            _check_shape("keys", i, layer.keys, key_shape, hint)
            _check_shape("kept hidden states", i, layer.kept_hidden_states, kept_shape, hint)
        else:
            _check_shape("fast weights", i, layer.recurrent_states[0], state_shape, hint)


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
    they are exchanged for [`FastWeightsLayer`]s here.
    """
    state = SleepState.empty(config.num_hidden_layers)
    if cache is None:
        return state
    check_cache(cache, config)
    layer_types = config.layer_types
    for i, (layer, layer_type) in enumerate(zip(cache.layers, layer_types, strict=True)):
        if layer_type == "sleep_attention":
            state.layers[i] = (layer.keys, layer.values)
            continue
        if _is_unused(layer):
            layer = cache.layers[i] = FastWeightsLayer()
        state.layers[i] = (layer.recurrent_states[0], layer.conv_states[0])
        state.window_start_states[i] = layer.window_start_state
    first = window_layer(cache, config)
    return state._replace(
        kept_hidden_states=first.kept_hidden_states,
        kept_mask=first.kept_mask,
        stored=first.stored_length(),
        seen=first.cumulative_length,
        sleeps=first.sleeps,
    )


def write_state(cache: Cache, state: SleepState, config) -> None:
    """Put `state` into `cache`; tensors are handed over, not copied."""
    layer_types = config.layer_types
    for i, (layer, states) in enumerate(zip(cache.layers, state.layers, strict=True)):
        if layer_types[i] == "sleep_attention":
            layer.store(*states)
            layer.cumulative_length = state.seen
        else:
            layer.store(*states, state.window_start_states[i])
    first = window_layer(cache, config)
    first.kept_hidden_states, first.kept_mask = state.kept_hidden_states, state.kept_mask
    if state.slept:  # or else a compiled model would be compiled anew for another number of sleeps
        first.sleeps = state.sleeps
