"""What a training step costs: time and peak memory, over N, windows and gradient checkpointing.

Every token has a label. A text of W windows takes W passes at N = 1, and (W - 1) N + 1 at N, as nothing sleeps after
the last window; "per pass" divides by them. N = 1 alone can read its windows side by side, so a pass of other N is
compared twice: with one of N = 1 as it reads, and as it would read one window after the other. The fully parallel
hybrids see the same text in one piece: this stack with its cache kept, and OLMo-Hybrid of transformers. Peak memory is
that of a process of its own (`memory.py`).
"""

from functools import partial
from unittest import mock

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from modeling_sleep import modeling_sleep

from .. import figures
from . import memory, report
from .bench import Bench, Result, Rounds, Row, short
from .memory import BATCH, Step
from .models import KEPT, OLMO, OURS, described


TITLE = "Training"
PASSES = (1, 2, 4)
LARGER_BATCH = 8
ONE_BY_ONE = "one window after the other"


def windows(bench: Bench) -> tuple[int, ...]:
    return (2,) if bench.quick else (4, 8)


def ours(passes: int) -> str:
    return f"{OURS}, N = {passes}"


def sides(checkpointing: bool, count: int) -> dict[str, Step]:
    found = {ours(n): Step(passes=n, checkpointing=checkpointing, windows=count) for n in PASSES}
    return found | {name: Step(name, checkpointing=checkpointing, windows=count) for name in (KEPT, OLMO)}


def noted(checkpointing: bool) -> str:
    return ", checkpointed" if checkpointing else ""


def sizes(bench: Bench, count: int, batch: int = BATCH) -> str:
    return f"{count} windows, labels everywhere; {described(bench, batch)}"


def measure(bench: Bench) -> Result:
    rows, points = [], []
    for count in windows(bench):
        for checkpointing in (False, True):
            rows += times(bench, count, checkpointing, points)
    rows += times_of_a_larger_batch(bench)
    rows += peaks(bench, points)
    return Result(rows, {"points": points})


def times(bench: Bench, count: int, checkpointing: bool, points: list[dict]) -> list[Row]:
    """Seconds of a step of every side; adds them to `points`."""
    steps, note = sides(checkpointing, count), noted(checkpointing)
    rounds = rounds_of(bench, steps, f"{count} windows{note}")
    setting = sizes(bench, count)
    for name in steps:
        rate = BATCH * count * bench.window_size / rounds.ms(name)["median"] * 1000
        point = {"side": name, "windows": count, "checkpointing": checkpointing, "tokens per second": rate}
        points.append({**point, "ms": rounds.ms(name)["median"]})
    rows = []
    for name, target in ((OLMO, None if checkpointing else 0.9), (KEPT, None)):
        found = rounds.ratio(ours(1), name, invert=True)
        title = f"training tokens/s at N = 1{note}, over those of {name}, in parallel"
        rows.append(Row(title, setting, target=target, at_least=True, **found))
    rows += per_pass(rounds, count, note, setting)
    if ONE_BY_ONE in rounds.seconds:
        title = f"training step of N = 1, windows side by side over {ONE_BY_ONE}"
        rows.append(Row(title, setting, **rounds.ratio(ours(1), ONE_BY_ONE)))
    return rows


def times_of_a_larger_batch(bench: Bench) -> list[Row]:
    """The cost of a pass where the rows of a window outweigh the gradient of the parameters that each pass makes."""
    count = windows(bench)[-1]
    steps = {ours(n): Step(passes=n, windows=count, batch=LARGER_BATCH) for n in PASSES}
    rounds = rounds_of(bench, steps, f"{count} windows, batch {LARGER_BATCH}")
    return per_pass(rounds, count, "", sizes(bench, count, LARGER_BATCH))


def rounds_of(bench: Bench, steps: dict[str, Step], title: str) -> Rounds:
    """Seconds of steps that take turns, and of N = 1 read as every other N is, where it is not read so anyway."""
    todo = {}
    for name, step in steps.items():
        model = memory.trained(step, bench)
        todo[name] = partial(bench.timed, memory.run, model, step, memory.text(model, step, bench))

    def one_by_one() -> float:
        with mock.patch.object(modeling_sleep, "TOKENS_AT_ONCE", 0):
            return todo[ours(1)]()

    if not steps[ours(1)].checkpointing:
        todo[ONE_BY_ONE] = one_by_one
    return bench.in_turn(todo, f"training: {title}", min_rounds=3 if bench.quick else 5)


def per_pass(rounds: Rounds, count: int, note: str, setting: str) -> list[Row]:
    """Steps of several passes, by their number, over one of N = 1, and over one that is read like them."""
    rows = []
    for passes in PASSES[1:]:
        cost = ((count - 1) * passes + 1) / count
        title = f"training step of N = {passes} per pass{note}, over N = 1"
        rows.append(Row(title, setting, target=1.05, **rounds.ratio(ours(passes), ours(1), factor=cost)))
        if ONE_BY_ONE in rounds.seconds:
            title += f", {ONE_BY_ONE}"
            rows.append(Row(title, setting, **rounds.ratio(ours(passes), ONE_BY_ONE, factor=cost)))
    return rows


def peaks(bench: Bench, points: list[dict]) -> list[Row]:
    """Peak memory: into `points`, and what sleeping longer takes, and what saves."""
    for point in tqdm(points, desc="   training: memory", unit="process", leave=False):
        step = sides(point["checkpointing"], point["windows"])[point["side"]]
        point["memory"] = memory.peak_memory(step, bench)

    rows, count = [], windows(bench)[0]
    setting = sizes(bench, count)
    for checkpointing, target in ((True, 1.5), (False, None)):
        one, other = (Step(passes=n, checkpointing=checkpointing, windows=count) for n in (8, 1))
        name = "peak memory of a step, N = 8 over N = 1" + noted(checkpointing)
        rows.append(memory.compare(bench, name, setting, target, one, other))

    vocabulary, count = 5_000 if bench.quick else 50_000, windows(bench)[-1]
    setting = f"{count} windows, labels everywhere, vocabulary {vocabulary:,}; {described(bench, BATCH)}"
    for checkpointing in (False, True):
        one, other = (
            Step(
                passes=4,
                checkpointing=checkpointing,
                windows=count,
                overrides=(("vocab_size", vocabulary), ("skip_logits", skip)),
            )
            for skip in (True, False)
        )
        name = "peak memory of a step of N = 4, `skip_logits` over all logits" + noted(checkpointing)
        rows.append(memory.compare(bench, name, setting, None, one, other))

    setting = sizes(bench, count)
    for cut in (1,) if bench.quick else (1, 2, 4):
        one = Step(passes=4, windows=count, overrides=(("bptt_windows", cut),))
        name = f"peak memory of a step of N = 4, `bptt_windows={cut}` over all windows"
        rows.append(memory.compare(bench, name, setting, None, one, Step(passes=4, windows=count)))
    return rows


def tables(data: dict) -> str:
    """A line per side, windows and checkpointing."""
    rows = {}
    for x in data["points"]:
        grown = x["memory"]
        growth = "–" if grown["peak"] is None else f"{(grown['peak'] - grown['before']) / 2**20:,.0f}"
        name = f"{x['side']}, {x['windows']} windows{noted(x['checkpointing'])}"
        rate = short(x["tokens per second"])
        rows[name] = [short(x["ms"]), rate, f"{grown['tensors'] / 2**20:,.0f}", growth]
    return report.grid("", ["ms per step", "tokens/s", "peak of tensors, MiB", "growth of the process, MiB"], rows)


def plot(data: dict) -> Figure:
    """Bars of the longer text: time and memory, with and without checkpointing."""
    figure, panels = figures.figure(panels=2)
    most = max(x["windows"] for x in data["points"])
    longest = [x for x in data["points"] if x["windows"] == most]
    names = list(dict.fromkeys(x["side"] for x in longest))
    found = {
        label: {x["side"]: x for x in longest if x["checkpointing"] == checkpointing}
        for label, checkpointing in (("not checkpointed", False), ("checkpointed", True))
    }
    measures = {
        "tokens per second": lambda x: x["tokens per second"],
        "peak of tensors (MiB)": lambda x: x["memory"]["tensors"] / 2**20,
    }
    for axes, (label, measure) in zip(panels, measures.items()):
        sides = {side: [measure(here[name]) for name in names] for side, here in found.items()}
        figures.bars(axes, names if axes is panels[0] else [""] * len(names), sides, f"{label}, {most} windows")
    figures.legend(figure)
    return figure
