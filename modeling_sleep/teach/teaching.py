"""Teaching from beginning to end: read, learn in two stages, measure, save. It goes on where it was stopped."""

import dataclasses
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..calibrate_sleep import calibrate_memory, open_read_out, weight_of
from ..heads_sleep import SleepForCausalLM
from ..recall_memory_sleep import RecallMemoryLayer
from .chat import Chat
from .evaluate import Reader, answers, evaluation_units, everyday, table, zeroing
from .everyday import everyday_reads
from .facts import BEGINNINGS
from .key_rank import cut_keys, set_rank
from .lessons import Lesson, exchanges, lessons, texts
from .natural_text import natural_text, perplexity
from .picture import draw_memory
from .processes import from_first, number_of_processes, part_of, rank, share_parameters, wait_for_all
from .stages import ALONE, THROUGH, Alone, Course, Stage, ThroughLayers
from .states import StateCache, fingerprint


logger = logging.get_logger(__name__)

SWAPPED = 4_000  # tokens that may stand where a word begins, and as many within words
CUT = 0.5  # of the lessons have windows that end anywhere, where keys are kept that bridge their ends
AMID = 0.6  # of the questions stand behind other text of their window, as far as it fits
READ_OUT = 0.5  # where teaching begins, see calibrate_sleep.py
CALIBRATION_LESSONS = 100
KEY_RANK = 4  # a memory of so many key dimensions keeps one rank of its maps behind stage 1
SAVE_EVERY = 50
# Of the time for learning, the share of stage 1.
ALONE_SHARE = 0.5
TEXTS_MEASURED = 12
SMOOTHED = 20  # steps over which the bar's numbers are averaged


def teach(
    model: SleepForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    cache: str | Path | None = None,
    minutes: float | None = None,
    seed: int = 0,
    units: int = 1000,
    alone_units: int = 0,
    natural_texts: int = 48,
    questions: int = 60,
    alone: Stage = ALONE,
    through: Stage = THROUGH,
    autocast: torch.dtype | None = None,
    cache_limit: float = 6e9,
    key_rank: int | None = None,
) -> dict:
    """
    Teach the recall memory of `model`, in place, to answer from what it read before a sleep. Where there is a process
    group, its processes share the stories of every step, and all have the same memory afterwards.

    Parameters
    ----------
    model : SleepForCausalLM
        With one recall memory (`from_causal_lm(..., memory="recall")`). All else stays as it is.
    tokenizer : PreTrainedTokenizerBase
        A fast one. With a chat template, facts are told and asked for in chats.
    output : str or Path
        Folder of what teaching keeps to go on after an interruption, and of its results.
    cache : str or Path, optional
        Folder of what the frozen layers know of the lessons, which runs may share. Default: one in `output`.
    minutes : float, optional
        Of learning, reading and measuring not included; the learning rates fall accordingly. Default: all steps.
    seed : int
    units, natural_texts : int
        To learn from: stories of about seven facts; texts of four windows.
    alone_units : int
        More stories for the first stage. Of these the model reads only as far as keys are made of it
        (`recall_key_layer`), which takes a third of the time and of the disk.
    questions : int
        Of each split, to measure with. 0: measure nothing.
    alone, through : Stage
        The two stages.
    autocast : torch.dtype, optional
        In which the frozen layers compute.
    cache_limit : float
        Bytes of the cache folder.
    key_rank : int, optional
        To which the maps of queries and keys are cut between the stages; 0 leaves them as they are. Default: a quarter
        of `recall_key_dim`. Those of a memory that has a `recall_key_rank` already stay.

    Returns
    -------
    dict
        The results, which are also in `output/results.json`. A picture of the memory is beside it. Of several
        processes only the first measures; the others return nothing.

    Raises
    ------
    ValueError
        If the model has no recall memory or several, the tokenizer is a slow one, windows are too short, or `key_rank`
        is larger than `recall_key_dim`.
    """
    place, chat = check(model, tokenizer), Chat(tokenizer)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    window_size, memory = model.config.window_size, model.model.layers[place]
    key_rank = rank_to_cut_to(memory, key_rank)
    settings = {
        "seed": seed,
        "units": units,
        "alone_units": alone_units,
        "natural_texts": natural_texts,
        "minutes": minutes,
        "window_size": window_size,
        "window_overlap": model.config.window_overlap,
        "pinned_tokens": model.config.pinned_tokens,
        "alone": dataclasses.asdict(alone),
        "through": dataclasses.asdict(through),
        "autocast": str(autocast),
        "key_rank": key_rank,
        "key_layer": model.config.recall_key_layer,
        "base": fingerprint(model),
    }
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval().requires_grad_(False)
    memory.requires_grad_(True)
    try:
        store = StateCache(model, Path(cache) if cache else output / "states", cache_limit, autocast)
        progress = Progress(output / "teaching.pt", settings, memory)
        learn(store, chat, progress, seed, units, alone_units, natural_texts, alone, through, minutes, key_rank)
        if rank() > 0:
            return {}
        results = {"settings": settings, "seconds": progress.seconds, "steps": progress.steps}
        results |= {"processes": number_of_processes()}
        if questions:
            results |= measure(model, chat, seed, questions, output)
            results |= draw_memory(model, chat, seed, output)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen.get(name, True))  # maps that were cut are new
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def learn(
    store: StateCache,
    chat: Chat,
    progress: "Progress",
    seed: int,
    units: int,
    alone_units: int,
    natural_texts: int,
    alone: Stage,
    through: Stage,
    minutes: float | None,
    key_rank: int,
) -> None:
    """Both stages of [`teach`], as far as they are not done yet. Gigabytes of lessons are held until it returns."""
    model, place, window_size = store.model, store.place, store.model.config.window_size
    memory, embeddings = model.model.layers[place], model.model.embed_tokens.weight
    how = {"amid": AMID, "cut": CUT if store.overlap else 0.0}

    def read(what: str, count: int, first: int = 0, through: bool = True) -> list[Lesson]:
        """Lessons. Of several processes each reads a part, and then finds those of the others on the disk."""
        own, found = part_of(count), []
        for part in (own, range(own.start), range(own.stop, count)):
            some = dict(count=len(part), first=first + part.start, through=through)
            reading = lessons(store, "train", seed, chat, window_size, **some, **how)
            bar = dict(dynamic_ncols=True, disable=rank() > 0 or not part)
            found.append(list(tqdm(reading, what, len(part), **bar)))
            if part is own:
                wait_for_all()
        own_part, before, behind = found
        return before + own_part + behind

    learned = read("reading lessons", units)
    of_alone = read("reading more", alone_units, first=units, through=False) if alone_units else []
    reading = texts(store, "train", seed, chat, window_size, natural_texts)
    natural = list(tqdm(reading, "reading texts", natural_texts, dynamic_ncols=True, disable=rank() > 0))
    plain = everyday_reads(store, learned, chat) if through.everyday else []
    others = exchanges(chat, SWAPPED, seed)
    if not progress.begun:
        begin(model, place, learned)
    seconds = None if minutes is None else 60 * minutes
    for name, stage, course, share in (
        ("alone", alone, Alone, ALONE_SHARE),
        ("through", through, ThroughLayers, 1 - ALONE_SHARE),
    ):
        if course is ThroughLayers and key_rank and model.config.recall_key_rank is None:
            cut_keys(memory, learned[:CALIBRATION_LESSONS], embeddings, key_rank)
        if name not in progress.finished:
            asked, told = ([*learned, *of_alone], []) if course is Alone else (learned, of_alone)
            lesson_plan = course(stage, model, place, asked, others, seed, store.autocast, natural, plain, told)
            progress.run(name, lesson_plan, None if seconds is None else seconds * share)


def check(model: SleepForCausalLM, tokenizer: PreTrainedTokenizerBase) -> int:
    """The place of the model's recall memory. Raises if it cannot be taught."""
    places = [i for i, kind in enumerate(model.config.layer_types) if kind == "recall_memory"]
    if len(places) != 1:
        raise ValueError(
            f"Teaching knows models with one recall memory, and this one has {len(places)}: make one with "
            '`SleepForCausalLM.from_causal_lm(..., memory="recall")`.'
        )
    config = model.config
    if config.window_overlap + config.pinned_tokens > config.window_size:
        raise ValueError(
            f"Teaching keeps `window_overlap` ({config.window_overlap}) and `pinned_tokens` ({config.pinned_tokens}) "
            f"of a window of {config.window_size} tokens, which holds less: make one of the three fit."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}: they do not belong "
            "together."
        )
    return places[0]


def rank_to_cut_to(memory: RecallMemoryLayer, key_rank: int | None) -> int:
    """What `key_rank` of [`teach`] means for this memory; 0 if nothing is to be cut. Raises if it cannot be."""
    config = memory.config
    if config.recall_key_rank is not None:
        if key_rank not in (None, 0, config.recall_key_rank):
            raise ValueError(
                f"`key_rank` is {key_rank}, and the maps of this memory are of rank {config.recall_key_rank} already: "
                "leave it out, or teach a memory with maps of any rank."
            )
        return 0
    if key_rank is None:
        return max(1, config.recall_key_dim // KEY_RANK)
    if not 0 <= key_rank <= config.recall_key_dim:
        raise ValueError(
            f"`key_rank` must be from 1 to `recall_key_dim` ({config.recall_key_dim}), or 0 to cut nothing, got "
            f"{key_rank}."
        )
    return key_rank


@torch.no_grad()
def begin(model: SleepForCausalLM, place: int, learned: list) -> None:
    """Calibrate the memory on the lessons, unless it can read already."""
    memory = model.model.layers[place]
    if memory.o_proj.weight.any():
        return
    weight = memory.v_proj.weight
    some = learned[:CALIBRATION_LESSONS]
    reads = [read for x in some for read in x.story] + [asked.read for x in some for asked in x.asked]
    known = [read.key_hidden_states.unsqueeze(0).to(weight) for read in reads]
    calibrate_memory(memory, known, model.model.embed_tokens.weight)
    before = [read.hidden_states.to(weight) for read in reads if read.hidden_states is not None]
    open_read_out(memory, before, weight_of(model.model.norm), READ_OUT)


class Progress:
    """
    How far teaching is, on disk.

    Parameters
    ----------
    path : Path
    settings : dict
        Teaching with others begins anew.
    memory : RecallMemoryLayer
        Set to what it had learned.
    """

    def __init__(self, path: Path, settings: dict, memory: torch.nn.Module):
        self.path, self.settings, self.memory = path, settings, memory
        self.finished: list[str] = []
        self.steps: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.optimizer = None
        self.begun = False
        if path.exists():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["settings"] != settings:
                logger.warning(f"{path} is of a teaching with other settings: it begins anew.")
                return
            if saved["key_rank"] != memory.config.recall_key_rank:
                set_rank(memory, saved["key_rank"])
            memory.load_state_dict(saved["memory"])
            self.finished, self.steps, self.seconds = saved["finished"], saved["steps"], saved["seconds"]
            self.optimizer, self.begun = saved["optimizer"], True

    def save(self, course: Course | None) -> None:
        """Nobody ever sees half a file. Of several processes the first one saves."""
        if rank() > 0:
            return
        partial = self.path.with_suffix(".tmp")
        torch.save(
            {
                "settings": self.settings,
                "memory": self.memory.state_dict(),
                "key_rank": self.memory.config.recall_key_rank,
                "finished": self.finished,
                "steps": self.steps,
                "seconds": self.seconds,
                "optimizer": course and {"optimizer": course.optimizer.state_dict(), **course.extra()},
            },
            partial,
        )
        partial.replace(self.path)

    def run(self, name: str, course: Course, seconds: float | None) -> None:
        """All steps of a stage, from where it was, or as many as fit into so many seconds."""
        first, spent = self.steps.get(name, 0), self.seconds.get(name, 0.0)
        if first and self.optimizer is not None:
            course.resume(self.optimizer)
        share_parameters([p for group in course.groups() for p in group["params"]])
        began, recent, steps = time.perf_counter(), [], course.stage.steps
        bar = tqdm(total=steps, initial=first, desc=f"learning {name}", dynamic_ncols=True, disable=rank() > 0)
        with bar:
            for number in range(first, steps):
                elapsed = spent + from_first(time.perf_counter() - began, course.embeddings.device)
                progress = number / steps if seconds is None else max(number / steps, elapsed / seconds)
                if progress >= 1:
                    break
                recent = [*recent[1 - SMOOTHED :], course.step(number, progress)]
                bar.update()
                bar.set_postfix_str(summary(recent, None if seconds is None else seconds - elapsed))
                self.steps[name], self.seconds[name] = number + 1, spent + time.perf_counter() - began
                if (number + 1) % SAVE_EVERY == 0:
                    self.save(course)
        self.finished.append(name)
        self.optimizer = None
        self.save(None)
        logger.info(f"{name}: {summary(recent, None)}")


def summary(recent: list[dict[str, float]], left: float | None) -> str:
    """Means over the last steps, and the time that is left."""
    names = dict.fromkeys(name for told in recent for name in told)
    means = {name: [told[name] for told in recent if name in told] for name in names}
    text = " ".join(f"{name} {sum(x) / len(x):.2f}" for name, x in means.items())
    return text if left is None else f"{text}, {left:.0f} s left"


def measure(model: SleepForCausalLM, chat: Chat, seed: int, questions: int, output: Path) -> dict:
    """
    Questions behind sleeps, in wordings of training ("known") and in ones never met ("eval"): where a window begins,
    behind other text in it, where windows end anywhere, and with S zeroed; and what was unlearned: everyday questions,
    natural text. Every answer is in `output/answers.jsonl`.
    """
    window_size, rows = model.config.window_size, []
    with_memory, amid = Reader("memory", model, chat), Reader("memory, amid other text", model, chat)
    anywhere = Reader("memory, windows end anywhere", model, chat)
    zeroed = Reader("S zeroed", model, chat, forget=zeroing(model))
    with (output / "answers.jsonl").open("w", encoding="utf-8") as file:
        for split in ("known", "eval"):
            units = evaluation_units(split, seed, chat, window_size, questions)
            behind = evaluation_units(split, seed, chat, window_size, questions, amid=1.0)
            cut = evaluation_units(split, seed, chat, window_size, questions, amid=AMID, cut=True)
            for reader, asked, beginnings in (
                (with_memory, units, BEGINNINGS),
                (amid, behind, BEGINNINGS),
                (anywhere, cut, BEGINNINGS),
                (zeroed, units, BEGINNINGS[:1]),
            ):
                asked = tqdm(asked, f"asking, {reader.name}, {split}", dynamic_ncols=True)
                for row in answers(reader, asked, beginnings):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
    by_sleeps = [row for row in rows if row["reader"] == "memory"]
    by_sleeps.sort(key=lambda row: (row["split"] != "known", row["since"]))
    everyday_rows = list(everyday(with_memory, model, units))
    natural = [natural_text(chat, "eval", 4 * window_size, index) for index in range(TEXTS_MEASURED)]
    return {
        "passes": model.config.sleep_passes,
        "recall": table(rows),
        "by sleeps": table(by_sleeps, by=("split", "since")),
        "everyday": everyday_rows,
        "perplexity": [
            perplexity(with_memory, natural, window_size),
            perplexity(Reader("each window by itself", model, chat), natural, window_size, kept=0),
        ],
    }
