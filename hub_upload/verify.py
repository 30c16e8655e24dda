"""Whether a folder can go out: its files are as they should be, and it is the same model without this package.

Notable:
- the code runs only after it was found to be the installed package's, byte by byte: a folder from elsewhere is no
  reason to run what is in it
- the original's outputs come from the installed package in this process, the folder's from a process that has never
  heard of it, with an empty cache and no network
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from . import clean_room
from .check_files import Check, files_checks
from .contents import model_class, read_json
from .export import check_source


# As in the tests of the package; in half precision, what one rounding makes of logits.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def verify(folder: Path, say: Callable[[str], None] = print) -> bool:
    """
    Check a folder, one line per check.

    Parameters
    ----------
    folder : Path
        What `export` wrote or `pull` fetched.
    say : callable
        Takes a line.

    Returns
    -------
    bool
        Whether all is well.

    Raises
    ------
    ValueError
        If there is no model that sleeps in it.
    """
    folder = Path(folder)
    check_source(folder)
    well = True
    for check in files_checks(folder):
        say(str(check))
        well = well and not check.complaint
    if not well:
        say("not run loading it: first mend what failed, as its code runs then")
        return False
    for check in loading_checks(folder):
        say(str(check))
        well = well and not check.complaint
    return well


def loading_checks(folder: Path) -> list[Check]:
    """The folder by itself, in a process without the package, against the package in this one."""
    config = read_json(folder / "config.json")
    kind = model_class(folder, config).__name__
    try:
        expected_tensors, expected_texts = clean_room.outputs(folder)
    except Exception as error:  # whatever: it is what anyone who loads the folder would meet
        return [Check("loads with the package", f"{type(error).__name__}: {error}")]
    with tempfile.TemporaryDirectory() as out:
        process = run_clean_room(folder, Path(out))
        if process.returncode != 0:
            *_, last = process.stderr.strip().splitlines() or ["it said nothing"]
            if process.returncode < 0:  # by a signal: the system's, mostly
                last = (
                    f"the process was killed (signal {-process.returncode}). If memory ran out, use a larger machine"
                )
            else:
                last += ": this is a bug, please report it with the folder"
            return [Check("loads without the package", last)]
        tensors = load_file(Path(out) / "tensors.safetensors")
        texts = json.loads((Path(out) / "texts.json").read_text(encoding="utf-8"))
    checks = [Check(f"loads without the package: AutoConfig, AutoModel, {kind}")]
    for name, expected in expected_tensors.items():
        what = f"{name}, shape {tuple(expected.shape)}, are those of the package"
        checks.append(Check(what, difference(tensors.get(name), expected)))
    for name, expected in expected_texts.items():
        same = texts.get(name) == expected
        complaint = (
            "" if same else f"gave {texts.get(name)!r} instead of {expected!r}: this is a bug, please report it"
        )
        checks.append(Check(f"the {name} gives what it gives with the package", complaint))
    return checks


def run_clean_room(folder: Path, out: Path) -> subprocess.CompletedProcess:
    """In a process without the package, the caches and the tokens of this one."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON"))
    }
    with tempfile.TemporaryDirectory() as home:
        environment |= {"HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
        site = Path(transformers.__file__).parents[1]
        arguments = [Path(clean_room.__file__).resolve(), folder.resolve(), out, site, torch.get_num_threads()]
        return subprocess.run(
            [sys.executable, "-I", *map(str, arguments)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
        )


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
