"""Export the shipped checkpoints again, so that the code in their folders is the package's (a test compares them).

python examples/refresh_checkpoints.py
"""

import shutil
import tempfile
from pathlib import Path

from modeling_sleep.hub_upload.export import export


CHECKPOINTS = Path(__file__).parent / "checkpoints"


def main():
    for config in sorted(CHECKPOINTS.glob("*/config.json")):
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "exported"
            export(config.parent, exported)
            shutil.copytree(exported, config.parent, dirs_exist_ok=True)
        print(f"exported {config.parent.name} again")


if __name__ == "__main__":
    main()
