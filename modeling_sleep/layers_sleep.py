"""The layers: tensors and states in, tensors and new states out.

Nothing here knows of caches, windows or sleep. A layer takes its two states as positional tensors and returns the new
ones, so that gradients flow through them under any way of calling (checkpointed, sharded, over many windows).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_sleep import SleepConfig
from .gated_delta_rule import gated_delta_rule


def rotary_embedding(
    config: SleepConfig, start: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    Cosines and sines of the positions `start, ..., start + length - 1` of a window, each (length, rotated dimensions).

    Stateless, so that no cast of the model can round the frequencies: float32 or better whatever its dtype. None for
    a model whose attention knows no positions (`rope_theta` is None).
    """
    dtype = torch.promote_types(dtype, torch.float32)
    parameters = config.rope_parameters
    if parameters["rope_theta"] is None:
        return None
    rotated = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    # rope_theta ** (-2 i / rotated) for i = 0, 1, ...; in one operation, as a token awake pays for their number.
    base, last = parameters["rope_theta"], 2 / rotated - 1
    frequencies = torch.logspace(0, last, rotated // 2, base=base, dtype=dtype, device=device)
    frequencies = scale_frequencies(frequencies, parameters)
    positions = torch.arange(start, start + length, dtype=dtype, device=device)
    angles = torch.outer(positions, frequencies)
    angles = torch.cat([angles, angles], dim=-1)  # as `repeat`, in a fifth of the time
    return angles.cos(), angles.sin()


def scale_frequencies(frequencies: torch.Tensor, parameters: dict) -> torch.Tensor:
    """
    Rotary frequencies, in radians per token, as a model that was made for longer texts scales them.

    "linear" divides all of them by `factor`. "llama3" (Llama 3.1) divides those whose period is long compared with the
    original context and leaves those that turn fast; `turns` is how often each turns within that context.
    """
    if parameters["rope_type"] == "linear":
        return frequencies / parameters["factor"]
    if parameters["rope_type"] == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / parameters["factor"])
    return frequencies


def apply_rotary_embedding(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x`, (batch, heads, length, head_dim), by its positions' angles, (length, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


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


class SleepAttention(nn.Module):
    """
    Causal attention within the current window, with grouped queries, rotary positions and, optionally, normalised
    queries and keys.

    Differs from [`LlamaAttention`] in that keys and values of the window so far come in and go out as tensors.
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
        past_keys: torch.Tensor | None,  # (batch, key_value_heads, stored, head_dim)
        past_values: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        batch, length, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query = apply_rotary_embedding(query, *position_embeddings)
        key = apply_rotary_embedding(key, *position_embeddings)
        if past_keys is None:  # in the layout that they have later on, for which compiled code is made
            key, value = key.contiguous(), value.contiguous()
        else:
            key = torch.cat([past_keys, key], dim=2)
            value = torch.cat([past_values, value], dim=2)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(batch, length, -1)), weights, key, value


class ShortConvolution(nn.Conv1d):
    """
    Causal convolution of each channel by itself, of (batch, kernel_size - 1 + length, channels) to `length` tokens.

    Differs from [`nn.Conv1d`] in that channels come last.
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, channels, kernel_size, groups=channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == self.kernel_size[0]:  # one token: a sum over what the kernel covers
            return (x * self.weight.squeeze(1).mT).sum(1, keepdim=True)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            # The same in two dimensions, where torch leaves channels last: 3 times as fast, forward and backward.
            return F.conv2d(x.mT.unsqueeze(2), self.weight.unsqueeze(2), groups=self.groups).squeeze(2).mT
        return super().forward(x.mT).mT


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
        self.conv1d = ShortConvolution(sum(self.split_sizes), config.linear_conv_kernel_dim)
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
        recurrent_state: torch.Tensor | None,  # S, (batch, value_heads, key_dim, value_dim)
        conv_state: torch.Tensor | None,  # (batch, conv_kernel - 1, conv_dim)
        padding_mask: torch.Tensor | None,  # (batch, length), False at padding
        state_only: bool = False,  # no output, None in its place
        windows: int = 1,  # that stand side by side in the batch; S goes through a row's windows one after the other
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        if padding_mask is not None:
            masked = ~padding_mask.unsqueeze(-1)
            hidden_states = hidden_states.masked_fill(masked, 0)

        mixed, a, b, gate = self._project(hidden_states, state_only)
        mixed, conv_state = self._convolve(mixed, conv_state)
        query, key, value = mixed.split(self.split_sizes, dim=-1)
        query = query.unflatten(-1, (-1, self.key_head_dim))
        key = key.unflatten(-1, (-1, self.key_head_dim))
        value = value.unflatten(-1, (-1, self.value_head_dim))

        # The gates in float32 or better: 1 - alpha is small where S is to live long.
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        dt = F.softplus(a.to(dtype) + self.dt_bias.to(dtype))
        log_decay = -self.A_log.to(dtype).exp() * dt
        beta = b.to(dtype).sigmoid() * self.beta_max
        if padding_mask is not None:
            log_decay = log_decay.masked_fill(masked, 0)
            beta = beta.masked_fill(masked, 0)

        inputs = (query, key, value, log_decay, beta)
        if windows > 1:
            inputs = (x.unflatten(0, (-1, windows)).flatten(1, 2) for x in inputs)
        output, recurrent_state = gated_delta_rule(*inputs, recurrent_state)
        if state_only:
            return None, recurrent_state, conv_state
        if windows > 1:
            output = output.unflatten(1, (windows, -1)).flatten(0, 1)
        return self._read_out(output, gate), recurrent_state, conv_state

    def _convolve(self, mixed, conv_state):
        """Causal convolution of (batch, length, conv_dim); before a window's first token there are zeros."""
        kept = self.conv1d.kernel_size[0] - 1
        if conv_state is None:
            conv_state = mixed.new_zeros(mixed.shape[0], kept, mixed.shape[2])
        mixed = torch.cat([conv_state, mixed], dim=1)
        # A copy, as a view would keep the whole window alive.
        conv_state = mixed[:, mixed.shape[1] - kept :].clone()
        return F.silu(self.conv1d(mixed)), conv_state


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


class SleepDecoderLayer(nn.Module):
    """
    Norm, mixer, residual, norm, MLP, residual. Memory layers have no MLP.

    Differs from in-tree layers in that the mixer's two states are positional arguments and results: `(keys, values)`
    of an attention layer, `(recurrent_state, conv_state)` of a Gated DeltaNet layer.
    """

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
        first_state: torch.Tensor | None,
        second_state: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        state_only: bool = False,  # Gated DeltaNet layers: no hidden states, None in their place
        windows: int = 1,  # Gated DeltaNet layers: windows of a row that stand side by side in the batch
        **kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        if self.layer_type == "linear_attention":
            hidden_states, first_state, second_state = self.linear_attn(
                hidden_states, first_state, second_state, padding_mask, state_only, windows
            )
            if state_only:
                return None, first_state, second_state
        else:
            hidden_states, _, first_state, second_state = self.self_attn(
                hidden_states, first_state, second_state, position_embeddings, attention_mask, **kwargs
            )
        hidden_states = residual + hidden_states
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, first_state, second_state


class SleepLayers(GradientCheckpointingLayer, nn.ModuleList):
    """
    The stack of decoder layers, which can run any span of itself. One call is one pass over one window.

    Being a [`GradientCheckpointingLayer`], a pass is the unit of gradient checkpointing: with it on, a pass keeps its
    hidden states and the states of its layers, and computes the rest again.
    """

    def forward(self, hidden_states: torch.Tensor, *states: torch.Tensor | None, **kwargs) -> tuple[torch.Tensor, ...]:
        """`run`, with gradient checkpointing if it is on."""
        return self.run(hidden_states, *states, **kwargs)

    def run(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        *states: torch.Tensor | None,  # two per layer of the span, flat, as gradient checkpointing wants them
        start: int,
        end: int,
        state_only: bool = False,
        **context,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Layers `start, ..., end - 1`; `context` is what every layer gets. Returns what it takes, anew.

        With `state_only`, the last layer, a Gated DeltaNet layer, updates its states and no more: None comes back
        instead of hidden states.
        """
        new_states = []
        for i in range(start, end):
            first = 2 * (i - start)
            hidden_states, *pair = self[i](
                hidden_states, *states[first : first + 2], state_only=state_only and i == end - 1, **context
            )
            new_states += pair
        return hidden_states, *new_states
