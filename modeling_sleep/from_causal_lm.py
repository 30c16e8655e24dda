"""Give sleep to a pretrained model, from the command line.

    python -m modeling_sleep.from_causal_lm HuggingFaceTB/SmolLM2-135M-Instruct smollm2-sleep --window-size 256

reads a model from the Hub or a folder, and writes one that sleeps: weights, code, tokenizer, chat template, generation
config, and a card with the licence that the model's own names. It answers as before within a window; what lies behind
one, it remembers once it has been taught (`python -m modeling_sleep.teach`).
"""

import argparse
import sys
from pathlib import Path

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer

from .adopt_sleep import MEMORIES
from .base_terms import copy_terms, metadata_of_base
from .heads_sleep import SleepForCausalLM
from .help_formatter import HelpFormatter
from .hub_upload.card import write_card


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sleep.from_causal_lm",
        description=__doc__.split("\n\n")[0],
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", help="name on the Hub, or folder")
    parser.add_argument("output", type=Path, help="folder to write; must not hold anything yet")
    parser.add_argument("--window-size", type=int, default=512, metavar="L", help="tokens after which it sleeps")
    parser.add_argument(
        "--window-overlap", type=int, metavar="W", help="keys that stay after a sleep (default: half of a window)"
    )
    parser.add_argument("--sleep-passes", type=int, default=2, metavar="N", help="passes over a window in all")
    parser.add_argument(
        "--memory-layers",
        type=int,
        nargs="+",
        metavar="I",
        help="one number: how many to insert, evenly spread; several: their places in the new stack. "
        "Default: one recall memory at 0.8 of the depth, or as many of the others as fit in 10 %% of the parameters",
    )
    parser.add_argument("--memory", choices=MEMORIES, default=None, help="kind of memory (default: recall)")
    parser.add_argument("--loop-span", type=int, nargs=2, metavar=("START", "END"), help="layers passed N times")
    parser.add_argument("--revision", default=None, help="of the model on the Hub")
    parser.add_argument("--gguf-file", default=None, help="file of the model in GGUF format, which is dequantised")
    parser.add_argument("--dtype", default=None, help="of the weights: float32, bfloat16, ...; else as they are saved")
    return parser.parse_args(arguments)


def number_or_places(values: list[int] | None) -> int | list[int] | None:
    """What `--memory-layers` means: one number is how many, several are places."""
    return values[0] if values is not None and len(values) == 1 else values


def dequantised() -> dict:
    """Arguments of `from_pretrained` that turn a GGUF file into plain weights. Older releases always do."""
    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    options = parse_arguments(arguments)
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        print(f"error: {options.output} holds something already. Choose a new folder.", file=sys.stderr)
        return 2
    source = {name: getattr(options, name) for name in ("revision", "gguf_file") if getattr(options, name)}
    loading = {"dtype": options.dtype} if options.dtype else {}
    overlap = {} if options.window_overlap is None else {"window_overlap": options.window_overlap}
    if options.gguf_file:
        loading |= dequantised()
    try:
        known = metadata_of_base(options.model, options.revision)
        model = SleepForCausalLM.from_causal_lm(
            options.model,
            window_size=options.window_size,
            sleep_passes=options.sleep_passes,
            memory_layers=number_or_places(options.memory_layers),
            loop_span=options.loop_span,
            memory=options.memory,
            **overlap,
            **source,
            **loading,
        )
        tokenizer = AutoTokenizer.from_pretrained(options.model, **source)
    except (OSError, ValueError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    copy_terms(options.model, options.output)
    notes = write_card(options.output, known)
    added = sum(p.numel() for i in model.config.memory_layers for p in model.model.layers[i].parameters())
    print(
        f"{options.output}: {model.config.num_hidden_layers} layers, {len(model.config.memory_layers)} of them new "
        f"({', '.join(map(str, model.config.memory_layers))}), with {added / 1e6:.1f} of "
        f"{model.num_parameters() / 1e6:.1f} million parameters.",
        *(f"note: {note}" for note in notes),
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
