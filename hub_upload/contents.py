"""What belongs into a repository of a model that sleeps: what is not named here is left out or complained of."""

import functools
import json
import re
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

import modeling_sleep
from modeling_sleep.configuration import configuration_sleep


AUTO_CLASSES = {
    "AutoConfig": modeling_sleep.SleepConfig,
    "AutoModel": modeling_sleep.SleepModel,
    "AutoModelForCausalLM": modeling_sleep.SleepForCausalLM,
    "AutoModelForSequenceClassification": modeling_sleep.SleepForSequenceClassification,
    "AutoModelForTokenClassification": modeling_sleep.SleepForTokenClassification,
}
AUTO_MAP = {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in AUTO_CLASSES.items()}
MODEL_CLASSES = {cls.__name__: cls for name, cls in AUTO_CLASSES.items() if name != "AutoConfig"}

# Of config.json: what the code is, and what it was tested with.
CODE_FIELD, TRANSFORMERS_FIELD = "modeling_sleep_version", "transformers_range"
CARD = "README.md"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
TOKENIZER = {
    "added_tokens.json", "chat_template.jinja", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
}  # fmt: skip
TEMPLATES = "additional_chat_templates"  # a folder, of tokenizers that have more than one
DOCUMENTS = re.compile(r"results\.json|(LICENSE|NOTICE)(\.\w+)?|[\w.-]+\.png")
# Pickles run code when they are opened. The names are those that torch, Trainer and their friends give them.
PICKLES = re.compile(r".+\.(bin|pt|pth|ckpt|pkl|pickle|joblib|h5|msgpack)")


@functools.cache
def code_files() -> dict[str, Path]:
    """The package's files that a saved model carries, as transformers' own rules find them, by name."""
    root = Path(modeling_sleep.__file__).with_name("modeling_sleep.py")
    files = {path.name: path for path in (root, *map(Path, get_relative_import_files(root)))}
    # In the package this one is a shim; a save writes the file that it re-exports.
    files["configuration_sleep.py"] = Path(configuration_sleep.__file__)
    return files


def belongs(name: str) -> bool:
    """Whether a file of this name (a path, where it lies in a folder) has a place in a repository."""
    return (
        name in {CARD, "config.json", "generation_config.json", ".gitattributes", *code_files(), *TOKENIZER}
        or WEIGHTS.fullmatch(name) is not None
        or DOCUMENTS.fullmatch(name) is not None
        or name.startswith(f"{TEMPLATES}/")
        and name.endswith(".jinja")
    )


def is_ours_to_delete(name: str) -> bool:
    """
    Whether a push may remove it where it is no longer in the folder: all that loading reads, so that strangers load
    what was verified and not, say, the template of an earlier tokenizer; and pickles. Documents stay.
    """
    if name in {CARD, ".gitattributes"} or DOCUMENTS.fullmatch(name):
        return False
    return belongs(name) or "/" not in name and (name.endswith(".py") or PICKLES.fullmatch(name) is not None)


def list_files(folder: Path) -> dict[str, Path]:
    """All files of a folder by their path in it, sorted. Links are none: what they point to is elsewhere."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return dict(sorted((path.relative_to(folder).as_posix(), path) for path in paths))


def list_links(folder: Path) -> list[str]:
    """Links to files and folders, by their path in the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink())


def weight_files(files: dict[str, Path]) -> set[str]:
    """The names of the weights that are read when a folder with these files is loaded, there or not."""
    if WHOLE in files or INDEX not in files:
        return {WHOLE}
    return {INDEX, *read_json(files[INDEX]).get("weight_map", {}).values()}


def read_json(path: Path) -> dict:
    """
    Read a JSON file that holds an object.

    Raises
    ------
    ValueError
        If it is not there or holds something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is not there.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}.")
    return content


def model_class(folder: Path, config: dict) -> type:
    """
    The class of the package that a saved model is of.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    names = config.get("architectures") or []
    if len(names) != 1 or names[0] not in MODEL_CLASSES:
        raise ValueError(
            f"{folder / 'config.json'} names {names} as `architectures`, but what can be loaded elsewhere is one of "
            f"{', '.join(MODEL_CLASSES)}. A class of your own does not travel with the model: save it as one of these."
        )
    return MODEL_CLASSES[names[0]]
