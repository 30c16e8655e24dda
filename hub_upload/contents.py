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
# Of the class that a saved model names, the Auto class that loads it.
AUTO_CLASS_OF = {cls.__name__: name for name, cls in AUTO_CLASSES.items() if name != "AutoConfig"}

CODE_FIELD = "modeling_sleep_version"  # of config.json
CARD = "README.md"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
TOKENIZER = re.compile(
    r"(tokenizer|added_tokens|special_tokens_map|tokenizer_config|vocab)\.json|(merges|vocab)\.txt"
    r"|(sentencepiece\.bpe|spiece|tokenizer)\.model|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja"
)
DOCUMENTS = re.compile(r"results\.json|(LICENSE|NOTICE)(\.\w+)?|[\w.-]+\.png")
# With a tokenizer's files, what a push deletes where the folder no longer has it: all that loading reads, so that
# strangers load what was verified, and pickles, which run code. Documents stay, and what lies in other folders.
STALE = re.compile(
    r"[^/]+\.(py|safetensors|safetensors\.index\.json|bin|pt|pth|ckpt|pkl|pickle|h5|msgpack)|generation_config\.json"
)


@functools.cache
def code_files() -> dict[str, Path]:
    """The package's files that a saved model carries, as transformers' own rules find them, by name."""
    roots = {Path(modeling_sleep.__file__).with_name(f"{target.partition('.')[0]}.py") for target in AUTO_MAP.values()}
    files = {path.name: path for root in roots for path in (root, *map(Path, get_relative_import_files(root)))}
    # In the package this one is a shim; a save writes the file that it re-exports.
    return {**files, "configuration_sleep.py": Path(configuration_sleep.__file__)}


def belongs(name: str) -> bool:
    """Whether a file of this name (a path, where it lies in a folder) has a place in a repository."""
    return name in {CARD, "config.json", "generation_config.json", ".gitattributes", *code_files()} or any(
        kind.fullmatch(name) for kind in (WEIGHTS, TOKENIZER, DOCUMENTS)
    )


def list_files(folder: Path) -> dict[str, Path]:
    """All files of a folder by their path in it, sorted; links, too, but not the notes of `hf download`."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    files = dict(sorted((path.relative_to(folder).as_posix(), path) for path in paths))
    return {name: path for name, path in files.items() if not name.startswith(".cache/huggingface/")}


def read_json(path: Path) -> dict:
    """The object in a JSON file, or a `ValueError` that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, but holds a {type(content).__name__}.")
    return content
