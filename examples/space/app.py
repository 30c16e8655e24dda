"""A page on which one talks to a model that sleeps, and sees its memory beside what is said.

    pip install ".[space]"
    python examples/space/app.py MODEL          # a folder, or a name on the Hub
    python examples/space/app.py BASE --memory FOLDER --nap-before-turns     # a pretrained one with a taught memory
    MODEL=user/name python app.py               # as a Space does; MEMORY, SYSTEM and NAP_BEFORE_TURNS=1 likewise

Every visitor has a conversation of their own, of which no transcript is kept: the model has read what was said, and
what it remembers is what the page shows, saves, loads and forgets. Visitors wait for each other: they share a model.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
from transformers import TextIteratorStreamer

from modeling_sleep.memory.begin import add_options, begin
from modeling_sleep.memory.conversation import Conversation
from modeling_sleep.memory.picture import Changes, draw
from modeling_sleep.window_sleep import largest


TITLE = "A model that sleeps"
ABOUT = (
    "Whenever its window is full, the model sleeps: it replays the window into fast weights S, and forgets the words. "
    "What it then knows of them is in S alone. **Nap** makes it sleep now."
)
LONGEST = 20_000  # characters that may be said at once
LARGEST_UPLOAD = "256mb"


class Session:
    """
    One visitor's conversation, and what it has changed in S.

    Parameters
    ----------
    model : SleepForCausalLM
    tokenizer : PreTrainedTokenizerBase
    **options
        Of [`Conversation`].
    """

    def __init__(self, model, tokenizer, **options):
        self.model, self.tokenizer = model, tokenizer
        self.conversation = Conversation(model, tokenizer, **options)
        self.folder = tempfile.TemporaryDirectory()  # of files to show and to save, as long as the session lasts
        self.changes = Changes(model)

    def say(self, text: str) -> Iterator[str]:
        """The answer so far, again and again."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = ""
        with ThreadPoolExecutor(1) as pool:
            saying = pool.submit(self.conversation.say, text, streamer)
            saying.add_done_callback(lambda _: streamer.end())  # if it failed, too
            for part in streamer:
                answer += part
                yield answer
            yield saying.result()
        self.changes.look(self.conversation.memory)

    def nap(self) -> None:
        """Sleep now."""
        if not largest(self.conversation.memory.state.stored):
            raise ValueError("There is nothing in the window to sleep over.")
        self.conversation.nap()
        self.changes.look(self.conversation.memory)

    def forget(self) -> None:
        """Begin anew."""
        self.conversation.forget()
        self.changes = Changes(self.model)

    def save(self) -> str:
        """The file that holds what is remembered."""
        if not self.conversation.memory.rows:
            raise ValueError("There is nothing to save yet: say something.")
        path = Path(self.folder.name) / f"{self.conversation.memory.tokens}-tokens.memory"
        self.conversation.save(path)
        return str(path)

    def load(self, path: str) -> None:
        """Go on with what a file remembers."""
        self.conversation.load(path)
        self.changes = Changes(self.model)
        self.changes.look(self.conversation.memory)

    def counters(self) -> str:
        """A table of what there is."""
        memory, window = self.conversation.memory, self.model.config.window_size
        rows = {
            "tokens read": f"{memory.tokens:,}",
            "turns": self.conversation.turns,
            "sleeps": memory.sleeps,
            "in the window": f"{memory.state.stored} of {window} tokens",
            "memory": f"{memory.nbytes:,} bytes",
        }
        return "\n".join(
            ["| what it remembers | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )

    def picture(self) -> str | None:
        """A PNG of what every turn has changed in S, layer by layer and head by head. None before there is an S."""
        if not self.changes.before:
            return None
        path = Path(self.folder.name) / "memory.png"
        draw(self.changes.trace(self.conversation.memory), path, column="turn or nap")
        return str(path)


@contextlib.contextmanager
def errors_shown(path: str = ""):
    """What the user can do something about is shown on the page; a file is called by its name alone."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        told = str(error).replace(path, Path(path).name) if path else str(error)
        raise gr.Error(told, print_exception=False) from error


def make_page(model, tokenizer, **options) -> gr.Blocks:
    """
    The page.

    Parameters
    ----------
    model : SleepForCausalLM
    tokenizer : PreTrainedTokenizerBase
    **options
        Of [`Conversation`].

    Raises
    ------
    ValueError
        If the model has no fast weights.
    """
    Changes(model)  # is there anything to show?

    def begun(session: Session | None) -> Session:
        return Session(model, tokenizer, **options) if session is None else session

    def shown(session: Session) -> tuple:
        return session, session.counters(), session.picture()

    def open_page():
        return shown(begun(None))

    def say(text: str, chat: list[dict], session: Session | None):
        session = begun(session)
        asked = [*chat, {"role": "user", "content": text}]
        yield "", asked, session, gr.skip(), gr.skip()
        try:
            with errors_shown():
                for answer in session.say(text):
                    yield "", [*asked, {"role": "assistant", "content": answer}], session, gr.skip(), gr.skip()
        except gr.Error:
            yield text, chat, session, gr.skip(), gr.skip()  # as if nothing had been said
            raise
        yield "", [*asked, {"role": "assistant", "content": answer}], *shown(session)

    def nap(session: Session | None):
        session = begun(session)
        with errors_shown():
            session.nap()
        return shown(session)

    def forget(session: Session | None):
        session = begun(session)
        session.forget()
        return [], gr.File(visible=False), *shown(session)

    def save(session: Session | None):
        session = begun(session)
        with errors_shown():
            return gr.File(session.save(), visible=True), session

    def load(path: str, session: Session | None):
        session = begun(session)
        with errors_shown(path):
            session.load(path)
        told = f"*Loaded: {session.conversation.turns} turns, which are remembered and not written down.*"
        return [{"role": "assistant", "content": told}], *shown(session)

    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600)) as page:
        session = gr.State()
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        with gr.Row():
            with gr.Column(scale=3):
                chat = gr.Chatbot(label="what is said", height=520)
                text = gr.Textbox(
                    label="you", placeholder="Say something, then Enter", max_length=LONGEST, elem_id="you"
                )
            with gr.Column(scale=2):
                counters = gr.Markdown(elem_id="counters")
                picture = gr.Image(interactive=False, show_label=False, type="filepath", elem_id="picture")
                with gr.Row():
                    nap_button = gr.Button("Nap", elem_id="nap")
                    save_button = gr.Button("Save", elem_id="save")
                    load_button = gr.UploadButton("Load", file_count="single", type="filepath", elem_id="load")
                    forget_button = gr.Button("Forget", variant="stop", elem_id="forget")
                file = gr.File(label="the memory", interactive=False, visible=False, elem_id="file")
        seen = [session, counters, picture]
        # Without progress, which would hide what is seen, and with it errors, which would hide it for good.
        one_by_one = dict(concurrency_id="model", concurrency_limit=1, show_progress="hidden")
        page.load(open_page, None, seen, api_name="open", **one_by_one)
        text.submit(say, [text, chat, session], [text, chat, *seen], api_name="say", **one_by_one)
        nap_button.click(nap, session, seen, api_name="nap", **one_by_one)
        clear = [forget_button.click, chat.clear]
        gr.on(clear, forget, session, [chat, file, *seen], api_name="forget", **one_by_one)
        save_button.click(save, session, [file, session], api_name="save", **one_by_one)
        load_button.upload(load, [load_button, session], [chat, *seen], api_name="load", **one_by_one)
    return page


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", default=os.environ.get("MODEL"), help="folder or name on the Hub; default: $MODEL"
    )
    add_options(parser)
    parser.set_defaults(
        memory=os.environ.get("MEMORY"),
        system=os.environ.get("SYSTEM"),
        nap_before_turns=os.environ.get("NAP_BEFORE_TURNS", "0") != "0",
    )
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    options = parser.parse_args()
    if not options.model:
        parser.error("say which model: as an argument, or by the environment's variable MODEL")
    return options


def main() -> int:
    options = parse_arguments()
    try:
        model, tokenizer, talking = begin(options)
        page = make_page(model, tokenizer, **talking)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    page.launch(server_port=options.port, max_file_size=LARGEST_UPLOAD)
    return 0


if __name__ == "__main__":
    sys.exit(main())
