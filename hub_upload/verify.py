"""Whether a folder can go out: its files are as they should be, and it is the same model without this package.

The code runs only after it was found to be the installed package's, byte by byte: a folder from elsewhere is no
reason to run what is in it.
"""

import re
import tempfile
from collections.abc import Iterator
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
save_file(outputs_of_folder(sys.argv[1], trust_remote_code=True), sys.argv[2])
"""


def verify(folder: Path) -> bool:
    """
    Print a line per check of a folder that `export` wrote or `hf download` fetched, and tell whether all is well.

    A `ValueError` says that there is no model that sleeps in it, or that its card cannot be read.
    """
    check_source(folder)
    read_metadata(folder / CARD)
    if not all_well(check_files(folder)):
        print("not run loading it: first mend what failed, as its code runs then")
        return False
    return all_well(check_outputs(folder))


def all_well(checks: Iterator[tuple[str, str]]) -> bool:
    """Whether no check, of those that it prints, has a complaint."""
    well = True
    for what, complaint in checks:
        print(f"FAILED  {what}: {complaint}" if complaint else f"ok      {what}")
        well = well and not complaint
    return well


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

    stated, ours = config.get(CODE_FIELD), modeling_sleep.__version__
    code = [(name, path) for name, path in code_files().items() if name in files]
    changed = [name for name, path in code if files[name].read_bytes() != path.read_bytes()]
    changed += ["config.json"] if stated != ours or config.get("auto_map") != AUTO_MAP else []
    complaint = f"{', '.join(changed)}: not as in the installed package; the folder names version {stated}: export it "
    complaint += "again, or install that"
    yield f"code, and what config.json says of it, as in modeling_sleep {ours}", complaint if changed else ""

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


def check_outputs(folder: Path) -> Iterator[tuple[str, str]]:
    """The folder by itself, in a process without the package, against the package in this one."""
    what = "loads with the package"
    try:
        expected = clean_room.outputs_of_folder(folder)
        what = f"loads without the package, as {read_json(folder / 'config.json')['architectures'][0]}"
        with tempfile.TemporaryDirectory() as out:
            path = Path(out) / "outputs.safetensors"
            print("...     the same in a process that cannot import the package", flush=True)
            clean_room.run(PROGRAM, folder.resolve(), path)
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
