"""Pretrained models to be given sleep: small ones of every family whose layers are attention alone."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


L = 8
SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ORIGINALS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
    "llama 3": (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=LLAMA_3)),
    "smollm2": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "mistral": (MistralForCausalLM, MistralConfig, dict(sliding_window=L, head_dim=12)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(head_dim=16)),
}


def make_original(name, dtype=torch.float32, **overrides):
    """A random model, its biases and norms too, in which nothing is lost in rounding."""
    model_class, config_class, options = ORIGINALS[name]
    options = {**SIZES, **options, **overrides}
    if model_class is Qwen2ForCausalLM:
        del options["head_dim"]  # it has no such field
    torch.manual_seed(0)
    model = model_class(config_class(**options)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)
