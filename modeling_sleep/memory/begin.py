"""What every program begins with in which one talks to a model that sleeps: options, the model, its tokenizer."""

import argparse

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..heads_sleep import SleepForCausalLM
from ..system_turn_sleep import system_turn
from .turns import turn_ids


MEMORY = "folder or name on the Hub: a taught memory, for MODEL as it was pretrained"


def load_model(
    model: str, memory: str | None = None, device: str = "cpu"
) -> tuple[SleepForCausalLM, PreTrainedTokenizerBase]:
    """
    A model and its tokenizer.

    Parameters
    ----------
    model : str
        Folder or name on the Hub: of a model that sleeps, or of a pretrained one, if there is a memory for it.
    memory : str, optional
        Folder or name on the Hub of a taught memory (`save_pretrained(folder, memory_only=True)`).
    device : str, optional
    """
    if memory:
        loaded = SleepForCausalLM.from_causal_lm(model, memory=memory, dtype="auto")
    else:
        loaded = SleepForCausalLM.from_pretrained(model, dtype="auto")
    return loaded.to(device).eval(), AutoTokenizer.from_pretrained(model)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a conversation, and `--memory` and `--device` of its model. The program itself asks for `model`."""
    parser.add_argument("--memory", help=MEMORY)
    parser.add_argument("--system", help="what the system says first")
    parser.add_argument("--pin", action="store_true", help="what the system says keeps its keys for good")
    parser.add_argument("--passes", type=int, metavar="N", help="passes over a window; default: the model's")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="T")
    parser.add_argument("--sample", action="store_true", help="instead of the likeliest token each time")
    parser.add_argument("--nap-before-turns", action="store_true", help="so that what is said begins a window")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def begin(options: argparse.Namespace) -> tuple[SleepForCausalLM, PreTrainedTokenizerBase, dict]:
    """
    The model, the tokenizer, and the options of a [`Conversation`], as `add_options` has read them.

    Raises
    ------
    ValueError, OSError
        If there is no such model or memory, they do not belong together, or the system says nothing to pin.
    """
    model, tokenizer = load_model(options.model, options.memory, options.device)
    if options.pin:
        system_turn(tokenizer, turn_ids(tokenizer, "?", system=options.system))  # is there one?
    return (
        model,
        tokenizer,
        dict(
            system=options.system,
            sleep_passes=options.passes,
            nap_before_turns=options.nap_before_turns,
            pinned_tokens=options.pin or None,
            max_new_tokens=options.max_new_tokens,
            do_sample=options.sample,
        ),
    )
