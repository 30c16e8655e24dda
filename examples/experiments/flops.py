"""Floating point operations of a training run: one small step of every N is run and its operations are counted.

Counted are matrix products, convolutions, attention and triangular solves, forward and backward (a multiplication and
an addition are two operations); element-wise work is not. Attention counts all keys for every query, also those that
are masked.
"""

import copy
import math
from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .recipe import Training
from .tasks import Task


def _triangular_solve_flops(a_shape, b_shape, *args, out_shape, **kwargs) -> int:
    """A (..., n, n) triangular, X (..., n, k) or (..., k, n): n^2 k / 2 multiplications and as many additions."""
    return math.prod(out_shape) * a_shape[-1]  # B may be one for all A


def _baddbmm_flops(sum_shape, a_shape, b_shape, *args, **kwargs) -> int:
    """(batch, n, m) @ (batch, m, k), added in place; torch's own count is of the one out of place."""
    return 2 * math.prod(a_shape) * b_shape[-1]


def _convolution_backward_flops(grad_shape, x_shape, weight_shape, *args, **kwargs) -> int:
    """Gradients of input and weight cost a forward each. Torch's own formula takes grouped convolutions for dense."""
    return 2 * 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])


def _attention_flops(query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _attention_backward_flops(grad_shape, query_shape, key_shape, value_shape, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_shape, query_shape, key_shape, value_shape)


FORMULAS = {
    # Torch knows attention on CUDA only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    torch.ops.aten.baddbmm_: _baddbmm_flops,
    torch.ops.aten.linalg_solve_triangular: _triangular_solve_flops,
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}


def flops_per_example(model, task: Task, sleep_passes: int, examples: int = 2, backward: bool = True) -> float:
    """
    Operations over one training example.

    Parameters
    ----------
    model : PreTrainedModel
        A model whose forward takes `sleep_passes` and `labels`. It is copied to the CPU and left as it is.
    task : Task
        Its first examples are counted; longest depth.
    sleep_passes : int
        N.
    examples : int
        Examples to count and to average over.
    backward : bool
        Whether the backward counts as well.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).train()
    batch = task.collator()(task.examples(range(examples)))
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        loss = model(**batch, sleep_passes=sleep_passes, use_cache=False).loss
        if backward:
            loss.backward()
    return counter.get_total_flops() / examples


def training_flops(model, task: Task, training: Training) -> float:
    """Operations of a whole run, in the mean over what N may be drawn in every step."""
    steps = Counter(tuple(training.allowed_passes(step)) for step in range(training.max_steps))
    per_example = {n: flops_per_example(model, task, n) for n in set().union(*steps)}
    mean = {allowed: sum(per_example[n] for n in allowed) / len(allowed) for allowed in steps}
    return sum(mean[allowed] * training.batch_size * steps[allowed] for allowed in steps)
