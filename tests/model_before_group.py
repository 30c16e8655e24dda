"""Run `model_before_group.py MODULE ARGUMENTS...`: a module of ours, which must let go of its model in time.

A model in DDP holds the group of its processes. Where it is the last to do so, Gloo's thread is joined under the lock
that this thread may be waiting for: one run of some fifteen hung after its last line. So none may be left when the
group ends.
"""

import gc
import importlib
import sys

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


end_group = dist.destroy_process_group


def end_group_without_a_model(*args):
    left = sum(isinstance(one, DistributedDataParallel) for one in gc.get_objects())
    assert left == 0, f"{left} models in DDP outlive the group of their processes"
    print("no model outlives its group")
    end_group(*args)


dist.destroy_process_group = end_group_without_a_model
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
