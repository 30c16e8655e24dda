"""Rotary positions within a window, with the frequencies of the model that was adopted, to the bit.

Positions count from the window's start; keys kept from before it stand at negative ones (see keep_sleep.py). How a
model that was made for longer texts scales its frequencies is transformers' own code; none of the types that are taken
depends on the length of the text.
"""

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_sleep import SleepConfig


def rotary_frequencies(config: SleepConfig, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, float]:
    """
    Radians per token, (rotated dimensions / 2,), in float32 or better whatever the model's dtype; and the factor by
    which cosines and sines are multiplied.

    Stateless, so that no cast of the model can round them.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    parameters = config.rope_parameters
    if parameters["rope_type"] != "default":  # as transformers computes them, in float32
        longest = config.window_size + config.window_overlap + config.pinned_tokens
        frequencies, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, device, seq_len=longest)
        return frequencies.to(dtype), scaling
    rotated = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotated, 2, device=device).to(dtype) / rotated
    return 1.0 / parameters["rope_theta"] ** exponents, 1.0


def rotary_embedding(
    config: SleepConfig, positions: torch.Tensor, dtype: torch.dtype, is_shift: bool = False
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    Cosines and sines of `positions`, (...), in a window: each (..., rotated dimensions).

    With `is_shift`, of numbers of tokens by which keys are turned that have their position already. None for a model
    whose attention knows no positions (`rope_theta` is None).
    """
    if config.rope_parameters["rope_theta"] is None:
        return None
    frequencies, scaling = rotary_frequencies(config, dtype, positions.device)
    angles = positions.to(frequencies.dtype).unsqueeze(-1) * frequencies
    angles = torch.cat([angles, angles], dim=-1)  # as `repeat`, in a fifth of the time
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if is_shift or scaling == 1.0 else (cos * scaling, sin * scaling)


def apply_rotary_embedding(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Rotate `x`, (batch, heads, length, head_dim), by its positions' angles, (length, rotated) or (batch, length,
    rotated). Dimensions behind the rotated ones stay as they are.
    """
    if cos.ndim == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rest = x.shape[-1] - cos.shape[-1]
    if rest:
        x, kept = x.split([cos.shape[-1], rest], dim=-1)
    first, second = x.chunk(2, dim=-1)
    rotated = (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
    return torch.cat([rotated, kept], dim=-1) if rest else rotated
