"""What the machine can do, measured: multiplications of a large matrix product, bytes of a large copy; and what a
computation needs of both.

Counted are matrix products, convolutions, attention and triangular solves (a multiplication and an addition are two
operations), and what each of them reads and writes, once. Element-wise work has no floor here.
"""

from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from ..flops import FORMULAS
from .bench import Bench


FORMULA_OF = flop_registry | {operation: shape_wrapper(formula) for operation, formula in FORMULAS.items()}


class Peak:
    """A large matrix product and a large copy, to be measured beside what is held against them."""

    def __init__(self, bench: Bench):
        size = (256 if bench.quick else 1024) if bench.device == "cpu" else 8192
        self.bench = bench
        self.matrix = torch.randn(size, size, device=bench.device, dtype=bench.dtype)
        # Far more than the processor's caches hold.
        self.source = torch.randn((1 if bench.quick else 32) * 2**20, device=bench.device)
        self.target = torch.empty_like(self.source)

    def matmul(self) -> float:
        """Seconds per floating point operation."""
        size = self.matrix.shape[0]
        return self.bench.timed(torch.mm, self.matrix, self.matrix) / (2 * size**3)

    def copy(self) -> float:
        """Seconds per byte; a copy reads and writes each."""
        return self.bench.timed(self.target.copy_, self.source) / (2 * self.source.nbytes)

    def both(self, times: int = 7) -> dict[str, float]:
        """The best of so many of each, as others disturb some: seconds per operation, seconds per byte."""
        return {"flop": min(self.matmul() for _ in range(times)), "byte": min(self.copy() for _ in range(times))}


class Counter(TorchDispatchMode):
    """
    Counts operations and bytes, by the group that is current in the forward; a backward counts for its forward's.

    Attributes
    ----------
    flops, bytes : dict[str, int]
    group : str
        Where the forward is; to be set by whoever knows.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.bytes = defaultdict(int), defaultdict(int)
        self.group = "other"
        self._group_of_node = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket not in FORMULA_OF and torch.is_inference_mode_enabled():
            with self:  # there, `linear` and the like come here as they are
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        node = torch._C._current_autograd_node()
        if node is None:
            group = self.group
            # The node of this operation has just been made, so the next number is one behind it.
            self._group_of_node[torch.autograd._get_sequence_nr() - 1] = group
        else:
            group = self._group_of_node.get(node._sequence_nr(), "other")
        if (formula := FORMULA_OF.get(function.overloadpacket)) is not None:
            self.flops[group] += formula(*args, **kwargs, out_val=result)
            touched = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes[group] += sum(x.nbytes for x in touched)
        return result


def count(function, *args, **kwargs) -> tuple[int, int]:
    """Floating point operations of a call, and the bytes that they read and write."""
    with Counter() as counter:
        function(*args, **kwargs)
    return sum(counter.flops.values()), sum(counter.bytes.values())
