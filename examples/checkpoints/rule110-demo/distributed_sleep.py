"""What processes must agree on while their parameters are sharded (FSDP, ZeRO-3).

There every call of a layer gathers its parameters from all processes, and waits until all of them call it. Texts of
different lengths have different numbers of windows and sleeps, so that some process would wait for ever. The others
hence stay in step: they idle, reading a token that nobody sees.
"""

import torch
from torch import distributed as dist


def is_sharded(layer: torch.nn.Module) -> bool:
    """Whether calling `layer` gathers its parameters from other processes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    in_zero3 = any(hasattr(parameter, "ds_id") for parameter in layer.parameters())
    return in_zero3 or isinstance(layer, (FSDPModule, FullyShardedDataParallel))


def largest_of_all_processes(values: list[int], device: torch.device) -> list[int]:
    """Element by element, the largest of what the processes give. All of them must call this."""
    values = torch.tensor(values, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values.tolist()
