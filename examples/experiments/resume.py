"""Find the checkpoint that an interrupted run goes on from: the last that was saved to its end."""

import json
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


def step_of(checkpoint: str | Path) -> int:
    """The step that a checkpoint was saved at, by its name."""
    return int(str(checkpoint).rpartition("-")[2])


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved to its end: `Trainer` writes its state last, and no file of tensors is cut."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, framework="pt"):  # compares the file's length with what its header says
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt*"))  # `torch.save` writes the directory last


def last_checkpoint(output: Path) -> str | None:
    """The checkpoint that a run in this folder goes on from, if there is one."""
    whole = [path for path in output.glob("checkpoint-*") if is_whole(path)]
    return str(max(whole, key=step_of)) if whole else None


def remove_torn_checkpoints(output: Path):
    """Remove what was cut off while it was saved. `Trainer` might take it for the newest, and remove others for it."""
    for path in output.glob("checkpoint-*"):
        if not is_whole(path):
            shutil.rmtree(path)
