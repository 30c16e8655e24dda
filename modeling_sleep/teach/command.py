"""What the commands share that measure a memory: the model that they load, and how they refuse.

@refuses
def main(arguments=None) -> int:
    parser = command("alone", __doc__)     # with MODEL and --memory
    options = parser.parse_args(arguments)
    model, chat = load(options)
    ...
"""

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedModel

from ..heads_sleep import SleepForCausalLM
from ..help_formatter import HelpFormatter
from .chat import Chat


# Of files and of the Hub, of what is asked for, of a configuration.
OF_THE_USER = (OSError, ValueError, StrictDataclassError)


def refuses(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """A command that says in one line what was wrong, and returns 1."""

    @functools.wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except OF_THE_USER as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run


def command(name: str, about: str) -> argparse.ArgumentParser:
    """The parser of `modeling_sleep.teach.NAME`, with the model and its memory; `about` begins with what it does."""
    parser = argparse.ArgumentParser(
        prog=f"python -m modeling_sleep.teach.{name}",
        description=about.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", help="folder or name on the Hub: a model whose recall memory was taught")
    parser.add_argument("--memory", help="folder or name on the Hub of a taught memory, if MODEL is a pretrained one")
    return parser


def load(options: argparse.Namespace, cls: type = SleepForCausalLM) -> tuple[PreTrainedModel, Chat]:
    """The model in float32, by `cls` or with the memory that is given, and the chat of its tokenizer."""
    if options.memory is None:
        model = cls.from_pretrained(options.model, dtype=torch.float32)
    else:
        model = SleepForCausalLM.from_causal_lm(options.model, memory=options.memory, dtype=torch.float32)
    return model.eval(), Chat(AutoTokenizer.from_pretrained(options.model))
