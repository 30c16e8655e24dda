"""What can be said of a folder without running anything: it holds what it must, nothing else, and no secrets."""

import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_imports

import modeling_sleep

from .card import read_metadata
from .contents import (
    AUTO_MAP,
    CARD,
    CODE_FIELD,
    PICKLES,
    WEIGHTS,
    belongs,
    code_files,
    list_files,
    list_links,
    read_json,
    weight_files,
)


SECRETS = {
    "a token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "an AWS key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a token of GitHub": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "a key of OpenAI or Anthropic": re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"),
    "a token of Slack": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# Not behind a word, where it is part of an address: https://example.org/home/
LOCAL_PATHS = re.compile(
    r"(?<![\w.-])(/(content|data|fsx|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|private|root|scratch|storage|tmp|Users"
    r"|var|Volumes|work|workspace)/|~/\w)|(?<!\w)[A-Za-z]:\\{1,2}\w"
)
# Pieces of text, any of which may look like a path.
VOCABULARIES = {"merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt"}
BROUGHT_BY_TRANSFORMERS = ("huggingface_hub", "numpy", "packaging", "safetensors")
SHOWN = 5  # of a list that may be long


class Check(NamedTuple):
    """What was looked at, and what to do if it is not as it should be; empty if it is."""

    what: str
    complaint: str = ""

    def __str__(self):
        return f"FAILED  {self.what}: {self.complaint}" if self.complaint else f"ok      {self.what}"


def files_checks(folder: Path) -> list[Check]:
    """Every check of this file, in the order in which they are shown."""
    config, files = read_json(folder / "config.json"), list_files(folder)
    return [
        check_needed(config, files),
        check_not_needed(files),
        check_links(folder),
        check_card(folder / CARD),
        check_code(config, files),
        check_imports(files),
        check_auto_map(config),
        check_pickles(files),
        check_text("no secret", files, find_secret),
        check_text("no path of this machine", files, find_local_path),
    ]


def check_needed(config: dict, files: dict[str, Path]) -> Check:
    missing = {CARD, *code_files(), *weight_files(files)} - files.keys()
    if config["architectures"] == ["SleepForCausalLM"]:
        missing |= {"generation_config.json"} - files.keys()
    complaint = f"{', '.join(sorted(missing))} missing: export it again" if missing else ""
    return Check("all files that are needed", complaint)


def check_not_needed(files: dict[str, Path]) -> Check:
    read = weight_files(files)
    strangers = [name for name in files if not belongs(name) or WEIGHTS.fullmatch(name) and name not in read]
    return Check("no file that is not needed", f"remove {some(strangers)}" if strangers else "")


def check_links(folder: Path) -> Check:
    links = list_links(folder)
    complaint = f"{some(links)} would go out as what they point to: `export` or `pull` write files" if links else ""
    return Check("no links", complaint)


def check_card(card: Path) -> Check:
    try:
        read_metadata(card)
    except ValueError as error:
        return Check("the card's metadata can be read", str(error))
    return Check("the card's metadata can be read")


def some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN:,} more" * (len(names) > SHOWN)


def check_code(config: dict, files: dict[str, Path]) -> Check:
    stated, ours = config.get(CODE_FIELD), modeling_sleep.__version__
    what = f"code as in modeling_sleep {stated or ours}"
    if stated is None:
        return Check(what, f"config.json does not say of what version the code is ({CODE_FIELD}): export it again")
    if stated != ours:
        return Check(what, f"installed is {ours}: install modeling_sleep {stated} to compare, or export it again")
    changed = [name for name, ours in code_files().items() if name in files and not same_bytes(files[name], ours)]
    if changed:
        return Check(what, f"{', '.join(sorted(changed))} differ from the package's: export it again")
    return Check(what)


def check_imports(files: dict[str, Path]) -> Check:
    """
    What a stranger needs to have installed. From the Hub, unlike from a folder, transformers asks of every file that
    all it imports is there, also inside of functions.
    """
    brought = {"torch", "transformers", *BROUGHT_BY_TRANSFORMERS, *sys.stdlib_module_names}
    imports = {name: set(get_imports(path)) - brought for name, path in files.items() if name.endswith(".py")}
    found = [f"{name} imports {', '.join(sorted(more))}" for name, more in imports.items() if more]
    complaint = "; ".join(found) + ": import it in a `try`, or with importlib, and export it again" if found else ""
    return Check("code imports nothing but torch and transformers", complaint)


def same_bytes(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def check_auto_map(config: dict) -> Check:
    auto_map = config.get("auto_map", {})
    wrong = [name for name, target in AUTO_MAP.items() if auto_map.get(name) != target]
    wrong += [name for name in auto_map if name not in AUTO_MAP]
    complaint = f"auto_map in config.json is wrong for {', '.join(wrong)}: export it again" if wrong else ""
    return Check("auto_map names all classes", complaint)


def check_pickles(files: dict[str, Path]) -> Check:
    pickles = [name for name, path in files.items() if PICKLES.fullmatch(name) or is_pickle(path)]
    return Check("no pickle", f"{', '.join(pickles)} would run code when opened: export it again" if pickles else "")


def is_pickle(path: Path) -> bool:
    """By what is in it: the opcode that all pickles of protocol 2 and later begin with, or one in torch's archive."""
    if path.suffix == ".safetensors" and is_safetensors(path):  # which begins with a number, be it these bytes
        return False
    with path.open("rb") as file:
        begin = file.read(4)
    if begin[:1] == b"\x80" and begin[1:2] in b"\x02\x03\x04\x05":
        return True
    if begin != b"PK\x03\x04" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())


def is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def check_text(what: str, files: dict[str, Path], find: Callable[[str], str]) -> Check:
    complaints = []
    for name, path in files.items():
        if name in VOCABULARIES:
            continue
        lines = read_text(path).splitlines()
        complaints += [f"{name} line {i}: {found}" for i, line in enumerate(lines, 1) if (found := find(line))]
    return Check(
        what, "; ".join(complaints[:SHOWN]) + " (take it out, also of where it was exported from)" * bool(complaints)
    )


def read_text(path: Path) -> str:
    """What a file says in words: of weights, what stands beside the tensors; of a picture, too, its comments."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return json.dumps(file.metadata(), indent=1)
        except SafetensorError:  # loading it will say more
            return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return without_vocabulary(text) if path.name == "tokenizer.json" else text


def without_vocabulary(text: str) -> str:
    """A tokenizer's settings, whose lines are those of the file no longer."""
    try:
        tokenizer = json.loads(text)
        tokenizer["model"] = {k: v for k, v in tokenizer["model"].items() if k not in ("vocab", "merges")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
    return json.dumps({k: v for k, v in tokenizer.items() if k != "added_tokens"}, indent=1)


def find_secret(line: str) -> str:
    """What the line gives away, but not the secret itself."""
    return next(
        (f"{what}, which must be revoked now" for what, pattern in SECRETS.items() if pattern.search(line)), ""
    )


def find_local_path(line: str) -> str:
    found = LOCAL_PATHS.search(line)
    return line[found.start() :][:60] if found else ""
