"""A memory as a file: what is written, how it is written, and to which model it belongs.

The file is safetensors: named tensors, and one record in its metadata, as JSON. A checksum over both tells whether
anything was changed afterwards. It is written beside its place, flushed to the disk and then renamed, so that whoever
kills the process finds the old file or the new one, and never half of one.

A memory means something to the weights that wrote it alone. So the record holds a fingerprint of the model: the fields
of its configuration that say what is computed, and a digest of all weights below the head.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from .configuration_sleep import SleepConfig


RECORD = "modeling_sleep_memory"  # the key of the record in the file's metadata
FORMAT = 2  # raised whenever older code could not read the file
# Of a configuration, what changes nothing of what is read and written: N and pinned tokens belong to a call, a
# vocabulary to its embeddings, and the rest to training, to clients and to how weights were first drawn.
NOT_OF_THE_MEMORY = {
    "vocab_size",
    "sleep_passes",
    "pinned_tokens",
    "bptt_windows",
    "skip_logits",
    "attention_dropout",
    "initializer_range",
    "linear_a_min",
    "linear_a_max",
    "linear_dt_min",
    "linear_dt_max",
    "n_positions",
    "use_cache",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "adopted_from",
    "modeling_sleep_version",
    "transformers_range",
}
PIECES = 64  # of a parameter, each with a sum of its own
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def core_of(model):
    """The stack of layers, whatever is put around it: a head, an adapter of PEFT."""
    return next(module for module in model.modules() if hasattr(module, "fast_weights") and hasattr(module, "norm"))


def fingerprint(model, version: int | None = None) -> dict:
    """
    What tells a model from all others to which its memories mean nothing.

    Parameters
    ----------
    model : SleepPreTrainedModel
    version : int, optional
        Format of the file that it is compared with. Default: the newest.

    Returns
    -------
    dict
        `config`, the fields that say what is computed; `weights`, a digest of them; `dtype` and `code_version`.

    Raises
    ------
    ValueError
        If the weights are not all in this process: sharded, or offloaded.
    """
    core, config = core_of(model), model.config
    fields = [name for name in SleepConfig.__annotations__ if name not in NOT_OF_THE_MEMORY]
    return {
        "config": json.loads(json.dumps({name: getattr(config, name) for name in fields})),  # tuples become lists
        "weights": weights_digest(core, version or FORMAT),
        "dtype": str(core.dtype).removeprefix("torch."),
        "code_version": config.code_version,
    }


def weights_digest(core, version: int) -> str:
    """
    The digest of all parameters that take part, as files of this format hold it. It is computed at every call: what
    writes to `parameter.data`, as averaged weights and merged adapters do, leaves no trace of that.
    """
    aside = adapters_aside(core)
    parameters = {name: x for name, x in core.named_parameters() if not f"{name}.".startswith(aside)}
    for name, parameter in parameters.items():
        if parameter.is_meta or hasattr(parameter, "placements"):
            raise ValueError(
                f"`{name}` is not in this process (offloaded, or sharded over several), so that this model cannot "
                "tell its own memories from others. Save and load memories with a model that is whole."
            )
    return (digest_of if version > 1 else digest_of_format_1)(parameters)


def adapters_aside(core) -> tuple[str, ...]:
    """With what names of parameters begin that PEFT has set aside: of adapters that are off, inactive or merged."""
    aside = []
    for name, module in core.named_modules():
        # By name, as PEFT need not be there.
        for kind in getattr(module, "adapter_layer_names", ()):
            is_off = module.disable_adapters or getattr(module, "merged", False)
            adapters = getattr(getattr(module, kind, None), "keys", tuple)()
            aside += [f"{name}.{kind}.{x}." for x in adapters if is_off or x not in module.active_adapters]
    return tuple(aside)


@torch.no_grad()
def digest_of(parameters: dict[str, torch.Tensor]) -> str:
    """
    Of each parameter its name, shape and dtype, and the sums of its bits, piece by piece.

    Bits are read as integers of 64 bits, several elements at once, which is as fast as memory is read. The sums,
    modulo 2^64, are exact and the same on every device, and none stays what it was if one element changes. The first
    integer of each piece counts once more by itself.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        flat = parameter.detach().reshape(-1)
        if flat.stride(0) != 1 or flat.storage_offset() * flat.element_size() % 8:
            flat = flat.clone(memory_format=torch.contiguous_format)
        whole = flat.numel() - flat.numel() % (PIECES * (8 // flat.element_size()))
        words = flat[:whole].view(torch.int64).view(PIECES, whole // PIECES * flat.element_size() // 8)
        rest = flat[whole:].view(INTEGERS[flat.element_size()]).long()
        looked_at = torch.cat([words.sum(1), words[:, :1].flatten(), rest])
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {looked_at.tolist()}".encode())
    return digest.hexdigest()


@torch.no_grad()
def digest_of_format_1(parameters: dict[str, torch.Tensor]) -> str:
    """The same in files of the first format: one sum of all elements, and about 64 of them."""
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        bits = parameter.detach().reshape(-1)
        bits = bits.view(INTEGERS[bits.element_size()])
        looked_at = torch.cat([bits.sum(dtype=torch.int64).view(1), bits[:: max(1, bits.numel() // 64)].long()])
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {looked_at.tolist()}".encode())
    return digest.hexdigest()


def check_fingerprint(path: Path, record: dict, model, force: bool) -> None:
    """
    Raise unless the memory of a file belongs to `model`.

    Raises
    ------
    ValueError
        If the model is another one; the message says what differs. With `force`, other weights are let through.
    """
    saved, ours = record["model"], fingerprint(model, record["format"])
    missing = object()
    # A field that came later was then what it is by default.
    theirs = {name: getattr(SleepConfig, name, missing) for name in ours["config"]} | saved["config"]
    different = [
        f"`{name}` is {found!r} there and {ours['config'].get(name)!r} here"
        for name, found in sorted(theirs.items())
        if found != ours["config"].get(name, missing)
    ]
    if different:
        raise ValueError(
            f"{path} is the memory of a model of another make: {'; '.join(different)}. Load it into the model that "
            "wrote it."
        )
    if force:
        return
    if saved["dtype"] != ours["dtype"]:
        raise ValueError(
            f"{path} was written by a model in {saved['dtype']}, and this one is in {ours['dtype']}. Load the model "
            f"with `dtype=torch.{saved['dtype']}`; with `force=True` the memory is converted, and no longer exact."
        )
    if saved["weights"] != ours["weights"]:
        raise ValueError(
            f"{path} was written by a model of the same make with other weights (before or after a training, or "
            "another checkpoint), to which it says something else. Load it into the model that wrote it, or, if you "
            "know better, with `force=True`."
        )


def write_file(path: Path, tensors: dict[str, torch.Tensor], record: dict) -> None:
    """Write a file, so that whatever happens, `path` holds the old one or the new one."""
    first = {}  # the name of each tensor; further names of one that is there already go into the record
    same = {name: other for name, x in tensors.items() if (other := first.setdefault(id(x), name)) != name}
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items() if name not in same}
    record = {"format": FORMAT, "same": same, **record}
    record["checksum"] = _checksum(tensors, record)
    data = safetensors.torch.save(tensors, metadata={RECORD: json.dumps(record)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name, too, is to be on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """
    The tensors and the record of a file that `write_file` wrote.

    Raises
    ------
    ValueError
        If it is truncated, was edited, is no memory at all, or was written by newer code.
    """
    record = read_record(path)
    tensors = safetensors.torch.load(path.read_bytes())
    if record.get("checksum") != _checksum(tensors, {k: v for k, v in record.items() if k != "checksum"}):
        raise ValueError(
            f"{path} is damaged, or was edited: its contents do not match its checksum. Read the text anew, or take "
            "another copy of the file."
        )
    return tensors | {name: tensors[other] for name, other in record["same"].items()}, record


def read_record(path: Path) -> dict:
    """The record alone, for which no tensor is read. Raises as `read_file` does, but for the checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no memory {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated, or no safetensors file at all ({error}). Read the text anew, or take another copy."
        ) from None
    if RECORD not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but no memory of a text: it has no {RECORD!r} in its metadata. Memories "
            "are written by `past_key_values.save(path, model)`."
        )
    try:
        record = json.loads(metadata[RECORD])
        version = int(record["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The record of {path} cannot be read ({error}): the file was edited.") from None
    if version > FORMAT:
        made_by = record.get("model", {}).get("code_version", "unknown")
        raise ValueError(
            f"{path} was written by a newer modeling_sleep ({made_by}; format {version}, and this one reads up to "
            f"{FORMAT}). Install that version."
        )
    return record


def _checksum(tensors: dict[str, torch.Tensor], record: dict) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
