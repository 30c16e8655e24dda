"""A folder that loads anywhere with `trust_remote_code=True`, from what `save_pretrained` or a `Trainer` left.

Notable:
- the model is loaded and saved again, so weights that were pickled or in other pieces come out as safetensors, and
  the code beside them is this package's, also where the folder has that of an older version, or none
- the source is only read; nothing is written before all of it was loaded
"""

import shutil
from pathlib import Path

import modeling_sleep

from .card import read_metadata, write_card
from .contents import AUTO_CLASS_OF, CARD, CODE_FIELD, DOCUMENTS, TOKENIZER, belongs, list_files, read_json


def export(source: Path, out: Path, *, overwrite: bool = False, license: str | None = None) -> list[str]:
    """
    Write a folder that can go out, and return what was done that might surprise, a sentence each.

    The options are the command's. A `ValueError` says that the source holds no model that sleeps, or the target
    something else than an export.
    """
    cls = check_source(source)
    check_target(source, out, overwrite)
    known, files = read_metadata(source / CARD), list_files(source)
    if license:
        known.license, known.license_name, known.license_link = license, None, None
    model = load_whole(cls, source)

    left_out = dict.fromkeys(name.partition("/")[0] for name in files if not belongs(name))
    notes = [f"{name} left out" for name in left_out]
    stated, ours = read_json(source / "config.json").get(CODE_FIELD), modeling_sleep.__version__
    if stated not in (None, ours):
        notes.append(f"the code is that of modeling_sleep {ours}; in {source} it was that of {stated}")
    if not model.config.use_cache:
        model.config.use_cache = True
        notes.append("use_cache was off, as Trainer leaves it after gradient checkpointing; it is on now")
    model.config.auto_map = None  # `save_pretrained` writes ours, and nothing of a repository that it was loaded from

    for path in list_files(out).values():
        path.unlink()
    model.save_pretrained(out)
    for name, path in files.items():  # links are followed: folders of the Hub's cache hold nothing else
        if TOKENIZER.fullmatch(name) or DOCUMENTS.fullmatch(name):
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, out / name)
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # they are written for their owner alone
    notes += write_card(out, known)
    if (source / CARD).exists() and (source / CARD).read_bytes() != (out / CARD).read_bytes():
        notes.append(f"{CARD} is rendered anew; of the old one, the metadata is kept, and the text is not")
    return notes


def check_source(source: Path) -> type:
    """The class of the model that is saved in a folder, or a `ValueError` that says what there is instead."""
    if not source.is_dir():
        raise ValueError(f"{source} is no folder. Give one that `save_pretrained` or a `Trainer` wrote.")
    # Before all else: beside a config.json, too, transformers would load the model that the adapter names.
    if (source / "adapter_config.json").exists():
        raise ValueError(
            f"{source} holds an adapter, not a model. Merge it first: "
            "`peft_model.merge_and_unload().save_pretrained(...)`, and export what that wrote."
        )
    if not (source / "config.json").exists():
        hint = "".join(f" Did you mean {path}?" for path in sorted(source.glob("checkpoint-*"))[-1:])
        raise ValueError(f"{source} holds no saved model: there is no config.json.{hint}")
    config = read_json(source / "config.json")
    if config.get("model_type") != "sleep":
        raise ValueError(
            f"{source} holds a model of type {config.get('model_type')!r}, not one that sleeps ('sleep')."
        )
    if (path := source / "tokenizer_config.json").exists() and "auto_map" in read_json(path):
        raise ValueError(
            f"The tokenizer in {source} brings code of its own, which would not be exported. Save it as a plain "
            "`PreTrainedTokenizerFast`."
        )
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in AUTO_CLASS_OF:
        raise ValueError(
            f"{source / 'config.json'} names {names} as `architectures`, but what can be loaded elsewhere is one of "
            f"{', '.join(AUTO_CLASS_OF)}. A class of your own does not travel with the model: save it as one of these."
        )
    return getattr(modeling_sleep, names[0])


def check_target(source: Path, out: Path, overwrite: bool) -> None:
    """Raise a `ValueError` if the target is the source, or something is there that would be lost."""
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the folder that is exported. Give another one to write to.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file. Give a folder that is not there yet.")
    files = list_files(out)
    if files and not overwrite:
        raise ValueError(f"{out} is not empty. Give another folder, or --overwrite.")
    if strangers := [name for name, path in files.items() if path.is_symlink() or not belongs(name)]:
        raise ValueError(
            f"{out} holds what no export wrote ({', '.join(strangers[:3])}), and --overwrite would remove it. Give "
            "another folder."
        )


def load_whole(cls: type, folder: Path):
    """Load a model, and nothing but it: a `ValueError` if weights are missing or there are others."""
    try:
        # Weights of other shapes are named below; transformers would name them in its log.
        model, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # of safetensors, of torch, of the configuration's checks: each has its own
        raise ValueError(f"{folder} cannot be loaded ({type(error).__name__}: {error}). Save it again.") from error
    if wrong := {name: list(map(str, keys))[:3] for name, keys in info.items() if keys}:
        raise ValueError(
            f"The weights in {folder} are not those of its config.json: {wrong}. Save the model again with "
            "`save_pretrained`, with config and weights of one run."
        )
    return model
