"""Save the shipped checkpoints again, so that the code in their folders is that of the package (a test compares them).

python examples/refresh_checkpoints.py
"""

from pathlib import Path

from modeling_sleep import SleepForCausalLM


CHECKPOINTS = Path(__file__).parent / "checkpoints"


def main():
    for config in sorted(CHECKPOINTS.glob("*/config.json")):
        SleepForCausalLM.from_pretrained(config.parent).save_pretrained(config.parent)
        print(f"saved {config.parent.name} again")


if __name__ == "__main__":
    main()
