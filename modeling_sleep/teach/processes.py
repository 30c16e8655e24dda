"""Teaching in several processes, as `torchrun` begins them: each tells stories of its own, and all learn the same.

Without a process group there is one process, and nothing here does anything.
"""

import random
from collections.abc import Iterable, Sequence

import torch
from torch import distributed as dist


def number_of_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process. 0 is the one that shows how far it is, saves, and measures."""
    return dist.get_rank() if number_of_processes() > 1 else 0


def part_of(count: int) -> range:
    """Of `count` things, those of this process."""
    processes = number_of_processes()
    return range(count * rank() // processes, count * (rank() + 1) // processes)


def part_ways(rng: random.Random) -> None:
    """From here on, every process draws by itself."""
    if number_of_processes() > 1:
        rng.seed(f"{rng.random()}/{rank()}")


def wait_for_all() -> None:
    if number_of_processes() > 1:
        dist.barrier()


def from_first(number: float, device: torch.device) -> float:
    """What the first process has."""
    if number_of_processes() == 1:
        return number
    told = torch.tensor(number, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return told.item()


@torch.no_grad()
def share_parameters(parameters: Iterable[torch.Tensor]) -> None:
    """Give those of the first process to all."""
    if number_of_processes() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


@torch.no_grad()
def average_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Give each parameter the mean of its gradients in all processes, 0 where it has none."""
    processes = number_of_processes()
    if processes == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    together = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of a dozen
    dist.all_reduce(together)
    parts = together.div_(processes).split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
