"""Run by `torchrun` in test_distributed.py: a sharded model beside the whole one, in every process.

Usage: distributed_program.py tensor|data FOLDER
"""

import json
import os
import sys

import torch
from transformers.distributed import DistributedConfig

from modeling_sleep import SleepForCausalLM


def main(parallelism: str, folder: str):
    ids = torch.randint(1, 64, (2, 30), generator=torch.Generator().manual_seed(0))
    whole = SleepForCausalLM.from_pretrained(folder, dtype=torch.float64)
    expected = whole(ids, labels=ids)
    expected.loss.backward()
    reference = {name: parameter.grad for name, parameter in whole.named_parameters()}

    size = int(os.environ["WORLD_SIZE"])
    options = {"tp_plan": "auto", "tp_size": size} if parallelism == "tensor" else {"fsdp_size": size}
    config = DistributedConfig(**options)
    model = SleepForCausalLM.from_pretrained(folder, dtype=torch.float64, distributed_config=config)
    results = {"processes": size}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        gradients = {n: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for n, grad in gradients.items()}
        results[f"loss, checkpointing {checkpointing}"] = abs(output.loss.item() - expected.loss.item())
        results[f"gradients, checkpointing {checkpointing}"] = max(
            (gradient - reference[name]).abs().max().item() for name, gradient in gradients.items()
        )
    sharded = model.model.layers[0].self_attn.q_proj.weight
    results["shard"] = sharded.to_local().numel() / sharded.numel()
    model.eval(), whole.eval()
    tokens, alone = (m.generate(ids, max_new_tokens=20, do_sample=False) for m in (model, whole))
    results["tokens equal"] = torch.equal(tokens, alone)
    print("RESULTS " + json.dumps(results))
    torch.distributed.destroy_process_group()


main(*sys.argv[1:])
