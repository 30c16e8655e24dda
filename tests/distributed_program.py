"""Run by `torchrun` in test_distributed.py: a model in several processes beside a whole one in every process.

Usage: distributed_program.py FOLDER PROGRAM..., where FOLDER holds the saved model of each program, in a folder of its
name, and will hold there what each process has found.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from helpers import largest_difference
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from modeling_sleep import SleepForCausalLM


WORLD_SIZE = int(os.environ["WORLD_SIZE"])


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole_model(folder: str, **overrides) -> SleepForCausalLM:
    return SleepForCausalLM.from_pretrained(folder, dtype=torch.float64, **overrides).train()


def sharded_model(folder: str, **overrides) -> SleepForCausalLM:
    config = DistributedConfig(fsdp_size=WORLD_SIZE)
    return SleepForCausalLM.from_pretrained(folder, dtype=torch.float64, distributed_config=config, **overrides)


def gradients_of(model) -> dict[str, torch.Tensor]:
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {n: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for n, grad in gradients.items()}


def same_texts(folder: str, parallelism: str) -> dict:
    """Tensor or fully sharded data parallelism, all processes with the same texts."""
    ids = random_ids(2, 30)
    whole = whole_model(folder)
    expected = whole(ids, labels=ids)
    expected.loss.backward()
    reference = gradients_of(whole)

    options = {"tp_plan": "auto", "tp_size": WORLD_SIZE} if parallelism == "tensor" else {"fsdp_size": WORLD_SIZE}
    config = DistributedConfig(**options)
    model = SleepForCausalLM.from_pretrained(folder, dtype=torch.float64, distributed_config=config)
    results = {}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        results[f"loss, checkpointing {checkpointing}"] = abs(output.loss.item() - expected.loss.item())
        results[f"gradients, checkpointing {checkpointing}"] = largest_difference(gradients_of(model), reference)
    sharded = model.model.layers[0].self_attn.q_proj.weight
    results["shard"] = sharded.to_local().numel() / sharded.numel()
    model.eval(), whole.eval()
    tokens, alone = (m.generate(ids, max_new_tokens=20, do_sample=False) for m in (model, whole))
    results["tokens equal"] = torch.equal(tokens, alone)
    return results


def tensor(folder: str) -> dict:
    return same_texts(folder, "tensor")


def data(folder: str) -> dict:
    return same_texts(folder, "data")


# Lengths of the texts of the two processes, in windows of 8, and the settings.
UNEQUAL = {
    "four windows and one": ((30, 5), {}),
    "one window and four": ((5, 30), {}),
    "one replay": ((17, 40), {"sleep_passes": 2}),
    "no replay": ((30, 5), {"sleep_passes": 1}),
    "cut": ((30, 12), {"bptt_windows": 2}),
    "checkpointed": ((30, 5), {"checkpointing": True}),
    "loss by window": ((30, 5), {"skip_logits": True}),
    "loss by window, few labels": ((12, 30), {"skip_logits": True, "labels": 3}),
}


def different_texts(folder: str, wrap) -> dict:
    """Every process has a text of its own: losses are its own, gradients the mean over all."""
    results, rank = {}, int(os.environ["RANK"])
    for name, (lengths, settings) in UNEQUAL.items():
        settings = dict(settings)
        checkpointing, labels = settings.pop("checkpointing", False), settings.pop("labels", None)
        losses, whole, model = [], whole_model(folder, **settings), wrap(folder, **settings)
        if checkpointing:
            getattr(model, "module", model).gradient_checkpointing_enable()
        for length in lengths:
            ids = random_ids(2, length)
            targets = ids.clone()
            targets[:, : -labels if labels else 0] = -100
            losses.append((ids, targets, whole(ids, labels=targets).loss))
        (sum(loss for *_, loss in losses) / WORLD_SIZE).backward()
        ids, targets, expected = losses[rank]
        loss = model.train()(ids, labels=targets).loss
        loss.backward()
        results[f"loss, {name}"] = abs(loss.item() - expected.item())
        results[f"gradients, {name}"] = largest_difference(gradients_of(model), gradients_of(whole))
    return results


def unequal_ddp(folder: str) -> dict:
    def wrap(folder, **settings):
        return DistributedDataParallel(whole_model(folder, **settings))

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return different_texts(folder, wrap)


def unequal_fsdp2(folder: str) -> dict:
    results = different_texts(folder, sharded_model)

    # Generation: prompts of one window and of four, and a cache that is about to sleep beside one that is not.
    rank, whole, model = int(os.environ["RANK"]), whole_model(folder).eval(), sharded_model(folder).eval()
    for lengths in ((4, 29), (8, 3)):
        ids = random_ids(1, lengths[rank])
        options = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True}
        ours, alone = model.generate(ids, synced_gpus=True, **options), whole.generate(ids, **options)
        results[f"tokens equal, {lengths}"] = torch.equal(ours.sequences, alone.sequences)
        results[f"seen equal, {lengths}"] = (
            ours.past_key_values.get_seq_length() == alone.past_key_values.get_seq_length()
        )

    try:
        model(random_ids(1, 20), sleep_passes=2 + rank)
    except ValueError as error:
        results["error"] = str(error)
    return results


def checkpoint(folder: str) -> dict:
    """Shards written by both processes, read into a new sharded model and into a whole one."""
    ids, shards = random_ids(2, 30), str(Path(folder) / "shards")
    model = sharded_model(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    expected = model(ids).logits
    dist.checkpoint.save(get_model_state_dict(model), checkpoint_id=shards)
    other = sharded_model(folder)
    results = {"before": (other(ids).logits - expected).abs().max().item()}
    state = get_model_state_dict(other)
    dist.checkpoint.load(state, checkpoint_id=shards)
    set_model_state_dict(other, state)
    results["shards"] = (other(ids).logits - expected).abs().max().item()
    results["files"] = len(list(Path(shards).glob("*.distcp")))

    saved = Path(folder) / "saved"
    model.save_pretrained(saved)
    dist.barrier()
    results["whole"] = (whole_model(str(saved))(ids).logits - expected).abs().max().item()
    return results


PROGRAMS = {
    "tensor": tensor,
    "data": data,
    "tensor of a family": tensor,
    "data of a family": data,
    "ddp": unequal_ddp,
    "fsdp2": unequal_fsdp2,
    "checkpoint": checkpoint,
}


def main(folder: str, *programs: str):
    for program in programs:
        found = PROGRAMS[program](os.path.join(folder, program))
        found["processes"] = dist.get_world_size()
        Path(folder, program, f"results-{dist.get_rank()}.json").write_text(json.dumps(found))
    gc.collect()  # models let go of the group before it ends, as model_before_group.py says
    dist.destroy_process_group()


main(*sys.argv[1:])
