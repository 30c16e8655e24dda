"""Run by `accelerate launch --config_file fsdp2.yaml` in test_distributed.py: an example of ours, sharded on CPUs.

Accelerate shards on accelerators alone; on a CPU it falls back to DDP without a word. Its FSDP2 works there, though,
once it is told that this is what it does. Prints, in each process, whether the layers really are sharded.
"""

import sys

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from examples import train_accelerate


class ShardingAccelerator(Accelerator):
    def __init__(self, cpu: bool):
        super().__init__(cpu=cpu)
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # as `accelerate launch` has read it from the file
        self.state.distributed_type = DistributedType.FSDP

    def prepare(self, model, *others):
        model, *others = super().prepare(model, *others)
        self.state.distributed_type = DistributedType.FSDP  # the state is made anew on the way
        weight = next(model.model.layers[0].parameters())
        assert isinstance(weight, DTensor) and weight.to_local().numel() * self.num_processes == weight.numel()
        print(f"process {self.process_index} of {self.num_processes} holds a shard")
        return model, *others


train_accelerate.Accelerator = ShardingAccelerator
train_accelerate.main(sys.argv[1:])
