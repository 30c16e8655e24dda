"""How far a memory reaches: recall over sleeps of other text, and over the number of facts that S holds.

    python -m modeling_sleep.teach.lengths FOLDER --rows lengths.jsonl --plot lengths.png    # goes on where it stopped

Facts stand in one window, and other text in all that follow: the same for all of them, as what the model makes of a
window before the memory does not depend on other windows. So it is read once, and written behind each story. With
`window_overlap` this leaves out that the last tokens of one window stand before the next: the first window of other
text is read as if nothing stood before it.
"""

import dataclasses
import itertools
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.cache_utils import Cache

from ..heads_sleep import SleepForCausalLM
from ..outputs_sleep import CACHE
from .chat import Chat
from .command import command, load, refuses
from .evaluate import Reader, answers, evaluation_units, share
from .facts import Unit, unit
from .filler import stream
from .lessons import StoryTensors, window_tensors, windows_of
from .reading import written
from .states import StateCache


SLEEPS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
FACTS = (10, 20, 50, 100, 200, 500, 1000)
TOKENS_OF_A_FACT = 36  # with what stands around it


def other_text(chat: Chat, seed: int, window_size: int, windows: int) -> list[list[int]]:
    """So many windows in which nothing is told."""
    return windows_of(chat, stream(random.Random(f"lengths/{seed}"), "eval"), window_size, windows)


def sleeps_over(model: SleepForCausalLM, windows: list[list[int]]) -> Callable[[Cache, int], None]:
    """A function that lets a cache sleep over what it holds, and then over the first so many of these windows."""
    place = model.config.layer_types.index("recall_memory")
    memory, embeddings = model.model.layers[place], model.model.embed_tokens.weight
    with tempfile.TemporaryDirectory() as folder:
        reads, _ = StateCache(model, Path(folder)).read(windows)
    tensors = window_tensors([reads], embeddings, embeddings.dtype)
    kept: dict[int, Cache] = {}

    def behind(count: int) -> Cache:
        """A cache that has slept over the last of so many windows: what it has kept is what stands there."""
        if count not in kept:
            ids = torch.tensor([windows[count - 1]], device=embeddings.device)
            kept[count] = model.sleep(model(ids, use_cache=True, logits_to_keep=1)[CACHE])
        return kept[count]

    def sleep(cache: Cache, count: int) -> None:
        model.sleep(cache)
        if count:
            stories = StoryTensors(*(None if x is None else x[:, :count] for x in tensors))
            S = cache.layers[place].state.recurrent_state
            S, _ = written(memory, stories, model.config.sleep_passes, S)
            others = behind(count) if model.config.window_overlap else cache
            for layer, other in zip(cache.layers, others.layers, strict=True):
                layer.store(other.state, other.window_start_state)
            cache.layers[place].store(cache.layers[place].state._replace(recurrent_state=S), None)

    return sleep


def over_facts(split: str, seed: int, chat: Chat, window_size: int, questions: int, count: int) -> list[Unit]:
    """
    Units that tell so many facts, one after the other with hardly any other text.

    Of a long story only some questions are asked, drawn from all of it; of short stories there are several.
    """
    units, index = [], 0
    while (missing := questions - sum(len(drawn.questions) for drawn in units)) > 0:
        windows = math.ceil(count * TOKENS_OF_A_FACT / window_size)
        drawn = unit(split, seed, index, chat, window_size, windows=windows, facts=count)
        some = random.Random(f"asked/{split}/{seed}/{index}").sample(drawn.questions, len(drawn.questions))
        units.append(dataclasses.replace(drawn, questions=some[:missing]))
        index += 1
    return units


@torch.no_grad()
def measure(
    model: SleepForCausalLM,
    chat: Chat,
    seed: int,
    questions: int,
    sleeps: Sequence[int] = SLEEPS,
    facts: Sequence[int] = FACTS,
    passes: Sequence[int] = (1, 2, 4),
    done: frozenset = frozenset(),
) -> Iterator[dict]:
    """
    Rows of both curves: `curve` ("sleeps" or "facts"), `count`, `passes`, `right`, `asked`, `seed`.

    `done` are curves, counts and passes that are left out, because they are known.
    """
    window_size = model.config.window_size
    wanted = [
        (curve, count, n)
        for curve, counts in (("sleeps", sleeps), ("facts", facts))
        for count, n in itertools.product(counts, passes)
        if (curve, count, n) not in done
    ]
    far = max((count for curve, count, _ in wanted if curve == "sleeps"), default=1)
    sleep = sleeps_over(model, other_text(chat, seed, window_size, far - 1)) if far > 1 else None
    before = model.config.sleep_passes
    bar = tqdm(wanted, "measuring", dynamic_ncols=True)
    try:
        for curve, count, n in bar:
            model.config.sleep_passes = n
            forget = None
            if curve == "facts":
                units = over_facts("known", seed, chat, window_size, questions, count)
            else:
                told = max(1, window_size // TOKENS_OF_A_FACT)
                units = evaluation_units("eval", seed, chat, window_size, questions, windows=1, facts=told, between=0)
                if count > 1:
                    forget = lambda cache, others=count - 1: sleep(cache, others)  # noqa: E731
            rows = list(answers(Reader("memory", model, chat, forget=forget), units, ["question"]))
            right = sum(row["right"] for row in rows)
            bar.set_postfix_str(f"{curve} {count}, N = {n}: {share(right, len(rows))}")
            yield {"curve": curve, "count": count, "passes": n, "right": right, "asked": len(rows), "seed": seed}
    finally:
        model.config.sleep_passes = before


def plot(rows: list[dict], path: Path) -> None:
    """Both curves, a line per N, over all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    labels = {"sleeps": "sleeps of other text since the fact", "facts": "facts in S"}
    for axis, (curve, label) in zip(axes, labels.items()):
        of_curve = [row for row in rows if row["curve"] == curve]
        for n, style in zip(sorted({row["passes"] for row in of_curve}), ("o-", "s--", "^:", "d-.")):
            counts = sorted({row["count"] for row in of_curve if row["passes"] == n})
            shares = []
            for count in counts:
                here = [row for row in of_curve if (row["count"], row["passes"]) == (count, n)]
                shares.append(100 * sum(row["right"] for row in here) / sum(row["asked"] for row in here))
            axis.plot(counts, shares, style, label=f"N = {n}" if axis is axes[0] else None)
        told = sorted({row["count"] for row in of_curve})
        axis.set(xscale="log", xlabel=label, ylim=(0, 100), xticks=told)
        axis.set_xticklabels([f"{count:,}" for count in told])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("right answers, %")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@refuses
def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    parser = command("lengths", __doc__)
    parser.add_argument(
        "--rows", type=Path, required=True, help="file of JSON lines; what is there is not asked again"
    )
    parser.add_argument("--plot", type=Path, default=None, help="PNG of all rows in the file")
    parser.add_argument("--seed", type=int, default=0, help="of facts and texts")
    parser.add_argument("--questions", type=int, default=40, help="for each number")
    parser.add_argument("--sleeps", type=int, nargs="*", default=SLEEPS, help="since the fact")
    parser.add_argument("--facts", type=int, nargs="*", default=FACTS, help="told")
    parser.add_argument("--passes", type=int, nargs="+", default=(1, 2, 4), metavar="N")
    options = parser.parse_args(arguments)
    model, chat = load(options)
    rows = []
    if options.rows.exists():
        rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    known = {(row["curve"], row["count"], row["passes"]) for row in rows if row["seed"] == options.seed}
    settings = (options.seed, options.questions, options.sleeps, options.facts, options.passes, frozenset(known))
    with options.rows.open("a", encoding="utf-8") as file:
        for row in measure(model, chat, *settings):
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
