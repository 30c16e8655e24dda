"""Teach a pretrained model to remember, from the command line.

    python -m modeling_sleep.teach HuggingFaceTB/SmolLM2-135M-Instruct --output taught --window-size 64

takes a model that sleeps, or any that `from_causal_lm` can give a recall memory, and writes one that answers from what
it read before a sleep: weights, code, tokenizer, results and a card. Called again after an interruption, it goes on.

    torchrun --nproc-per-node 2 -m modeling_sleep.teach ...

shares the work among processes, on GPUs or cores.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import cached_assets_path
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, set_seed

from ..adopt_sleep import ATTENTION_SINK, adopted_config
from ..base_terms import copy_terms, metadata_of_base
from ..configuration_sleep import SleepConfig
from ..heads_sleep import SleepForCausalLM
from ..help_formatter import HelpFormatter
from ..hub_upload.card import write_card
from .card import write_memory_card
from .chat import Chat
from .estimate import Estimate, estimate, on_meta
from .processes import number_of_processes, rank
from .stages import ALONE, THROUGH, Stage
from .teaching import teach


DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sleep.teach",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", help="folder or name on the Hub: a model that sleeps, or a pretrained one")
    parser.add_argument("--base-name", help="on the Hub, of a model in a folder: for the card")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=None, help="of learning; default: all steps")
    parser.add_argument("--seed", type=int, default=0, help="of a new memory, of lessons and of steps")
    parser.add_argument("--units", type=int, default=1000, help="stories to learn from, of about seven facts each")
    parser.add_argument(
        "--alone-units",
        type=int,
        default=0,
        help="more of them for the memory by itself, read only as far as keys are made of it",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(ALONE.steps, THROUGH.steps),
        metavar=("ALONE", "THROUGH"),
        help="of the memory by itself, and of the memory through the layers behind it",
    )
    parser.add_argument(
        "--windows",
        type=int,
        nargs=2,
        default=THROUGH.windows,
        metavar=("LEAST", "MOST"),
        help="of a story, where the memory is taught through the layers behind it",
    )
    parser.add_argument("--sparse", type=float, default=THROUGH.sparse, help="how much a written token costs there")
    parser.add_argument(
        "--key-rank", type=int, default=None, metavar="R", help="of taught keys; default: a quarter of their size"
    )
    parser.add_argument(
        "--key-layer",
        type=int,
        default=None,
        metavar="I",
        help="whose input keys are made of; default: at a quarter of the depth",
    )
    parser.add_argument(
        "--poolings",
        type=int,
        default=None,
        metavar="P",
        help="of a new memory: learned means of what came before a token, and as many of what comes after; default: 2",
    )
    parser.add_argument("--questions", type=int, default=60, help="of each kind, to measure with")
    parser.add_argument("--window-size", type=int, default=256, metavar="L", help="of a pretrained model")
    parser.add_argument(
        "--window-overlap",
        type=int,
        default=None,
        metavar="W",
        help="keys that stay; default: the model's, or half of a window",
    )
    parser.add_argument(
        "--pinned-tokens", type=int, default=None, metavar="P", help="that keep their keys; default: the model's, or 1"
    )
    parser.add_argument(
        "--passes", type=int, default=None, metavar="N", help="how often a sleep writes; default: the model's"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="in which the frozen layers compute")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to teach on")
    parser.add_argument("--memory-only", action="store_true", help="write the memory without the model")
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and do nothing")
    parser.add_argument("--cache", type=Path, default=None, help="folder of what frozen layers know, shared by runs")
    parser.add_argument("--cache-gigabytes", type=float, default=6.0, help="that it may hold")
    return parser.parse_args(arguments)


def config_of(options: argparse.Namespace) -> tuple[PreTrainedConfig, dict[str, int]]:
    """The model's configuration as it is, and what is asked to be otherwise."""
    config = AutoConfig.from_pretrained(options.model)
    kept = {"window_overlap": options.window_overlap, "pinned_tokens": options.pinned_tokens}
    kept = {name: number for name, number in kept.items() if number is not None}
    sleeps = config.model_type == SleepConfig.model_type
    if options.window_overlap and sleeps:
        kept.setdefault("pinned_tokens", max(config.pinned_tokens, ATTENTION_SINK))
    for option, given, fields in (
        ("--key-layer", options.key_layer, ("recall_key_layer",)),
        ("--poolings", options.poolings, ("recall_poolings", "recall_hindsight")),
    ):
        if given is not None and sleeps:
            raise ValueError(
                f"`{option}` is of a new memory, and {options.model} has one that says which it is "
                f"({getattr(config, fields[0])}): leave it out, or teach the pretrained model."
            )
        if given is not None:
            kept |= dict.fromkeys(fields, given)
    return config, kept


def load_model(options: argparse.Namespace) -> SleepForCausalLM:
    """The model to be taught, given sleep if it has none yet."""
    config, kept = config_of(options)
    if config.model_type == SleepConfig.model_type:
        return SleepForCausalLM.from_pretrained(options.model, dtype=torch.float32, **kept)
    return SleepForCausalLM.from_causal_lm(
        options.model, window_size=options.window_size, memory="recall", dtype=torch.float32, **kept
    )


def estimated(options: argparse.Namespace, alone: Stage, through: Stage) -> Estimate:
    """What the teaching that these options ask for will take."""
    config, kept = config_of(options)
    if config.model_type == SleepConfig.model_type:
        config = AutoConfig.from_pretrained(options.model, **kept)
    else:
        config = adopted_config(config, options.window_size, options.passes or 1, memory="recall", **kept)
    chat = Chat(AutoTokenizer.from_pretrained(options.model))
    return estimate(on_meta(config), chat, alone, through, options.units, options.key_rank, options.alone_units)


def device_of(options: argparse.Namespace) -> str | torch.device:
    """Where this process teaches. Several have a device each, and meet here."""
    state = PartialState(cpu=options.device == "cpu")
    return state.device if state.num_processes > 1 else options.device


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    options = parse_arguments(arguments)
    began = time.process_time()
    alone = dataclasses.replace(ALONE, steps=options.steps[0])
    through = dataclasses.replace(
        THROUGH, steps=options.steps[1], windows=tuple(options.windows), sparse=options.sparse
    )
    try:
        if options.estimate:
            print(estimated(options, alone, through))
            return 0
        known = metadata_of_base(options.model)
        set_seed(options.seed)  # of a new memory's poolings
        model = load_model(options).to(device_of(options))
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        if options.base_name:
            model.config.adopted_from = known.base_model = options.base_name
        if options.passes is not None:
            model.config.sleep_passes = options.passes
        will_take = estimate(
            model, Chat(tokenizer), alone, through, options.units, options.key_rank, options.alone_units
        )
        if will_take.cache > options.cache_gigabytes * 1e9 and rank() == 0:
            print(
                f"note: lessons take about {will_take.cache / 1e9:.1f} GB, and the cache may hold "
                f"{options.cache_gigabytes:g}: what does not stay is read again by each run. `--cache-gigabytes` "
                "holds more.",
                file=sys.stderr,
            )
        results = teach(
            model,
            tokenizer,
            options.output,
            cache=options.cache or cached_assets_path("modeling_sleep", namespace="teach", subfolder="states"),
            minutes=options.minutes,
            seed=options.seed,
            units=options.units,
            alone_units=options.alone_units,
            questions=options.questions,
            alone=alone,
            through=through,
            autocast=DTYPES[options.dtype],
            cache_limit=options.cache_gigabytes * 1e9,
            key_rank=options.key_rank,
        )
    except (OSError, ValueError, FloatingPointError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    processes, is_first = number_of_processes(), rank() == 0
    PartialState().destroy_process_group()
    if not is_first:
        return 0
    model.save_pretrained(options.output, memory_only=options.memory_only)
    copy_terms(options.model, options.output)
    if options.memory_only:
        write_memory_card(options.output, results, known)
        notes = []
    else:
        tokenizer.save_pretrained(options.output)
        notes = write_card(options.output, known)
    minutes = (time.process_time() - began) / 60
    of_the_first = f" of the first of {processes} processes" if processes > 1 else ""
    print(
        f"{options.output}: taught in {minutes:.1f} core minutes{of_the_first}; see README.md there.",
        *(f"note: {note}" for note in notes),
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
