"""Whether a folder can go out: its files are as they should be, and it is the same model without this package.

Notable:
- the code runs only after it was found to be the installed package's, byte by byte: a folder from elsewhere is no
  reason to run what is in it
- the original's outputs come from the installed package in this process, the folder's from the clean room
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

import modeling_sleep

from . import clean_room
from .card import read_metadata
from .contents import AUTO_MAP, CARD, CODE_FIELD, DOCUMENTS, WEIGHTS, belongs, code_files, list_files, read_json
from .export import check_source


# As in the tests of the package; in half precision, what one rounding makes of logits.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# What should not go out. The Hub looks for secrets, too, but when everybody can see them.
PRIVATE = {
    "a token or a key, which must be revoked now": re.compile(
        r"\b(hf_\w{20,}|(AKIA|ASIA)[0-9A-Z]{16}\b|gh[pousr]_\w{30,}|github_pat_\w{30,}|sk-[\w-]{32,}"
        r"|xox[abeoprs]-[\w-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    ),
    "a path of somebody's machine": re.compile(r"(?<![\w.-])/(home|Users)/\w|(?<!\w)[A-Za-z]:\\{1,2}Users\\"),
}
PROGRAM = """
from safetensors.torch import save_file
save_file(room["outputs_of_folder"](sys.argv[1], trust_remote_code=True), sys.argv[2])
"""


def verify(folder: Path, say: Callable[[str], None] = print) -> bool:
    """
    Check a folder, one line per check.

    Parameters
    ----------
    folder : Path
        What `export` wrote or `hf download` fetched.
    say : callable
        Takes a line.

    Returns
    -------
    bool
        Whether all is well.

    Raises
    ------
    ValueError
        If there is no model that sleeps in it, or its card cannot be read.
    """
    folder = Path(folder)
    check_source(folder)

    def well(checks: Iterator[tuple[str, str]]) -> bool:
        complaints = []
        for what, complaint in checks:
            say(f"FAILED  {what}: {complaint}" if complaint else f"ok      {what}")
            complaints += [complaint] if complaint else []
        return not complaints

    if not well(check_files(folder)):
        say("not run loading it: first mend what failed, as its code runs then")
        return False
    return well(check_outputs(folder, say))


def check_files(folder: Path) -> Iterator[tuple[str, str]]:
    """What can be said of a folder without running anything: each check, and what to do if it fails."""
    config, files = read_json(folder / "config.json"), list_files(folder)

    weights = {"model.safetensors"}
    if not weights & files.keys() and (index := files.get("model.safetensors.index.json")):
        weights = {index.name, *read_json(index).get("weight_map", {}).values()}
    needed = {CARD, *code_files(), *weights}
    needed |= {"generation_config.json"} if config["architectures"] == ["SleepForCausalLM"] else set()
    missing = sorted(needed - files.keys())
    yield "all files that are needed", f"{', '.join(missing)} missing: export it again" if missing else ""

    strangers = [
        name
        for name, path in files.items()
        if path.is_symlink() or not belongs(name) or WEIGHTS.fullmatch(name) and name not in weights
    ]
    yield "nothing else, and no links", f"remove {', '.join(strangers[:5])}" if strangers else ""

    read_metadata(folder / CARD)
    yield "the card's metadata can be read", ""

    stated, ours = config.get(CODE_FIELD), modeling_sleep.__version__
    changed = [name for name, path in code_files().items() if name in files and not same_bytes(files[name], path)]
    complaint = f"{', '.join(changed) or 'config.json'}: not those of modeling_sleep {ours}, which is installed"
    complaint += f", but of {stated}: export it again, or install that"
    yield f"code as in modeling_sleep {ours}", complaint if changed or stated != ours else ""

    complaint = "" if config.get("auto_map") == AUTO_MAP else "that in config.json is another one: export it again"
    yield "auto_map names all classes, and nothing else", complaint

    found = [
        f"{name} line {number} holds {what}"
        for name, path in files.items()
        if (name.endswith(".json") and "vocab" not in name or name == CARD or DOCUMENTS.fullmatch(name))
        and name != "tokenizer.json"
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for what, pattern in PRIVATE.items()
        if pattern.search(line)
    ]
    yield "nothing private", f"{'; '.join(found[:5])}. Take it out, also of where it came from" if found else ""


def same_bytes(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def check_outputs(folder: Path, say: Callable[[str], None] = print) -> Iterator[tuple[str, str]]:
    """The folder by itself, in a process without the package, against the package in this one."""
    what = "loads with the package"
    try:
        expected = clean_room.outputs_of_folder(folder, lambda line: say(f"...     with the package: {line}"))
        what = f"loads without the package, as {read_json(folder / 'config.json')['architectures'][0]}"
        with tempfile.TemporaryDirectory() as out:
            path = Path(out) / "outputs.safetensors"
            say("...     without the package: starting a process that cannot import it")
            clean_room.run(
                PROGRAM, folder.resolve(), path, say=lambda line: say(f"...     without the package: {line}")
            )
            found = load_file(path)
    except Exception as error:  # whatever: it is what anyone who loads the folder would meet
        yield what, f"{type(error).__name__}: {error}"
        return
    yield what, ""
    for name, tensor in expected.items():
        yield f"{name}, shape {tuple(tensor.shape)}, are those of the package", difference(found.get(name), tensor)


def difference(found: torch.Tensor | None, expected: torch.Tensor) -> str:
    """Empty if they agree."""
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return f"got {None if found is None else (found.dtype, tuple(found.shape))}: this is a bug, please report it"
    if not expected.is_floating_point():
        return "" if found.equal(expected) else f"{found.tolist()} instead of {expected.tolist()}"
    # Relative to the largest, as rounding is; NaN where both have it would hide a broken model.
    gap = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1)
    if gap <= TOLERANCES[expected.dtype]:
        return ""
    return f"they differ by {gap:.1e}: this is a bug, please report it" if gap == gap else "they are not numbers"
