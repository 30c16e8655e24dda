"""Talk in the terminal to a model that sleeps: what was said stays in its memory, and not in a transcript.

    python examples/chat.py MODEL                 # a folder, or a name on the Hub
    python examples/chat.py MODEL --name emma     # a session by name: it goes on where it stopped, in any process
    python examples/chat.py BASE --memory FOLDER --nap-before-turns      # a pretrained model with a taught memory

    /save NAME   keep what is remembered         /load NAME   go on with what was kept       /sessions   their names
    /nap [N]     sleep now, N passes             /forget      begin anew                     /memory     what there is
    /read FILE   read a text                     /help        this list                      /quit       leave

While nobody types, the model naps over what was said, as far as its window is at least half full; an answer that comes
then need not wait for that sleep. Ctrl-C stops an answer, and the turn is forgotten; Ctrl-D leaves.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import cached_assets_path
from huggingface_hub.errors import HfHubHTTPError
from transformers import TextStreamer
from transformers.utils import logging

from modeling_sleep.memory.begin import add_options, begin
from modeling_sleep.memory.conversation import Conversation, Sessions
from modeling_sleep.memory.watch import watched
from modeling_sleep.nap_sleep import SleepEvent
from modeling_sleep.window_sleep import largest


HELP = __doc__[__doc__.index("    /save") : __doc__.index("While nobody")].rstrip()
NO_MODEL = """There is no model {model!r}.
One that remembers is made of a pretrained one in minutes (`pip install ".[train]"`):
    python -m modeling_sleep.teach HuggingFaceTB/SmolLM2-135M-Instruct --output smollm2-remembers
    python examples/chat.py smollm2-remembers"""


class Sleeps:
    """Counts the sleeps of an answer, and how long they took."""

    def __init__(self):
        self.number, self.seconds = 0, 0.0

    def __call__(self, event: SleepEvent) -> None:
        self.number += 1
        self.seconds += event.seconds


class Chat:
    """The terminal: lines in, answers and numbers out."""

    def __init__(self, model, tokenizer, sessions: Sessions, name: str | None, idle: bool, **options):
        self.sleeps = Sleeps()
        self.conversation = Conversation(model, tokenizer, sleep_callback=self.sleeps, **options)
        self.model, self.tokenizer, self.sessions, self.name, self.idles = model, tokenizer, sessions, name, idle
        self.commands = {
            "/save": self.save,
            "/load": self.load,
            "/sessions": self.list,
            "/nap": self.nap,
            "/forget": self.forget,
            "/memory": self.memory,
            "/read": self.read,
            "/help": lambda _: print(HELP),
        }

    def run(self) -> None:
        """Until the user leaves."""
        if self.name is not None and self.sessions.path(self.name).is_file():
            self.load(self.name)
        while True:
            if self.idles:
                self.conversation.idle()
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                break
            if line in ("/quit", "/exit"):
                break
            if line:
                self.answer(line)
        self.conversation.wake()
        self.keep()

    def answer(self, line: str) -> None:
        """What the user has typed: a command, or something for the model."""
        command, _, argument = line.partition(" ")
        try:
            if command in self.commands:
                self.commands[command](argument.strip())
            elif command.startswith("/"):
                print(f"There is no command {command}.\n{HELP}")
            else:
                self.say(line)
        except KeyboardInterrupt:
            print("\n(stopped; this turn is forgotten)")
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {error}")

    def say(self, line: str) -> None:
        saved = self.conversation.wake()
        self.sleeps.number, self.sleeps.seconds = 0, 0.0
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.conversation.say(line, streamer, progress=sys.stderr.isatty())
        told = []
        if saved:
            told.append(f"slept {saved:.1f} s while you were typing")
        if self.sleeps.number:
            told.append(f"sleeps: {self.sleeps.number}, {self.sleeps.seconds:.1f} s")
        if told:
            print(f"({'; '.join(told)})")
        self.keep()

    def keep(self) -> None:
        """A session with a name is on the disk after every turn."""
        if self.name is not None and self.conversation.memory.rows:
            self.conversation.save(self.sessions.path(self.name))

    def save(self, name: str) -> None:
        name = name or self.name or ""
        self.conversation.save(self.sessions.path(name))
        self.name = name
        print(f"Session {name!r} is kept: {self.sessions.path(name)}")

    def load(self, name: str) -> None:
        path = self.sessions.path(name)
        if not path.is_file():
            raise ValueError(f"There is no session {name!r}. There are: {', '.join(self.sessions.names()) or 'none'}.")
        self.conversation.load(path)
        self.name = name
        memory = self.conversation.memory
        print(f"Session {name!r}: {self.conversation.turns} turns, {memory.tokens} tokens, {memory.sleeps} sleeps.")

    def list(self, _: str) -> None:
        print(", ".join(self.sessions.names()) or "There are no sessions yet.")

    def nap(self, argument: str) -> None:
        if argument and not argument.isdigit():
            raise ValueError(f"/nap takes a number of passes, got {argument!r}.")
        passes = int(argument) if argument else self.model.config.sleep_passes
        self.conversation.wake()
        if not largest(self.conversation.memory.state.stored):
            print("There is nothing in the window to sleep over.")
            return
        bar = logging.tqdm(total=passes - 1, desc="sleeping", unit=" passes", disable=not sys.stderr.isatty())
        with bar, watched(self.model, bar.update):
            self.conversation.nap(passes)
        print(f"Slept {passes} passes over the window; it is empty.")
        self.keep()

    def forget(self, _: str) -> None:
        self.conversation.forget()
        self.name = None  # what was kept stays
        print("Everything is forgotten.")

    def memory(self, _: str) -> None:
        self.conversation.wake()
        memory, window = self.conversation.memory, self.model.config.window_size
        print(
            f"{memory.tokens} tokens in {self.conversation.turns} turns, {memory.sleeps} sleeps; "
            f"{memory.state.stored} of {window} tokens in the window; {memory.nbytes:,} bytes"
            + (f"; session {self.name!r}" if self.name else "")
        )

    def read(self, path: str) -> None:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        self.conversation.wake()
        memory = self.model.read(
            text, self.tokenizer, past_key_values=self.conversation.memory, progress=sys.stderr.isatty()
        )
        self.conversation.memory = memory
        print(f"{'Read as far as' if memory.interrupted else 'Read'} {memory.tokens} tokens, {memory.sleeps} sleeps.")
        self.keep()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or name on the Hub")
    parser.add_argument("--name", help="of the session; it goes on where it stopped, and is kept after every turn")
    parser.add_argument("--sessions", type=Path, help="folder of the sessions; default: in the cache of the Hub")
    parser.add_argument("--no-idle-naps", dest="idle", action="store_false", help="sleep only where it must")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of the weights
    try:
        model, tokenizer, talking = begin(options)
    except (OSError, ValueError, HfHubHTTPError) as error:
        is_there = Path(options.model).exists()
        print(f"error: {error if is_there else NO_MODEL.format(model=options.model)}", file=sys.stderr)
        return 1
    logging.enable_progress_bar()
    folder = options.sessions or cached_assets_path(
        "modeling_sleep", namespace="chat", subfolder=Path(options.model).resolve().name
    )
    chat = Chat(model, tokenizer, Sessions(folder), options.name, options.idle, **talking)
    try:
        chat.run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
