"""The layers: hidden states and a state in, hidden states and a new state out.

A layer owns its state, a tuple of tensors that all have rows first, or None for nothing yet. It says by three methods
what becomes of it; nobody else asks what kind of layer it is:

    forward     reads the tokens of a window. Masked tokens leave the state as it was
    begin       what another pass over the same window begins with
    forget      what the next window begins with

`is_memory` says whether passes asleep rewrite what the layer carries on; `fast_weights` returns it. States are never
written in place, so that gradients flow through them under any way of calling (checkpointed, sharded, over windows).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_sleep import SleepConfig
from .gated_delta_rule import gated_delta_rule
from .rotary_sleep import apply_rotary_embedding
from .window_sleep import Window, select


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as it is written, with its weights: the reference of the attention interface."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.mT * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AttentionState(NamedTuple):
    """
    Keys and values of the window, (batch, key_value_heads, columns, head_dim), and those kept from before it,
    (batch, key_value_heads, kept, head_dim).
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    kept_keys: torch.Tensor | None = None
    kept_values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor, window: Window) -> "AttentionState":
        """With keys and values of new tokens, (batch, key_value_heads, length, head_dim)."""
        if self.keys is None and window.order is None:  # in the layout of later ones, for which compiled code is made
            return self._replace(keys=keys.contiguous(), values=values.contiguous())
        return self._replace(keys=window.append(self.keys, keys, 2), values=window.append(self.values, values, 2))

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that can be attended to: kept ones first."""
        if self.kept_keys is None:
            return self.keys, self.values
        return torch.cat([self.kept_keys, self.keys], dim=2), torch.cat([self.kept_values, self.values], dim=2)

    def begin(self) -> "AttentionState | None":
        """Kept keys are constants of a pass; the window's own are made anew from the refined hidden states."""
        if self.kept_keys is None:
            return None
        return AttentionState(kept_keys=self.kept_keys, kept_values=self.kept_values)

    def forget(self, window: Window) -> "AttentionState | None":
        """Of the window's keys and values, those that `window.keep` names stay, turned to their new positions."""
        if window.keep is None:
            return None
        keys, values = (select(x, window.keep.order, 2) for x in self._with_room(window).all())
        if window.keep.rotation is not None:
            keys = apply_rotary_embedding(keys, *window.keep.rotation)
        return AttentionState(kept_keys=keys, kept_values=values)

    def _with_room(self, window: Window) -> "AttentionState":
        """With columns for all keys that may be kept, as the order of those to keep counts on."""
        if self.kept_keys is not None:
            return self
        shape = list(self.keys.shape)
        shape[2] = window.keep.order.shape[1]
        return self._replace(kept_keys=self.keys.new_zeros(shape), kept_values=self.values.new_zeros(shape))


class SleepAttention(nn.Module):
    """
    Causal attention within the current window, with grouped queries, rotary positions and, optionally, normalised
    queries and keys.

    Differs from [`LlamaAttention`] in that keys and values so far come in and go out as an [`AttentionState`].
    """

    is_causal = True

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        query_dim = config.num_attention_heads * config.head_dim
        key_value_dim = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_dim, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        state: AttentionState | None,
        window: Window,
    ) -> tuple[torch.Tensor, torch.Tensor | None, AttentionState]:
        batch, length, _ = hidden_states.shape
        query, key, value = (
            # Whole windows side by side do not see one another: rows of their own, but for attention alone, as
            # whoever hooks a projection counts the batch's rows.
            projection(hidden_states).view(batch * window.count, length // window.count, -1, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query = apply_rotary_embedding(query, *window.position_embeddings)
        key = apply_rotary_embedding(key, *window.position_embeddings)
        state = (state or AttentionState()).append(key, value, window)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(window.attention(self.config), eager_attention_forward)
        output, weights = attend(
            self,
            query,
            *state.all(),
            window.attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **window.options,
        )
        return self.o_proj(output.reshape(batch, length, -1)), weights, state


class ShortConvolution(nn.Conv1d):
    """
    [`nn.Conv1d`] in all but speed, so that what is made for that one may adapt it: (batch, channels, kernel_size - 1 +
    length) to (batch, channels, length). Meant for channels that come last in memory.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        depthwise = self.groups == self.in_channels == self.out_channels
        if depthwise and x.shape[2] == self.kernel_size[0]:  # one token: a sum over what the kernel covers
            return (x * self.weight.squeeze(1)).sum(2, keepdim=True)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # The same in two dimensions, where torch leaves channels last: 3 times as fast, forward and backward.
            return F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), groups=self.groups).squeeze(2)
        return super().forward(x)


class DeltaNetState(NamedTuple):
    """S, (batch, value_heads, key_dim, value_dim), and the convolution's last inputs, (batch, conv_kernel - 1,
    conv_dim)."""

    recurrent_state: torch.Tensor | None = None
    conv_state: torch.Tensor | None = None


class GatedDeltaNet(nn.Module):
    """
    What holds the fast weights: short convolution, gated delta rule, gated norm.

    Differs from [`OlmoHybridGatedDeltaNet`] in that S and the convolution's inputs come in and go out as tensors, and
    in that masked tokens are exact no-ops for S (there only their input is zeroed, so S still decays). A derived class
    brings the linear maps and the norm around the rule.
    """

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.key_head_dim = config.linear_key_head_dim
        self.value_head_dim = config.linear_value_head_dim
        self.beta_max = 2.0 if config.linear_allow_neg_eigval else 1.0
        key_dim = config.linear_num_key_heads * config.linear_key_head_dim
        value_dim = config.linear_num_value_heads * config.linear_value_head_dim
        self.split_sizes = [key_dim, key_dim, value_dim]
        self._build_projections(config, key_dim, value_dim)
        self.kernel_size, channels = config.linear_conv_kernel_dim, sum(self.split_sizes)
        self.conv1d = ShortConvolution(channels, channels, self.kernel_size, groups=channels, bias=False)
        self.A_log = nn.Parameter(torch.empty(config.linear_num_value_heads))
        self.dt_bias = nn.Parameter(torch.empty(config.linear_num_value_heads))

    def _build_projections(self, config: SleepConfig, key_dim: int, value_dim: int) -> None:
        """Build what `_project` and `_read_out` need."""
        raise NotImplementedError

    def _project(self, hidden_states: torch.Tensor, state_only: bool) -> tuple[torch.Tensor | None, ...]:
        """
        From (batch, length, hidden_size): queries, keys and values side by side, (batch, length, conv_dim); the
        inputs of alpha and of beta, (batch, length, value_heads) each; the output's gate, (batch, length, value_heads,
        value_dim), which may be None with `state_only`.
        """
        raise NotImplementedError

    def _read_out(self, output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """From what S answers and its gate, (batch, length, value_heads, value_dim), to the hidden states."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        state: DeltaNetState | None,
        window: Window,
        state_only: bool = False,  # no output, None in its place
    ) -> tuple[torch.Tensor | None, DeltaNetState]:
        recurrent_state, conv_state = state or DeltaNetState()
        mixed, a, b, gate = self._project(hidden_states, state_only)
        mixed, conv_state = self._convolve(mixed, conv_state, window)
        query, key, value = mixed.split(self.split_sizes, dim=-1)
        query = query.unflatten(-1, (-1, self.key_head_dim))
        key = key.unflatten(-1, (-1, self.key_head_dim))
        value = value.unflatten(-1, (-1, self.value_head_dim))

        # The gates in float32 or better: 1 - alpha is small where S is to live long.
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        dt = F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        log_decay = -self.A_log.to(dtype).exp() * dt
        beta = b.to(dtype).sigmoid() * self.beta_max
        if window.padding_mask is not None:
            masked = ~window.padding_mask.unsqueeze(-1)
            log_decay = log_decay.masked_fill(masked, 0)
            beta = beta.masked_fill(masked, 0)
        if window.written is not None:
            beta = beta.masked_fill(~window.written.unsqueeze(-1), 0)

        output, recurrent_state = gated_delta_rule(query, key, value, log_decay, beta, recurrent_state)
        output = None if state_only else self._read_out(output, gate)
        return output, DeltaNetState(recurrent_state, conv_state)

    def _convolve(self, mixed, conv_state, window: Window):
        """Causal convolution of (batch, length, conv_dim); before a window's first token there are zeros."""
        kept = self.kernel_size - 1
        if window.count > 1:
            mixed = mixed.unflatten(1, (window.count, -1)).flatten(0, 1)
        if conv_state is None:
            conv_state = mixed.new_zeros(mixed.shape[0], kept, mixed.shape[2])
        inputs = torch.cat([conv_state, mixed], dim=1)
        mixed = F.silu(self.conv1d(inputs.mT).mT).to(mixed.dtype)  # autocast gives one token and many the same dtype
        if window.count > 1:
            return mixed.unflatten(0, (-1, window.count)).flatten(1, 2), None
        return mixed, window.last(inputs, kept)


class SleepGatedDeltaNet(GatedDeltaNet):
    """The layer that holds the fast weights. S is initialised to outlive many windows."""

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.o_norm = nn.RMSNorm(config.linear_value_head_dim, eps=config.rms_norm_eps)

    def _build_projections(self, config, key_dim, value_dim):
        self.q_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, value_dim, bias=False)
        self.a_proj = nn.Linear(config.hidden_size, config.linear_num_value_heads, bias=False)
        self.b_proj = nn.Linear(config.hidden_size, config.linear_num_value_heads, bias=False)
        self.g_proj = nn.Linear(config.hidden_size, value_dim, bias=False)
        self.o_proj = nn.Linear(value_dim, config.hidden_size, bias=False)

    def _project(self, hidden_states, state_only):
        mixed = torch.cat([self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], dim=-1)
        gate = None if state_only else self.g_proj(hidden_states).unflatten(-1, (-1, self.value_head_dim))
        return mixed, self.a_proj(hidden_states), self.b_proj(hidden_states), gate

    def _read_out(self, output, gate):
        return self.o_proj((self.o_norm(output) * F.silu(gate)).flatten(-2))


class SleepMLP(nn.Module):
    """Gated MLP, as [`LlamaMLP`]."""

    def __init__(self, config: SleepConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class StateMixin:
    """What becomes of the state of a decoder layer, be it ours or a family's: of attention or of a Gated DeltaNet."""

    reads_inputs_embeds = False  # whether a pass needs the embeddings of the window's tokens

    @property
    def is_memory(self) -> bool:
        """Whether passes asleep rewrite what the layer carries from window to window."""
        return self.layer_type != "sleep_attention"

    def begin(self, state, window: Window):
        """What another pass over the window begins with."""
        if state is None or not self.is_memory:
            return state and state.begin()
        return DeltaNetState(state.recurrent_state)  # the convolution starts from zeros in every pass

    def forget(self, state, window: Window):
        """What the next window begins with."""
        if state is None:
            return None
        return self.begin(state, window) if self.is_memory else state.forget(window)

    def fast_weights(self, state) -> torch.Tensor | None:
        """S, (batch, heads, key_dim, value_dim); None if there is none, or nothing in it yet."""
        return state.recurrent_state if state is not None and self.is_memory else None


class SleepDecoderLayer(StateMixin, nn.Module):
    """
    Norm, mixer, residual, norm, MLP, residual. Memory layers have no MLP.

    Differs from in-tree layers in that the mixer's state comes in and goes out.
    """

    side_by_side = True  # whole windows may stand side by side along the length

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__()
        self.layer_type = config.layer_types[layer_idx]
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.layer_type == "linear_attention":
            self.linear_attn = SleepGatedDeltaNet(config, layer_idx)
        else:
            self.self_attn = SleepAttention(config, layer_idx)
        self.mlp = None
        if layer_idx not in config.memory_layers:
            self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = SleepMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        state: AttentionState | DeltaNetState | None,
        window: Window,
        state_only: bool = False,  # of a memory: no hidden states, None in their place
    ) -> tuple[torch.Tensor | None, AttentionState | DeltaNetState]:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        if self.layer_type == "linear_attention":
            hidden_states, state = self.linear_attn(hidden_states, state, window, state_only)
            if state_only:
                return None, state
        else:
            hidden_states, _, state = self.self_attn(hidden_states, state, window)
        hidden_states = residual + hidden_states
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, state


class SleepLayers(GradientCheckpointingLayer, nn.ModuleList):
    """
    The stack of decoder layers, which can run any span of itself. One call is one pass over one window.

    Being a [`GradientCheckpointingLayer`], a pass is the unit of gradient checkpointing: with it on, a pass keeps its
    hidden states and the states of its layers, and computes the rest again.
    """

    key_layer: int | None = None  # whose input recall memories make keys of, if it is not their own

    def forward(self, hidden_states: torch.Tensor, states: list, **kwargs) -> tuple[torch.Tensor | None, list]:
        """`run`, with gradient checkpointing if it is on."""
        return self.run(hidden_states, states, **kwargs)

    def run(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        states: list,  # of the layers of the span
        start: int,
        window: Window,
        state_only: bool = False,
    ) -> tuple[torch.Tensor | None, list]:
        """
        As many layers as there are `states`, from layer `start` on. Returns hidden states and states anew.

        With `state_only`, the last layer, a memory, updates its state and no more: None comes back instead of hidden
        states.
        """
        new_states = []
        for i, state in enumerate(states, start):
            if i == self.key_layer:
                window = window._replace(key_hidden_states=hidden_states)
            only = {"state_only": True} if state_only and i == start + len(states) - 1 else {}
            hidden_states, state = self[i](hidden_states, state, window, **only)
            new_states.append(state)
        return hidden_states, new_states
