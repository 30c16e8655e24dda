"""The Triton kernels of `fla` (flash-linear-attention) for the gated delta rule: when they run, and how.

Notable:
- they run on CUDA in half precision, and only where they are known to be right; plain torch runs everything else
- an installation that cannot be used costs one warning, which says why; the model then runs in plain torch
- S comes in and goes out in float32. One token without gradients is computed in float32 (S is off by 1e-7). Longer
  texts are multiplied in half precision: S is off by 2e-4 to 1e-3 of its largest entry after a call in float16, where
  plain torch is off by 1e-7. bfloat16 has 8 times coarser halves
- where nothing is differentiated, a call is one opaque operation to `torch.compile`, so that it breaks no graph. With
  gradients `fla` keeps the compiler out by itself: a graph ends before its kernels, and `fullgraph=True` raises

The version that is installed decides, as Hugging Face's remote code cannot pin it.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from packaging.version import Version
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Older kernels give every value head a key head of its own: with grouped heads their numbers are wrong, in silence.
MINIMUM_VERSION = "0.5.0"
MAX_KEY_DIM = 256  # asserted by the chunked kernels
DEVICE_TYPE = "cuda"


class Kernels(NamedTuple):
    """The functions of `fla`."""

    one_token: Callable  # has no backward
    chunks: Callable


@functools.cache
def load_kernels() -> Kernels | None:
    """Import `fla`, once per process. None if it is not installed, and with a warning if it cannot be used."""
    try:
        if importlib.util.find_spec("fla") is None:
            return None
        _check_version()
        # No import statement: transformers, loading code from the Hub, asks for every package that it finds in one.
        module = importlib.import_module("fla.ops.gated_delta_rule")
        return Kernels(module.fused_recurrent_gated_delta_rule, module.chunk_gated_delta_rule)
    except Exception as error:  # a broken installation raises whatever it likes: so does Triton, which it imports
        logger.warning(
            f"`fla` is installed but cannot be used, so the gated delta rule runs in plain torch, which is slower: "
            f"{type(error).__name__}: {error}"
        )
        return None


def _check_version() -> None:
    # The kernels moved into a distribution of their own, which is asked first.
    for name in ("fla-core", "flash-linear-attention"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(version) < Version(MINIMUM_VERSION):
            raise ImportError(
                f"{name} {version} is too old, as its kernels are wrong for grouped heads. Upgrade it: "
                f"pip install --upgrade 'flash-linear-attention>={MINIMUM_VERSION}'"
            )
        return
    raise ImportError("its version is unknown, as neither fla-core nor flash-linear-attention is installed by pip")


@torch.compiler.assume_constant_result  # a compiled model asks while it is traced
def _is_usable() -> bool:
    return load_kernels() is not None


@torch.compiler.assume_constant_result
def _warn_of_key_dim(key_dim: int) -> None:
    logger.warning_once(
        f"The kernels of `fla` take keys of at most {MAX_KEY_DIM} dimensions, and this model's have {key_dim}: the "
        "gated delta rule runs in plain torch, which is slower."
    )


def fla_fits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """
    Whether the kernels run a call.

    It is decided per call: a model on the CPU of a machine with `fla` must not end in its kernels. They are made for
    half precision; float32 and float64 stay exact in plain torch.
    """
    is_half = value.dtype in (torch.bfloat16, torch.float16) and query.dtype == key.dtype == value.dtype
    if value.device.type != DEVICE_TYPE or not is_half or not _is_usable():
        return False
    if key.shape[-1] > MAX_KEY_DIM:
        _warn_of_key_dim(key.shape[-1])
        return False
    return True


def fla_gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the rule in the kernels. Same parameters and return as `gated_delta_rule`, for calls that `fla_fits`."""
    rule = _opaque_rule if torch.compiler.is_compiling() and not torch.is_grad_enabled() else _rule
    return rule(query, key, value, log_decay, beta, initial_state)


def _rule(query, key, value, log_decay, beta, initial_state):
    kernels = load_kernels()
    one_token = value.shape[1] == 1 and not torch.is_grad_enabled()
    return (kernels.one_token if one_token else kernels.chunks)(
        query,
        key,
        value,
        g=log_decay.float(),
        beta=beta.to(value.dtype),
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


@torch.library.custom_op("modeling_sleep::fla_gated_delta_rule", mutates_args=())
def _opaque_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    output, state = _rule(query, key, value, log_decay, beta, initial_state)
    return output.contiguous(), state.contiguous()  # as is promised below


@_opaque_rule.register_fake
def _shapes_of_results(query, key, value, log_decay, beta, initial_state):
    batch, _, value_heads, value_dim = value.shape
    state = value.new_empty(batch, value_heads, key.shape[-1], value_dim, dtype=torch.float32)
    return torch.empty_like(value, memory_format=torch.contiguous_format), state
