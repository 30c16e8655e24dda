"""In-tree hybrids of every family that can be given sleep, so small that every test has its own."""

import torch
from builders import UNEVEN
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_sleep import SleepForCausalLM


L = 6
SMALL = {name: value for name, value in UNEVEN.items() if name != "window_size"} | dict(
    num_hidden_layers=5,
    layer_types=["linear_attention", "full_attention", "linear_attention", "full_attention", "linear_attention"],
    initializer_range=0.1,
    pad_token_id=None,
    eos_token_id=None,
)
PARTIAL = dict(rope_theta=100.0, partial_rotary_factor=0.5)
FAMILIES = {
    "olmo_hybrid": dict(SMALL, rope_parameters=dict(rope_theta=100.0)),
    "olmo_hybrid without positions": dict(SMALL, rope_parameters=dict(rope_theta=None), tie_word_embeddings=True),
    "qwen3_5_text": dict(SMALL, head_dim=8, rope_parameters=dict(PARTIAL, mrope_section=[1, 1, 0])),
    "qwen3_next": dict(SMALL, head_dim=8, rope_parameters=PARTIAL, num_experts=0, attention_bias=True),
}


class Float64(TorchFunctionMode):
    """The families' code casts to float32 here and there; inside this, it casts to float64 instead."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def exact(x):
            return torch.float64 if x is torch.float32 else x

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(exact, args), **{name: exact(value) for name, value in (kwargs or {}).items()})


def make_original(family, dtype=torch.float64, **overrides):
    """The family's own model, with an S that lives, and no parameter left where a mistake would not show."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.partition(" ")[0], **{**FAMILIES[family], **overrides})
    with Float64():
        original = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    original.to(dtype).eval()
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(0.1, 1).log_()
            elif name.endswith("dt_bias"):
                parameter.uniform_(-4, -1)
            elif "norm" in name or "bias" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "conv1d" in name:
                parameter.uniform_(-0.5, 0.5)
    return original


def put_to_sleep(original, **options):
    return SleepForCausalLM.from_causal_lm(original, **{"window_size": L, "sleep_passes": 1, **options})


def make_model(family, dtype=torch.float64, **options):
    return put_to_sleep(make_original(family, dtype), **options)
