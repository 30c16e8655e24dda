"""What processes must agree on while their parameters are sharded (FSDP, ZeRO-3).

There every call of a layer gathers its parameters from all processes, and waits until all of them call it. Texts of
different lengths have different numbers of windows and sleeps, so that some process would wait for ever. The others
hence stay in step: they compare the lengths of their plans, and idle, reading a token that nobody sees.
"""

from collections.abc import Iterator

import torch
from torch import distributed as dist

from .cache_sleep import SleepState
from .plan_sleep import Wave


def is_sharded(layer: torch.nn.Module) -> bool:
    """Whether calling `layer` gathers its parameters from other processes."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    in_zero3 = any(hasattr(parameter, "ds_id") for parameter in layer.parameters())
    return in_zero3 or isinstance(layer, (FSDPModule, FullyShardedDataParallel))


def sharing_group(layer: torch.nn.Module) -> dist.ProcessGroup | None:
    """The processes that share the parameters of `layer`. None: all that there are."""
    group = getattr(layer, "process_group", None)  # FSDP1
    for parameter in layer.parameters():
        mesh = getattr(parameter, "device_mesh", None)  # FSDP2: parameters are DTensors
        if group is None and mesh is not None:
            group = mesh.get_group() if mesh.ndim == 1 else mesh[mesh.mesh_dim_names]._flatten().get_group()
        break
    return group


def largest_of_all_processes(values: list[int], device: torch.device, group=None) -> list[int]:
    """Element by element, the largest of what the processes give. All of them must call this."""
    values = torch.tensor(values, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group)
    return values.tolist()


class InStepMixin:
    """Lets a model pass through its layers as often as the process with the most to read does."""

    def in_step(self, waves: list[Wave], state: SleepState, sleep, inputs_embeds: torch.Tensor) -> "Schedule":
        """
        The `waves` of this process, with ghosts between them wherever another process sleeps or reads and this one
        does not. Ghost windows stand in front, as `bptt_windows` counts from the end.

        Raises
        ------
        ValueError
            If the processes would make different numbers of passes.
        """
        group = sharing_group(self.layers[0])
        device = inputs_embeds.device
        most, least, settles = largest_of_all_processes(
            [sleep.passes, -sleep.passes, int(sleep.until is not None)], device, group
        )
        if most != -least:
            raise ValueError(
                f"`sleep_passes` must be the same in all processes, as their parameters are sharded; got {-least} to "
                f"{most}. If you draw N at random, seed it alike everywhere."
            )
        if settles:
            raise ValueError(
                "`until` stops passes where a process' own rows have settled, while others go on: as parameters are "
                "sharded, they would wait for ever. Give a number of passes."
            )
        (longest,) = largest_of_all_processes([len(waves)], device, group)
        # For each wave whether it sleeps over windows with a graph, and over some that `bptt_windows` cuts off.
        sleeps = [[0, 0]] * (longest - len(waves)) + [self._sleeps_of(wave, inputs_embeds.shape[0]) for wave in waves]
        agreed = largest_of_all_processes([x for pair in sleeps for x in pair], device, group) if longest else []
        return Schedule(self, waves, sleeps, agreed, sleep, inputs_embeds[:1, :1])

    def _sleeps_of(self, wave: Wave, batch: int) -> list[int]:
        if wave.sleepers == ():
            return [0, 0]
        cut, uncut = self.cuts_of(wave, batch)
        return [int(bool(uncut)), int(bool(cut))]


class Schedule:
    """The waves of one process; iterating over it makes the ghosts' passes in between."""

    def __init__(self, model, waves, sleeps, agreed, sleep, token):
        self.model, self.waves, self.sleep, self.token = model, waves, sleep, token
        self.missing = [
            [bool(needed) and not has for needed, has in zip(agreed[2 * i : 2 * i + 2], pair, strict=True)]
            for i, pair in enumerate(sleeps)
        ]
        self.ghost, self.seen = SleepState.empty(len(model.layers)), []

    def __iter__(self) -> Iterator[Wave]:
        in_front = len(self.missing) - len(self.waves)
        for i, (uncut, cut) in enumerate(self.missing):
            if uncut:
                self._sleep()
            if cut:
                with torch.no_grad():
                    self._sleep()
            if i >= in_front:
                yield self.waves[i - in_front]
            else:
                self._wake()

    def _wake(self) -> None:
        wave = Wave(rows=None, begin=0, lengths=1, count=1, sleepers=(), windows_left=0)
        if self.ghost.stored >= self.model.config.window_size:
            self.ghost = SleepState.empty(len(self.model.layers))
        output, self.ghost = self.model._wake_window(self.token, wave, self.ghost)
        self.seen.append(output.last_hidden_state)

    def _sleep(self) -> None:
        if self.ghost.stored == 0:
            wide = self.token if self.model.keeps_hidden_states else None
            embeds = self.token if self.model.keeps_inputs_embeds else None
            self.ghost = self.ghost._replace(
                kept_hidden_states=wide, kept_inputs_embeds=embeds, last_hidden_state=self.token, columns=1, stored=1
            )
        self.ghost = self.model._sleep(self.ghost, self.sleep)
        self.seen += [S for S in self.model.fast_weights(self.ghost) if S is not None and S.requires_grad]

    def attach(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states` as they are, whose gradient also makes its way through the ghosts, as elsewhere."""
        if not self.seen:
            return hidden_states
        return hidden_states + 0 * sum(x.nan_to_num().sum() for x in self.seen).to(hidden_states.dtype)
