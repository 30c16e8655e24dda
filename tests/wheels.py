"""The wheel of this repository."""

import shutil
import subprocess
import sys
from pathlib import Path


REPOSITORY = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "demo", "outputs", "runs", "*.egg-info")


def build_wheel(folder: Path) -> Path:
    """From a copy in `folder`, for setuptools leaves `build/` and an egg-info beside the sources."""
    shutil.copytree(REPOSITORY, folder / "source", ignore=NOT_SOURCE)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--quiet", "--wheel-dir", folder, folder / "source"], check=True)
    (path,) = folder.glob("*.whl")
    return path
