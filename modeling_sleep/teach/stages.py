"""The two stages of teaching. Nothing but the memory learns.

1. The memory by itself: what S gives where an answer's value is to be predicted must be the value's code, among those
   of some thousand words; and of all keys that were written, the value's must be the nearest to the query. No layer of
   the model runs. It teaches what is worth writing, and which keys find it.
2. Through the layers behind it, which are frozen: the model must say the answer and end it. Elsewhere it is to predict
   what it predicts without a memory, and natural text at least as well.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import logging

from ..heads_sleep import SleepForCausalLM
from ..recall_memory_sleep import RecallMemoryLayer, recall
from .everyday import Plain
from .lessons import Asked, Exchanges, Lesson, Sought, story_of, story_tensors, swap, told_tokens, window_tensors
from .processes import average_gradients, number_of_processes, part_ways
from .reading import (
    WrittenKeys,
    answer_begins,
    asleep_before,
    queries_at,
    read_through,
    written,
    written_at_once,
)
from .states import Read, computing_in


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Stage:
    """
    How a stage learns.

    Attributes
    ----------
    steps : int
    stories : int
        Lessons of a step, each with a story of `windows` windows, drawn between the two numbers. Several processes
        share them, and each has at least one.
    windows : tuple[int, int]
    questions : int
        Of each story, at most.
    swaps : float
        Share of the values that are exchanged for other words.
    unspaced : float
        Share of the values that are told without the space before them.
    learning_rate : float
    rest : float
        Of the learning rate, for all that neither reads out nor says what is written.
    nearest, ends, begins, keeps, everyday, text, sparse : float
        Weights of the loss: that a query is nearest to the key of what it seeks; tokens that end an answer; words
        before its value; what the model predicts elsewhere, and where it is asked for what no story tells; natural
        text; the mean of beta.
    natural : float
        Share of natural text among the windows by which a story is made longer.
    """

    steps: int
    stories: int
    windows: tuple[int, int]
    questions: int = 3
    swaps: float = 0.3
    unspaced: float = 0.0
    learning_rate: float = 2e-3
    rest: float = 1.0
    nearest: float = 0.5
    ends: float = 0.5
    begins: float = 1.0
    keeps: float = 0.3
    everyday: float = 0.5
    text: float = 0.5
    sparse: float = 0.0
    natural: float = 0.0


ALONE = Stage(steps=600, stories=8, windows=(2, 8), questions=99, learning_rate=4e-3, sparse=1.0)
THROUGH = Stage(
    steps=600, stories=4, windows=(2, 32), questions=7, rest=0.15, unspaced=0.15, ends=2.0, sparse=6.0, natural=0.5
)
MOST_SKIPPED = 10  # steps, one behind the other
SCALE = 2.5  # logarithm of what codes are multiplied by at first
SHARPNESS = 3.0  # logarithm of what cosines of queries and keys are multiplied by at first
TEXT_TOKENS = 16  # of a natural text, in a step
KEPT_TOKENS = 2  # of each window that asks
PLAIN_TOKENS = 5  # of each answer to what no story tells


class Told(NamedTuple):
    """
    What a step tells.

    Attributes
    ----------
    lessons : list[Lesson]
    stories : list[list[tuple[Lesson, int]]]
        Windows of lessons, of each lesson its own among them.
    S, beta : torch.Tensor
        After each story, (stories, 1, key_dim, value_dim); of its tokens, (stories, windows, length).
    keys : WrittenKeys
    """

    lessons: list[Lesson]
    stories: list[list[tuple[Lesson, int]]]
    S: torch.Tensor
    beta: torch.Tensor
    keys: WrittenKeys


class Course:
    """
    One stage of teaching: `step` after `step`, each of which depends on nothing but its number and the seed.

    Parameters
    ----------
    stage : Stage
    model : SleepForCausalLM
    place : int
        Of its recall memory in the stack.
    lessons : list[Lesson]
    exchanges : Exchanges
        What may be told instead of a token of a value.
    seed : int
    autocast : torch.dtype, optional
        In which the frozen layers compute.
    texts : list[list[Read]]
        Natural texts, each in windows.
    plain : list[Plain]
        What is asked behind stories that do not tell it.
    others : list[Lesson]
        More lessons, whose windows may stand in stories, but which are not asked.
    """

    def __init__(
        self,
        stage: Stage,
        model: SleepForCausalLM,
        place: int,
        lessons: list[Lesson],
        exchanges: Exchanges,
        seed: int,
        autocast: torch.dtype | None = None,
        texts: Sequence[list[Read]] = (),
        plain: Sequence[Plain] = (),
        others: Sequence[Lesson] = (),
    ):
        self.stage, self.model, self.place, self.lessons = stage, model, place, lessons
        self.exchanges, self.seed, self.autocast, self.texts, self.plain = exchanges, seed, autocast, texts, plain
        told = [*lessons, *others]
        self.others = [*told, *among(told, [Lesson(windows, [], {}) for windows in texts], stage.natural)]
        self.memory: RecallMemoryLayer = model.model.layers[place]
        self.skipped = 0
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS, device=self.embeddings.device))
        self.optimizer = torch.optim.AdamW(self.groups(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def besides(self) -> dict[str, nn.Parameter]:
        """What it learns besides the memory."""
        return {"sharpness": self.sharpness}

    def extra(self) -> dict[str, torch.Tensor]:
        """The same, to go on."""
        return {name: parameter.detach().clone() for name, parameter in self.besides().items()}

    def resume(self, saved: dict) -> None:
        """Go on from `{"optimizer": ..., **extra()}`."""
        self.optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for name, parameter in self.besides().items():
                parameter.copy_(saved[name])

    def groups(self) -> list[dict]:
        """Parameters to learn, with the `share` of the learning rate that each has."""
        raise NotImplementedError

    def losses(self, number: int, rng: random.Random) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """Losses of one step, to be added up, with what is to be told of each."""
        raise NotImplementedError

    def step(self, number: int, progress: float) -> dict[str, float]:
        """Learn from step `number`; `progress` from 0 to 1 says how far the stage is, by which the rate falls."""
        rng = random.Random(f"{type(self).__name__}/{self.seed}/{number}")
        rate = self.stage.learning_rate * min(1, (number + 1) / 10) * max(0.05, math.cos(math.pi / 2 * progress))
        told: dict[str, float] = {}
        for loss, facts in self.losses(number, rng):
            loss.backward()
            told |= facts
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        is_finite = bool(nn.utils.clip_grad_norm_(parameters, 1.0).isfinite())
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._count_skipped(number, is_finite)
        return told

    def _count_skipped(self, number: int, is_finite: bool) -> None:
        """A step now and then may be left out; where none is made, nothing is learned, and that must be said."""
        self.skipped = 0 if is_finite else self.skipped + 1
        if not is_finite:
            logger.warning(f"Step {number} is left out: its gradients are not finite.")
        if self.skipped == MOST_SKIPPED:
            raise FloatingPointError(
                f"The gradients of {MOST_SKIPPED} steps one behind the other, up to step {number}, were not finite: "
                "teach in another dtype, or with a lower `learning_rate` of the stage."
            )

    def stories(self, rng: random.Random) -> Told:
        """Lessons, and what is written of their stories."""
        windows = rng.randint(*self.stage.windows)
        part_ways(rng)  # with stories of one length, so that no process waits for another
        number = math.ceil(self.stage.stories / number_of_processes())
        chosen = rng.sample(self.lessons, min(number, len(self.lessons)))
        chosen = [swap(x, rng, self.exchanges, self.stage.swaps, self.stage.unspaced) for x in chosen]
        windows = max(windows, *(len(x.story) for x in chosen))
        stories = [story_of(x, self.others, windows, rng) for x in chosen]
        shortest = min(map(len, stories))  # where few lessons can stand beside one another
        if any(len(story) != shortest for story in stories):
            stories = [[(x, i) for i in range(len(x.story))] for x in chosen]
        tensors = story_tensors(stories, self.embeddings, self.memory.v_proj.weight.dtype)
        return Told(chosen, stories, *written_at_once(self.memory, tensors))

    def slept_over(
        self, S: torch.Tensor, beta: torch.Tensor, rows: list[int], asked: list[Asked]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """S as each question finds it, of the stories at `rows`, and the mean beta of all that was written."""
        S, more = asleep_before(self.memory, S[rows], asked, self.embeddings)
        return S, torch.cat([x.flatten() for x in (beta, *more)]).mean()

    def asking(self, asked: Sequence[Asked]) -> tuple[list[list[Sought]], torch.Tensor, torch.Tensor]:
        """Tokens of the values that are asked for, the queries that seek them, and which are any."""
        values = [[sought for sought in x.sought() if sought.kind == "value"] for x in asked]
        places = [[sought.column for sought in value] for value in values]
        return values, *queries_at(self.memory, [x.read for x in asked], places)

    def nearest(
        self, told: Told, rows: Sequence[int], asked: Sequence[Asked], values: list[list[Sought]], query: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of keys, and how many of those that are sought are the nearest."""
        scores, own = self.nearness(told, rows, asked, values, query)
        if not len(own):
            return scores.sum(), {}
        return F.cross_entropy(scores, own), {"nearest": (scores.argmax(-1) == own).float().mean().item()}

    def nearness(
        self, told: Told, rows: Sequence[int], asked: Sequence[Asked], values: list[list[Sought]], query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How near the queries of values are to the keys of what was written of their stories.

        What S gives is a sum over all keys, so that its loss says little of the single key that is mistaken for
        another; this one says it (InfoNCE, arXiv 1807.03748, with the story's other keys as negatives).

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor]
            (queries, most keys), -inf where there is no key or one of the same token elsewhere; and the number of the
            key that is sought, (queries,). Values that were not written, or told in other tokens, are left out.
        """
        keys, length, sought = told.keys, told.beta.shape[-1], []
        for number, (row, x, value) in enumerate(zip(rows, asked, values, strict=True)):
            lesson = told.lessons[row]
            window_of = {i: window for window, (other, i) in enumerate(told.stories[row]) if other is lesson}
            places = lesson.places(x.question)
            if len(places) == len(x.value):
                places = places[len(places) - len(value) :]
                sought += [(number, i, row, window_of[w] * length + at) for i, (w, at) in enumerate(places)]
        number, i, row, place = torch.tensor(sought, device=query.device).view(-1, 4).unbind(1)
        tokens = told_tokens(told.stories).to(query.device)
        is_own = (keys.place[row] == place.unsqueeze(1)) & keys.is_any[row]
        is_same = tokens[row].gather(1, keys.place[row]) == tokens[row, place].unsqueeze(1)
        key, query = F.normalize(keys.key, dim=-1), F.normalize(query[number, i], dim=-1)
        scores = torch.cat([query[row == story] @ key[story].T for story in range(len(key))])
        scores = (self.sharpness.exp() * scores).masked_fill(~keys.is_any[row] | (is_same & ~is_own), -torch.inf)
        is_there = is_own.any(1)
        return scores[is_there], is_own[is_there].int().argmax(1)

    @property
    def embeddings(self) -> torch.Tensor:
        return self.model.model.embed_tokens.weight


class Alone(Course):
    """Stage 1: the memory by itself."""

    def __init__(self, *args, **options):
        embeddings = args[1].model.embed_tokens.weight
        self.scale = nn.Parameter(torch.tensor(SCALE, device=embeddings.device))
        super().__init__(*args, **options)
        known = {i for x in self.lessons for read in x.story for i in read.ids}
        known |= {i for x in self.lessons for asked in x.asked for i in asked.answer.ids}
        known |= set(itertools.chain(*self.exchanges.alike.values()))
        self.words = torch.tensor(sorted(known), device=embeddings.device)
        self.number_of = torch.full((len(embeddings),), -1, device=embeddings.device)
        self.number_of[self.words] = torch.arange(len(self.words), device=embeddings.device)
        with torch.no_grad():
            self.codes = F.normalize(self.memory.v_proj(embeddings[self.words]).float(), dim=-1)

    def groups(self) -> list[dict]:
        own = ("v_proj", "o_proj", "g_proj")
        parameters = [p for name, p in self.memory.named_parameters() if not name.startswith(own)]
        return [dict(params=[*parameters, *self.besides().values()], share=1.0)]

    def besides(self):
        return {"scale": self.scale, **super().besides()}

    def losses(self, number, rng):
        told = self.stories(rng)
        rows, asked = zip(*((row, x) for row, lesson in enumerate(told.lessons) for x in lesson.asked))
        values, query, is_place = self.asking(asked)
        found, beta = self.recalled(told, rows, asked, query)
        found = found[is_place]
        targets = torch.tensor([sought.token for value in values for sought in value], device=found.device)
        scores = self.scale.exp() * (found.float() / found.shape[-1] ** 0.5) @ self.codes.T
        targets = self.number_of[targets]
        firsts = torch.tensor([i == 0 for value in values for i in range(len(value))], device=found.device)
        loss = F.cross_entropy(scores, targets)
        right = (scores.argmax(-1) == targets)[firsts].float().mean()
        facts = dict(loss=loss.item(), recall=right.item(), beta=beta.item())
        loss = loss + self.stage.sparse * beta
        if self.stage.nearest:
            nearest, share = self.nearest(told, rows, asked, values, query)
            loss, facts = loss + self.stage.nearest * nearest, facts | share
        yield loss, facts

    def recalled(
        self, told: Told, rows: Sequence[int], asked: Sequence[Asked], query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What S gives of the queries of each question, (questions, most, value_dim), and the mean beta of all that was
        written. Questions of one story read one S, as a copy for each would cost more than all that is computed with
        it; only those that have filled a window themselves have their own.
        """
        cut = [number for number, x in enumerate(asked) if x.before]
        S, beta = self.slept_over(told.S, told.beta, [rows[number] for number in cut], [asked[i] for i in cut])
        parts, order = [recall(query[cut], S)], cut
        for row in range(len(told.S)):
            own = [number for number, x in enumerate(asked) if rows[number] == row and not x.before]
            found = recall(query[own].flatten(0, 1).unsqueeze(0), told.S[row : row + 1])
            parts.append(found.view(len(own), *parts[0].shape[1:]))
            order = order + own
        return torch.cat(parts)[torch.tensor(order, device=query.device).argsort()], beta


class ThroughLayers(Course):
    """Stage 2: through the layers behind the memory."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.head = self.model.lm_head
        if self.autocast:  # cast once: at every call it would take longer than what is computed with it
            self.head = copy.deepcopy(self.head).to(self.autocast)

    def groups(self) -> list[dict]:
        reads_or_chooses = ("o_proj", "g_proj", "b_proj")
        named = list(self.memory.named_parameters())
        return [
            dict(params=[p for name, p in named if name.startswith(reads_or_chooses)], share=1.0),
            dict(params=[p for name, p in named if not name.startswith(reads_or_chooses)], share=self.stage.rest),
            dict(params=[*self.besides().values()], share=1.0),
        ]

    def logits(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """(..., vocabulary), in float32."""
        with computing_in(self.autocast, last_hidden_state.device):
            return self.head(last_hidden_state).float()

    def losses(self, number, rng):
        yield self.answers(rng)
        if self.texts and self.stage.text and number % 2 == 0:
            yield self.text(rng)

    def answers(self, rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of answers, of what follows them, and of what is to stay as it was."""
        stage = self.stage
        story = self.stories(rng)
        rows, asked = zip(
            *(
                (row, x)
                for row, y in enumerate(story.lessons)
                for x in rng.sample(y.asked, min(stage.questions, len(y.asked)))
            )
        )
        S, beta = self.slept_over(story.S, story.beta, list(rows), asked)
        plain = [rng.choice(self.plain) for _ in story.lessons] if self.plain and stage.everyday else []
        if plain:  # each behind one of the stories
            S = torch.cat([S, story.S])
        reads, begins = [x.read for x in (*asked, *plain)], answer_begins([*asked, *plain])
        through = read_through(self.model, self.place, S, reads, begins, self.autocast)

        places: dict[str, list[tuple[int, int]]] = {"value": [], "end": [], "begin": [], "keep": [], "plain": []}
        targets: dict[str, list[int]] = {"value": [], "end": [], "begin": []}
        firsts = []
        for row, x in enumerate(asked):
            sought = [one for one in x.sought() if not one.given]
            labelled = {one.column for one in sought}
            for one in sought:
                places[one.kind].append((row, one.column - through.begins[row]))
                targets[one.kind].append(one.token)
            firsts += [i == 0 for i in range(sum(one.kind == "value" for one in sought))]
            others = [at for at in range(begins[row], len(x.read.ids) - 1) if at not in labelled]
            for at in rng.sample(others, min(KEPT_TOKENS, len(others))):
                places["keep"].append((row, at))
        for row, x in enumerate(plain, len(asked)):
            later = range(x.begin, len(x.read.ids) - 1)
            columns = [x.begin - 1, *rng.sample(later, min(PLAIN_TOKENS - 1, len(later)))]
            places["plain"] += [(row, at) for at in columns]
        told, total = {}, 0.0
        for kind, weight in (("value", 1.0), ("end", stage.ends), ("begin", stage.begins)):
            if not places[kind]:
                continue
            logits = self.logits(at_places(through.last_hidden_state, places[kind]))
            wanted = torch.tensor(targets[kind], device=logits.device)
            loss = F.cross_entropy(logits, wanted)
            total = total + weight * loss
            told[kind] = loss.item()
            if kind == "value":
                right = logits.argmax(-1) == wanted
                told["recall"] = right[torch.tensor(firsts, device=right.device)].float().mean().item()
        for kind, weight in (("keep", stage.keeps), ("plain", stage.everyday)):
            if not places[kind] or not weight:
                continue
            ours = at_places(through.last_hidden_state, [(row, at - through.begins[row]) for row, at in places[kind]])
            before = torch.stack([reads[row].last_hidden_state[at] for row, at in places[kind]]).to(ours)
            loss = F.kl_div(
                self.logits(ours).log_softmax(-1), self.logits(before).log_softmax(-1), log_target=True,
                reduction="batchmean",
            )  # fmt: skip
            total = total + weight * loss
            told[kind] = loss.item()
        told |= dict(loss=told.pop("value"), beta=beta.item())
        if stage.nearest:
            loss, share = self.nearest(story, rows, asked, *self.asking(asked)[:2])
            total, told = total + stage.nearest * loss, told | share
        return total + stage.sparse * beta, told

    def text(self, rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of some tokens of a natural text behind its windows before, and stories: S is mostly full."""
        windows = rng.choice(self.texts)
        number = rng.randrange(1, len(windows))
        read = windows[number]
        more = rng.randint(0, max(0, self.stage.windows[1] - number))
        stories = [rng.choice(self.others).story for _ in range(more)]
        reads = [*map(rng.choice, stories), *windows[:number]]
        S, beta = written(self.memory, window_tensors([reads], self.embeddings, self.memory.v_proj.weight.dtype))
        beta = beta[:, -number:]
        begin = rng.randrange(max(1, len(read.ids) - TEXT_TOKENS))
        end = begin + TEXT_TOKENS
        known = {name: getattr(read, name)[:end] for name in ("hidden_states", "key_hidden_states")}
        part = replace(read, ids=read.ids[:end], **known)
        through = read_through(self.model, self.place, S, [part], [begin], self.autocast)
        at = [i for i in range(begin, len(part.ids)) if i + 1 < len(read.ids)]
        logits = self.logits(through.last_hidden_state[0, [i - through.begins[0] for i in at]])
        wanted = torch.tensor([read.ids[i + 1] for i in at], device=logits.device)
        loss = F.cross_entropy(logits, wanted)
        with torch.no_grad():
            before = F.cross_entropy(self.logits(read.last_hidden_state[at].to(logits)), wanted)
        told = dict(text=loss.item() - before.item(), text_beta=beta.mean().item())
        return 2 * (self.stage.text * loss + self.stage.sparse * beta.mean()), told


def among(lessons: list[Lesson], more: list[Lesson], share: float) -> list[Lesson]:
    """`more`, as often as makes it this share of what is drawn from both."""
    if not more or not share:
        return []
    return more * max(1, round(share / (1 - share) * len(lessons) / len(more)))


def at_places(hidden_states: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """(places, hidden_size) of (rows, length, hidden_size), at these rows and columns."""
    rows, columns = zip(*places, strict=True)
    return hidden_states[list(rows), list(columns)]
