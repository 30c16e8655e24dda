"""Read a text once, ask it often: memories of a model that sleeps, as files.

    python -m modeling_sleep.memory read MODEL book.txt book.memory
    python -m modeling_sleep.memory ask MODEL book.memory "Who is Emma's sister?"
    python -m modeling_sleep.memory info book.memory
    python -m modeling_sleep.memory fork book.memory mine.memory
    python -m modeling_sleep.memory picture MODEL book.txt book.png --question "Who is Emma's sister?"

MODEL is a folder, or a name on the Hub; with `--taught FOLDER`, of a pretrained model whose taught memory is there.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import TextStreamer
from transformers.utils import logging

from ..memory_file_sleep import read_file, write_file
from ..memory_sleep import SleepMemory
from .begin import MEMORY, load_model
from .picture import draw, trace
from .turns import turn_ids


OK, FAILED, REFUSED, STOPPED = 0, 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 all is well; 1 it cannot be done, and why is said; 2 the command is not one; 130 stopped from the "
    "keyboard (`read` saves what it has read, and goes on from there when it is called again)."
)
CHUNK = 8192  # characters of a text that are tokenised at once, and lines are not cut


def load(options: argparse.Namespace) -> tuple:
    """Model and tokenizer, in silence."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load_model(options.model, options.taught, options.device)
    logging.enable_progress_bar()
    return loaded


def chunks(path: Path) -> Iterator[str]:
    """A text in pieces of whole lines, of which one at a time is in memory."""
    piece, length = [], 0
    with sys.stdin if str(path) == "-" else open(path, encoding="utf-8") as file:
        for line in file:
            piece.append(line)
            length += len(line)
            if length >= CHUNK:
                yield "".join(piece)
                piece, length = [], 0
    if piece:
        yield "".join(piece)


def expected_tokens(path: Path, tokenizer) -> int | None:
    """About how many tokens a file has, by those of its first piece; None of what is no file."""
    if not path.is_file():
        return None
    first = next(chunks(path), "")
    size = len(first.encode())
    return round(len(tokenizer(first, verbose=False)["input_ids"]) * path.stat().st_size / size) if size else None


def run_read(options) -> int:
    begun, skip, notes = None, 0, {"source": options.text.name}
    if options.memory.exists():
        info = SleepMemory.info(options.memory)
        if info["interrupted"] and info["notes"].get("source") == options.text.name and not options.append:
            skip = info["notes"]["tokens_of_source"]
        elif not options.append:
            raise ValueError(
                f"{options.memory} is there already, and has read its text to the end. To read on into it, say "
                "--append; otherwise take another name."
            )
        begun = True
    if str(options.text) != "-" and not options.text.is_file():
        raise FileNotFoundError(f"There is no text {options.text}.")
    model, tokenizer = load(options)
    memory = SleepMemory.load(options.memory, model) if begun else SleepMemory(config=model.config)
    before = memory.tokens - skip
    memory = model.read(
        chunks(options.text),
        tokenizer,
        past_key_values=memory,
        skip=skip,
        total=expected_tokens(options.text, tokenizer),
        sleep_passes=options.passes,
        pinned_tokens=options.pin if not memory.rows else None,
        progress=not options.quiet,
    )
    notes["tokens_of_source"] = memory.tokens - before
    if options.nap and not memory.interrupted:
        model.sleep(memory, options.passes)
    memory.save(options.memory, model, notes=notes)
    print(f"{options.memory}: {memory.tokens} tokens, {memory.sleeps} sleeps, {options.memory.stat().st_size} bytes")
    return STOPPED if memory.interrupted else OK


def run_ask(options) -> int:
    model, tokenizer = load(options)
    memory = SleepMemory.load(options.memory, model, force=options.force)
    begins = memory.rows == 0 or "turns" not in memory.notes
    if options.raw:
        ids = tokenizer(options.question, add_special_tokens=False, return_tensors="pt")["input_ids"]
    else:
        ids = turn_ids(tokenizer, options.question, memory.notes.get("last_token"), begins)
    output = model.generate(
        ids.to(model.device),
        attention_mask=torch.ones_like(ids).to(model.device),
        past_key_values=memory,
        sleep_passes=options.passes,
        max_new_tokens=options.max_new_tokens,
        do_sample=options.sample,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        return_dict_in_generate=True,
    )
    if options.keep is not None:
        turns = memory.notes.get("turns", 0) + 1
        notes = {"turns": turns, "last_token": int(output.sequences[0, -1])}
        output.past_key_values.save(options.keep, model, notes=notes)
    return OK


def run_info(options) -> int:
    info = SleepMemory.info(options.memory)
    if options.json:
        print(json.dumps(info, indent=2))
        return OK
    config = info["model"]["config"]
    state = info["state"]
    lines = {
        "tokens": info["tokens"],
        "sleeps": info["sleeps"],
        "in the window": f"{state['stored']} of {config['window_size']} tokens",
        "N": info["sleep_passes"],
        "rows": info["rows"],
        "bytes": options.memory.stat().st_size,
        "written": info["time"] + (", before the end of its text" if info["interrupted"] else ""),
        "model": f"{config['num_hidden_layers']} layers of {config['hidden_size']}, {info['model']['dtype']}, "
        f"weights {info['model']['weights'][:12]}, code {info['model']['code_version']}",
        **{f"note {name}": value for name, value in info["notes"].items()},
    }
    for name, value in lines.items():
        print(f"{name:15} {value}")
    return OK


def run_fork(options) -> int:
    tensors, record = read_file(options.memory)
    for path in options.copies:
        if path.exists():
            raise ValueError(f"{path} is there already. Take another name.")
    for path in options.copies:
        write_file(
            path, tensors, {name: x for name, x in record.items() if name not in ("format", "same", "checksum")}
        )
        print(path)
    return OK


def run_picture(options) -> int:
    model, tokenizer = load(options)
    ids = torch.cat([torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for text in chunks(options.text)])
    questions = [
        tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
        for question in options.question
    ]
    ids = ids[: options.windows * model.config.window_size].unsqueeze(0)
    result = trace(model, ids.to(model.device), questions, options.passes)
    draw(result, options.output, title=options.text.name, questions=options.question)
    print(f"{options.output}: {result.change.shape[1]} windows, {len(result.heads)} heads")
    return OK


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sleep.memory",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run, help: str, has_model: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, epilog=EXIT_CODES)
        sub.set_defaults(run=run)
        if has_model:
            sub.add_argument("model", help="folder or name on the Hub")
            sub.add_argument("--taught", metavar="FOLDER", help=MEMORY)
            sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
            sub.add_argument("--passes", type=int, metavar="N", help="passes over a window; default: the model's")
        return sub

    read = command("read", run_read, "Read a text into a memory; interrupted, it goes on when called again.")
    read.add_argument("text", type=Path, help="text file, or - for what comes in")
    read.add_argument("memory", type=Path, help="file to write")
    read.add_argument("--append", action="store_true", help="read on into a memory that is there")
    read.add_argument("--nap", action="store_true", help="sleep over the last window, too, so that the file is small")
    read.add_argument("--pin", type=int, metavar="P", help="the text's first tokens that keep their keys for good")
    read.add_argument("--quiet", action="store_true", help="no bar")

    ask = command("ask", run_ask, "Ask a memory, which stays as it is.")
    ask.add_argument("memory", type=Path)
    ask.add_argument("question")
    ask.add_argument("--max-new-tokens", type=int, default=128, metavar="T")
    ask.add_argument("--sample", action="store_true", help="instead of the likeliest token each time")
    ask.add_argument("--raw", action="store_true", help="go on with the text instead of asking as a user")
    ask.add_argument("--keep", type=Path, metavar="FILE", help="write a memory that knows question and answer, too")
    ask.add_argument("--force", action="store_true", help="although other weights have written it")

    info = command("info", run_info, "Say what a memory is; no model is needed.", has_model=False)
    info.add_argument("memory", type=Path)
    info.add_argument("--json", action="store_true", help="all of its record")

    fork = command("fork", run_fork, "Copy a memory that is whole; no model is needed.", has_model=False)
    fork.add_argument("memory", type=Path)
    fork.add_argument("copies", type=Path, nargs="+")

    picture = command("picture", run_picture, "Draw what a text changes in a memory, and what a question reads.")
    picture.add_argument("text", type=Path)
    picture.add_argument("output", type=Path, help="PNG file to write")
    picture.add_argument(
        "--question",
        action="append",
        default=[],
        help="what to look for, best with the beginning of its answer; may be given several times",
    )
    picture.add_argument("--windows", type=int, default=100, help="of the text, at most")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    options = parse_arguments(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, ImportError, FloatingPointError, HfHubHTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
