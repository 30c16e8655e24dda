"""A file of results, one JSON object a line: what is in it need not be measured again."""

import importlib.metadata
import json
import platform
from pathlib import Path


class Rows:
    """
    The rows of a file, to which more are added one by one.

    Parameters
    ----------
    path : Path
    key : sequence of str
        The fields that say what a row is of.
    """

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.strip()]

    def __iter__(self):
        return iter(self.rows)

    def has(self, row: dict) -> bool:
        """Whether a row of the same key is in the file."""
        wanted = self._key_of(row)
        return any(self._key_of(other) == wanted for other in self.rows)

    def add(self, row: dict) -> None:
        """Write a row at the end of the file."""
        row = row | {"versions": versions()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)

    def _key_of(self, row: dict) -> list:
        return [json.loads(json.dumps(row.get(name))) for name in self.key]


def versions() -> dict[str, str]:
    """Of what the figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in ("modeling-sleep", "torch", "transformers", "lm_eval"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
