"""A folder that loads anywhere with `trust_remote_code=True`, from what `save_pretrained` or a `Trainer` left.

Notable:
- the model is loaded and saved again, so weights that were pickled or in other pieces come out as safetensors, and
  the code beside them is this package's, also where the folder was written by an older version
- the source is only read; the folder is made beside its place and moved there when it is whole
"""

import shutil
import tempfile
from pathlib import Path

import modeling_sleep

from .card import read_metadata, write_card
from .contents import (
    CARD,
    CODE_FIELD,
    DOCUMENTS,
    TEMPLATES,
    TOKENIZER,
    belongs,
    list_files,
    list_links,
    model_class,
    read_json,
)


def check_source(source: Path) -> type:
    """
    The class of the model that is saved in a folder.

    Raises
    ------
    ValueError
        If there is none that sleeps; the message says what there is instead, and what to do.
    """
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
    if "auto_map" in (read_json(path) if (path := source / "tokenizer_config.json").exists() else {}):
        raise ValueError(
            f"The tokenizer in {source} brings code of its own, which would not be exported. Save it as a plain "
            "`PreTrainedTokenizerFast`."
        )
    return model_class(source, config)


def check_target(source: Path, out: Path, overwrite: bool) -> None:
    """
    Raise unless a folder may be written.

    Raises
    ------
    ValueError
        If it is the source, or something is there that would be lost.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the folder that is exported. Give another one to write to.")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file. Give a folder that is not there yet.")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty. Give another folder, or --overwrite.")
        if strangers := [name for name in list_files(out) if not belongs(name)] + list_links(out):
            raise ValueError(
                f"{out} holds what no export wrote ({', '.join(strangers[:3])}), and --overwrite would remove it. "
                "Give another folder."
            )


def export(source: Path, out: Path, *, overwrite: bool = False, license: str | None = None) -> list[str]:
    """
    Write a folder that can go out.

    Parameters
    ----------
    source : Path
        What `save_pretrained` or a `Trainer` wrote.
    out : Path
        Not there yet, or empty.
    overwrite : bool
        Whether an earlier export may be replaced.
    license : str, optional
        Of the model, as the Hub names it. Default: what the source's card says, or else the code's, apache-2.0; none
        if the weights come from another model.

    Returns
    -------
    list[str]
        What was done that might surprise, a sentence each.

    Raises
    ------
    ValueError
        If the source holds no model that sleeps, or the target something else.
    """
    source, out = Path(source), Path(out)
    cls = check_source(source)
    check_target(source, out, overwrite)
    out = out.resolve()  # "." has a place beside it, too
    known = read_metadata(source / CARD)
    notes = notes_on(source)
    model = load_whole(cls, source)
    if not model.config.use_cache:
        model.config.use_cache = True
        notes.append("use_cache was off, as Trainer leaves it after gradient checkpointing; it is on now")
    model.config.auto_map = None  # `save_pretrained` writes ours, and nothing of a repository that it was loaded from

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        made = Path(folder)
        model.save_pretrained(made)
        for path in source.iterdir():  # links are followed: folders of the Hub's cache hold nothing else
            if path.is_file() and (path.name in TOKENIZER or DOCUMENTS.fullmatch(path.name)):
                shutil.copyfile(path, made / path.name)
        for path in source.glob(f"{TEMPLATES}/*.jinja"):
            (made / TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(path, made / TEMPLATES / path.name)
        notes += write_card(made, known, license)
        if known and (source / CARD).read_text(encoding="utf-8") != (made / CARD).read_text(encoding="utf-8"):
            notes.append(f"{CARD} is rendered anew; of the old one, the metadata is kept, and the text is not")
        if out.is_dir():
            for path in list_files(out).values():
                path.unlink()
        for name, path in list_files(made).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)  # safetensors are written for the owner alone
            shutil.move(path, out / name)
    return notes


def notes_on(source: Path) -> list[str]:
    """What an export does not take over from a folder."""
    names = sorted(path.name for path in source.iterdir())
    notes = [f"{name} left out" for name in names if not belongs(name) and name != TEMPLATES]
    stated, ours = read_json(source / "config.json").get(CODE_FIELD), modeling_sleep.__version__
    if stated not in (None, ours):
        notes.append(f"the code is that of modeling_sleep {ours}; in {source} it was that of {stated}")
    return notes


def load_whole(cls: type, folder: Path):
    """
    Load a model, and nothing but it.

    Raises
    ------
    ValueError
        If it cannot be loaded, weights are missing, or some are there that the model does not have.
    """
    try:
        # Weights of other shapes are named below; transformers would name them in its log.
        model, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # of safetensors, of torch, of the configuration's checks: each has its own
        raise ValueError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}). Save the model again."
        ) from error
    if wrong := {name: list(map(str, keys))[:3] for name, keys in info.items() if keys}:
        raise ValueError(
            f"The weights in {folder} are not those of its config.json: {wrong}. Save the model again with "
            "`save_pretrained`, with config and weights of one run."
        )
    return model
