"""The decoder layers of in-tree hybrids, made to sleep: a state in, a new state out, as in layers_sleep.py.

A family's attention, norms and MLP are its own modules, looked up in transformers. Its Gated DeltaNet is ours, around
the family's projections and gated norm: theirs writes states in place (so gradients could not cross a window), lets
masked tokens decay S, and chooses its kernel when transformers is imported. All parameters keep the family's names, so
that its weights load as they are.

    olmo_hybrid     attention without gate, norms behind it; rotary positions or none; projections as in our own layers
    qwen3_5_text    gated attention, part of each head rotated, zero-centred norms; one projection for q, k and v
    qwen3_next      the same; two projections for everything. Dense layers only

The modules are looked up by name when a model is built, never imported above: the Hub's loader asks for all that is.
"""

import importlib
import inspect

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from .configuration_sleep import SleepConfig
from .layers_sleep import AttentionState, DeltaNetState, GatedDeltaNet, SleepGatedDeltaNet, StateMixin
from .window_sleep import Window


# Where transformers has a family's modules, and how their names begin.
MODULES = {
    "olmo_hybrid": ("olmo_hybrid", "OlmoHybrid"),
    "qwen3_5_text": ("qwen3_5", "Qwen3_5"),
    "qwen3_next": ("qwen3_next", "Qwen3Next"),
}
ZERO_CENTRED_NORMS = ("Qwen3_5RMSNorm", "Qwen3NextRMSNorm")


def family_class(config: SleepConfig, name: str) -> type[nn.Module]:
    """The class `name` of the family of `config.base_config`, its prefix left out: `"RMSNorm"`, `"DecoderLayer"`."""
    folder, prefix = MODULES[config.base_config["model_type"]]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    return getattr(module, prefix + name)


def family_norm(config: SleepConfig) -> type[nn.Module]:
    """The family's RMS norm, which also stands before the head."""
    return family_class(config, "RMSNorm")


def is_zero_centred(module: nn.Module) -> bool:
    """Whether `module` is a norm that multiplies by 1 + weight."""
    return type(module).__name__ in ZERO_CENTRED_NORMS


class OlmoHybridDeltaNet(SleepGatedDeltaNet):
    """Differs from its parent in the gated norm, which is the family's."""

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        # The epsilon is no field of the family's configuration.
        self.o_norm = family_class(config, "RMSNormGated")(config.linear_value_head_dim, eps=1e-5)

    def _read_out(self, output, gate):
        return self.o_proj(self.o_norm(output, gate).flatten(-2))


class Qwen35DeltaNet(GatedDeltaNet):
    """Queries, keys and values from one projection."""

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.norm = family_class(config, "RMSNormGated")(config.linear_value_head_dim, eps=config.rms_norm_eps)

    def _build_projections(self, config, key_dim, value_dim):
        self.in_proj_qkv = nn.Linear(config.hidden_size, 2 * key_dim + value_dim, bias=False)
        self.in_proj_z = nn.Linear(config.hidden_size, value_dim, bias=False)
        self.in_proj_b = nn.Linear(config.hidden_size, config.linear_num_value_heads, bias=False)
        self.in_proj_a = nn.Linear(config.hidden_size, config.linear_num_value_heads, bias=False)
        self.out_proj = nn.Linear(value_dim, config.hidden_size, bias=False)

    def _project(self, hidden_states, state_only):
        gate = None if state_only else self.in_proj_z(hidden_states).unflatten(-1, (-1, self.value_head_dim))
        return self.in_proj_qkv(hidden_states), self.in_proj_a(hidden_states), self.in_proj_b(hidden_states), gate

    def _read_out(self, output, gate):
        return self.out_proj(self.norm(output, gate).flatten(-2))


class Qwen3NextDeltaNet(Qwen35DeltaNet):
    """Everything from two projections, in which each key head stands with the value heads that it serves."""

    def _build_projections(self, config, key_dim, value_dim):
        self.num_key_heads = config.linear_num_key_heads
        self.in_proj_qkvz = nn.Linear(config.hidden_size, 2 * key_dim + 2 * value_dim, bias=False)
        self.in_proj_ba = nn.Linear(config.hidden_size, 2 * config.linear_num_value_heads, bias=False)
        self.out_proj = nn.Linear(value_dim, config.hidden_size, bias=False)

    def _project(self, hidden_states, state_only):
        # (batch, length, key_heads, what belongs to one of them)
        qkvz = self.in_proj_qkvz(hidden_states).unflatten(-1, (self.num_key_heads, -1))
        b, a = self.in_proj_ba(hidden_states).unflatten(-1, (self.num_key_heads, -1)).chunk(2, dim=-1)
        sizes = [size // self.num_key_heads for size in (*self.split_sizes, self.split_sizes[-1])]
        query, key, value, gate = qkvz.split(sizes, dim=-1)
        mixed = torch.cat([x.flatten(-2) for x in (query, key, value)], dim=-1)
        return mixed, a.flatten(-2), b.flatten(-2), gate.flatten(-2).unflatten(-1, (-1, self.value_head_dim))


DELTA_NETS = {"olmo_hybrid": OlmoHybridDeltaNet, "qwen3_5_text": Qwen35DeltaNet, "qwen3_next": Qwen3NextDeltaNet}


class WindowCache:
    """What a family's attention asks a cache for: all keys and values to attend to, the new ones behind."""

    def __init__(self, state: AttentionState | None, window: Window):
        self.state, self.window = state or AttentionState(), window

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        self.state = self.state.append(keys, values, self.window)
        return self.state.all()


class FamilyDecoderLayer(StateMixin, nn.Module):
    """
    A decoder layer of `config.base_config`'s family, with [`SleepDecoderLayer`]'s arguments and results.

    Differs from the family's own in that the mixer's state comes in and goes out, and in the Gated DeltaNet, see
    above.
    """

    side_by_side = False  # the family's attention module knows no windows within the length

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__()
        self.layer_type = config.layer_types[layer_idx]
        model_type = config.base_config["model_type"]
        name = "DecoderLayer"
        if model_type == "olmo_hybrid":
            name = ("Linear" if self.layer_type == "linear_attention" else "") + "AttentionDecoderLayer"
        before = sum(i < layer_idx for i in config.memory_layers)  # which the family does not know of
        layer = family_class(config, name)(config.family_config(), layer_idx - before)
        for name, child in layer.named_children():
            self.add_module(name, child)
        if self.layer_type == "linear_attention":
            self.linear_attn = DELTA_NETS[model_type](config, layer_idx)
        else:
            self.self_attn.config = config  # the model's choice of an attention implementation
        self.norms_follow = hasattr(self, "post_feedforward_layernorm")
        # Qwen's rotation gives what dtype it gets; OLMo's is in float32, and cast back.
        self.casts_rotation = model_type != "olmo_hybrid"
        # From transformers 5.24 on, attention takes its cache by another name.
        parameters = inspect.signature(self.self_attn.forward).parameters if hasattr(self, "self_attn") else ()
        self.cache_argument = "cache" if "cache" in parameters else "past_key_values"

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        state: AttentionState | DeltaNetState | None,
        window: Window,
        state_only: bool = False,  # of a memory: no hidden states, None in their place
    ) -> tuple[torch.Tensor | None, AttentionState | DeltaNetState]:
        mixed = hidden_states if self.norms_follow else self.input_layernorm(hidden_states)
        if self.layer_type == "linear_attention":
            mixed, state = self.linear_attn(mixed, state, window, state_only)
            if state_only:
                return None, state
        else:
            mixed, state = self._attend(mixed, state, window)

        if self.norms_follow:
            hidden_states = hidden_states + self.post_attention_layernorm(mixed)
            hidden_states = hidden_states + self.post_feedforward_layernorm(self.mlp(hidden_states))
        else:
            hidden_states = hidden_states + mixed
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, state

    def _attend(self, hidden_states, state, window: Window) -> tuple[torch.Tensor, AttentionState]:
        position_embeddings = window.position_embeddings
        if position_embeddings is not None:  # families have rows first
            position_embeddings = tuple(x if x.ndim == 3 else x.unsqueeze(0) for x in position_embeddings)
            if self.casts_rotation:
                position_embeddings = tuple(x.to(hidden_states.dtype) for x in position_embeddings)
        cache = WindowCache(state, window)
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=window.attention_mask,
            **{self.cache_argument: cache},
            **window.options,
        )
        return hidden_states, cache.state


def family_base_config(config: PreTrainedConfig) -> dict:
    """
    Turn the configuration of an in-tree hybrid into a `SleepConfig(base_config=...)`.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the text model; of a multimodal Qwen3.5, its text part is taken.

    Returns
    -------
    dict
        Everything that the family's configuration adds to the plain one, and its `model_type`. `SleepConfig` says
        whether it can be used.
    """
    overrides = {}
    if config.model_type == "qwen3_5":
        overrides = {"tie_word_embeddings": config.tie_word_embeddings}
        config = config.text_config
    plain = PreTrainedConfig().to_dict()
    fields = {name: value for name, value in config.to_dict().items() if name not in plain}
    return {**fields, **overrides, "model_type": config.model_type}


def family_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    Rename the weights of an in-tree hybrid with a language modeling head to those of a `SleepForCausalLM`.

    Parameters
    ----------
    model : PreTrainedModel
        A `...ForCausalLM` of the family, or `Qwen3_5ForConditionalGeneration`, whose vision is left out.

    Returns
    -------
    dict[str, torch.Tensor]
        For `load_state_dict`; the tensors themselves, not copies.
    """
    state = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("model.visual.")
    }
    # In older releases of transformers, OLMo-Hybrid has three convolutions side by side.
    for name in [name for name in state if name.endswith(".q_conv1d.weight")]:
        parts = [state.pop(name.replace(".q_conv1d.", f".{which}_conv1d.")) for which in "qkv"]
        state[name.replace(".q_conv1d.", ".conv1d.")] = torch.cat(parts)
    return state
