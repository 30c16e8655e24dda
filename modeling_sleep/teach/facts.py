"""Texts in which facts are told among other things, and questions for them behind one sleep or several.

    for unit in units("train", seed=0, tokenizer=tokenizer, window_size=64):
        unit.story              windows of exactly L tokens
        unit.questions          each with its prompt, its answer begun in three ways, and where its value was told

What is notable:
- `python -m modeling_sleep.teach.facts --tokenizer FOLDER --show 5` prints units for a human to read
- four splits: "train"; "known", where patterns are those of training, names and values the evaluation's own; "eval",
  where all three are its own; "joined", which are as unknown, and answers join two facts (`patterns_*.py`, `names.py`)
- the same split, seed and index are the same facts everywhere, and the same text where the same versions of Python and
  its packages are installed: filler is drawn apart from the facts (`filler.py`)
- no fact crosses the end of a window, nor does a question with its answer, unless the unit is `cut`; other text does
- facts of a text resemble one another: some share their person, some their pattern; some are told anew with another
  value, and the last word counts
"""

import argparse
import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .chat import Answer, Chat, gap
from .filler import SOURCES, stream
from .names import TRAITS, draw, rivals
from .patterns import EVAL, JOINED, SLOT, TRAIN, Pattern, kind_of


PATTERNS = {"train": TRAIN, "known": TRAIN, "eval": EVAL, "joined": JOINED}
BEGINNINGS = ("question", "general", "own")  # the question's words, "The answer is", or the model's own
GENERAL = "The answer is"
NOTED = ("I see.", "Noted.", "Thank you for telling me.", "I will keep that in mind.", "All right.")
AMID = ("other text", "fact", "answer")  # what may stand before a question in its window
SHARED = 0.3  # facts that share their person with another, and those that share their pattern
CHANGED = 0.12  # facts that are told again with another value
BY_ASSISTANT = 0.12  # facts told by the assistant, where either may say it
CANDIDATES = 10
DISTINCT = 20  # facts of a text up to which no two have the same value of the same thing
ATTEMPTS = 200  # to draw a fact that is like no other of its text


@dataclasses.dataclass(frozen=True)
class Telling:
    """A sentence that tells a fact: where its values stand in it, by slot, and whether the assistant says it."""

    text: str
    spans: dict[str, tuple[int, int]]
    assistant: bool


@dataclasses.dataclass(frozen=True)
class Fact:
    """Something told once, or told again when it has changed; `slots` as it was told last."""

    pattern: Pattern
    slots: dict[str, str]
    before: dict[str, str] | None
    tellings: tuple[Telling, ...]
    asked: tuple[tuple[str, str], ...]

    def keys(self, distinct: bool) -> set:
        """What no other fact of a text may have: what is asked, of whom; if `distinct`, the same of something else."""
        about = self.slots.get("trait", self.pattern.about)
        keys = set()
        for question, answer in self.asked:
            of = tuple(self.slots[slot] for slot in sorted(set(SLOT.findall(question)) - {"trait"}))
            keys |= {question_of(question, self.slots), (about, of)}
            if distinct:
                keys.add((about, "is", self.slots[value_slot(answer)]))
        return keys

    @property
    def people(self) -> list[str]:
        return [name for slot, name in self.slots.items() if kind_of(slot) == "person"]


@dataclasses.dataclass(frozen=True)
class Question:
    """
    A question for a fact of a story.

    Parameters
    ----------
    text : str
    prompt : list of int
        Tokens behind the story, up to where the assistant begins: of one window with the answer, or of two if it is
        `cut`.
    behind : str
        What stands in this window before the question: one of `AMID`, or "nothing".
    cut : str
        What the end of a window cuts in two: the "fact", the "question" (or its answer, up to the value), "both", or
        "nothing".
    answers : dict of str to Answer
        By what the answer begins with, one of `BEGINNINGS`.
    value, kind, pattern : str
    window : int
        The window that told the fact last.
    told : (int, int)
        Where in it the tokens of the value stand, counted on where they go on in the next window. A space before it
        that is a token of its own is one of them.
    windows : int
        That are full when the answer begins.
    candidates : tuple of str
        Values of its kind, the right one first, then those that the story tells of.
    """

    text: str
    prompt: list[int]
    behind: str
    answers: dict[str, Answer]
    value: str
    kind: str
    pattern: str
    window: int
    told: tuple[int, int]
    windows: int
    candidates: tuple[str, ...]
    cut: str = "nothing"

    @property
    def since(self) -> int:
        """Sleeps between the fact and its question."""
        return self.windows - self.window


@dataclasses.dataclass(frozen=True)
class Unit:
    """A story, in windows of exactly L tokens, and the questions for it."""

    split: str
    seed: int
    index: int
    story: list[list[int]]
    questions: list[Question]


def units(split: str, seed: int, tokenizer: PreTrainedTokenizerBase, window_size: int, **options) -> Iterator[Unit]:
    """Units without end, one after the other. See `unit` for the options."""
    chat, index = Chat(tokenizer), 0
    while True:
        yield unit(split, seed, index, chat, window_size, **options)
        index += 1


def unit(
    split: str,
    seed: int,
    index: int,
    chat: Chat,
    window_size: int,
    windows: int = 2,
    facts: int = 7,
    between: int = 0,
    amid: float = 0.0,
    cut: bool = False,
    sources: Sequence[str] = SOURCES,
) -> Unit:
    """
    One unit: the same for the same arguments.

    Parameters
    ----------
    split : str
        One of `PATTERNS`.
    seed, index : int
    chat : Chat
    window_size : int
        L.
    windows, facts : int
        Windows that tell facts, and how many of them; those that find no room are left out.
    between : int
        Windows of filler behind them, before the questions.
    amid : float
        Share of the questions that stand behind other text in their window: some that goes on from the story, a fact
        of it told anew, or another question with its answer.
    cut : bool
        Whether windows end anywhere, so that they may cut facts, questions and answers in two.
    sources : sequence of str
        Of the filler.

    Raises
    ------
    ValueError
        If the split is unknown, a window cannot hold a sentence, or no more facts can be told apart.
    """
    if split not in PATTERNS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(PATTERNS)}.")
    if window_size < (least := len(chat.ids(chat.opening)) + 16):
        raise ValueError(
            f"Windows of {window_size} tokens are too short for this chat template; take {least} or more."
        )
    rng = random.Random(f"facts/{split}/{seed}/{index}")
    drawn = draw_facts(rng, split, facts)
    sizes = [window_size] * (windows + between)
    if cut:  # more other text in the first window moves the ends of all
        sizes[0] += random.Random(f"cut/{split}/{seed}/{index}").randrange(1, window_size)
    story = Story(chat, sizes, random.Random(f"filler/{split}/{seed}/{index}"), split, sources)
    told = story.tell(rng, drawn, windows)
    asked = [(fact, q) for fact in told for q in ask(rng, split, chat, window_size, fact, told, story)]
    rng.shuffle(asked)
    whole, rest = story.in_windows_of(window_size)
    questions, drawn_amid = [], random.Random(f"amid/{split}/{seed}/{index}")
    for fact, question in asked:
        if drawn_amid.random() < amid:
            question = amid_others(drawn_amid, chat, window_size, fact, question, asked, story)
        question = in_windows(chat, window_size, fact, question, story, rest)
        if question.since > 0:
            questions.append(question)
    return Unit(split, seed, index, whole, questions)


def draw_facts(rng: random.Random, split: str, count: int) -> list[Fact]:
    """So many facts of a split, none of which answers the question for another."""
    facts, taken, people = [], set(), []
    for _ in range(ATTEMPTS * count):
        if len(facts) == count:
            break
        pattern = rng.choice(facts).pattern if facts and rng.random() < SHARED else rng.choice(PATTERNS[split])
        fact = draw_fact(rng, split, pattern, rng.choice(people) if people and rng.random() < SHARED else None)
        keys = fact.keys(distinct=count <= DISTINCT)
        if keys.isdisjoint(taken) and not any(confusable(new, old) for new in fact.people for old in people):
            facts.append(fact)
            taken |= keys
            people += [name for name in fact.people if name not in people]
    else:
        raise ValueError(
            f"Only {len(facts)} of {count} facts of the split {split!r} can be told apart; ask for fewer."
        )
    return facts


def draw_fact(rng: random.Random, split: str, pattern: Pattern, who: str | None = None) -> Fact:
    """A fact of this pattern; about `who`, if it is about a person."""
    slots = fill(rng, split, pattern, {})
    people = [slot for slot in slots if kind_of(slot) == "person"]
    if who and people and who not in slots.values():
        slots[rng.choice(people)] = who
    asked = {}  # one question for each value that may be asked for
    for question, answer in rng.sample(pattern.asked, len(pattern.asked)):
        asked.setdefault(value_slot(answer), (question, answer))
    sentence = rng.choice(pattern.told + pattern.assistant)
    by_assistant = sentence in pattern.assistant or (pattern.impersonal and rng.random() < BY_ASSISTANT)
    tellings, before = [Telling(*render(sentence, slots), by_assistant)], None
    if rng.random() < CHANGED and not by_assistant:
        before = slots
        kept = {slot: slots[slot] for slot in SLOT.findall("".join(q for q, _ in asked.values())) if slot not in asked}
        while any(slots[slot] == before[slot] for slot in asked):
            slots = fill(rng, split, pattern, kept)
        sentence = rng.choice(pattern.later or ["Correction:" + (" ", "\n")["\n" in sentence] + sentence])
        tellings.append(Telling(*render(sentence, slots), False))
    return Fact(pattern, slots, before, tuple(tellings), tuple(asked.values()))


def fill(rng: random.Random, split: str, pattern: Pattern, slots: dict[str, str]) -> dict[str, str]:
    """Words for the slots that have none yet; two slots of a kind differ."""
    slots, names = dict(slots), "train" if split == "train" else "eval"
    for slot in pattern.slots:
        while slot not in slots:
            kind = kind_of(slot)
            if slot in pattern.words:
                word = rng.choice(pattern.words[slot])
            elif kind == "trait":
                word = rng.choice(list(TRAITS["eval" if split == "eval" else "train"]))
            else:
                word = draw(value_kind(slot, slots), rng, names)
            if not any(kind_of(other) == kind and alike(word, taken) for other, taken in slots.items()):
                slots[slot] = word
    return slots


def alike(one: str, other: str) -> bool:
    """Whether one of two names is a part of the other, word by word."""
    one, other = set(one.lower().split()), set(other.lower().split())
    return one <= other or other <= one


def confusable(one: str, other: str) -> bool:
    """Whether two names are of different people, but one does not say which."""
    return one != other and alike(one, other)


def mentions(text: str, name: str) -> bool:
    """Whether a text has a name in it, as words."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def render(sentence: str, slots: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A sentence with its slots filled, and from which character to which each stands, its last mention counting."""
    text, spans, place = "", {}, 0
    for match in SLOT.finditer(sentence):
        text += sentence[place : match.start()]
        spans[match[1]] = (len(text), len(text) + len(slots[match[1]]))
        text, place = text + slots[match[1]], match.end()
    return text + sentence[place:], spans


def question_of(question: str, slots: dict[str, str]) -> str:
    return render(question, slots)[0]


def value_kind(slot: str, slots: dict[str, str]) -> str:
    """The kind of what a slot holds; `{value}` holds what its trait says."""
    kind = kind_of(slot)
    return (TRAITS["train"] | TRAITS["eval"])[slots["trait"]] if kind == "value" else kind


def value_slot(answer: str) -> str:
    """The slot in brackets."""
    return answer[answer.index("[") + 2 : answer.index("]") - 1]


class Story:
    """
    Windows of so many tokens each that are filled one after the other. `windows` are their tokens, `places` where each
    value stands.
    """

    def __init__(self, chat: Chat, sizes: Sequence[int], rng: random.Random, split: str, sources: Sequence[str]):
        self.chat, self.sizes, self.rng = chat, sizes, rng
        self.filler = stream(rng, "train" if split == "train" else "eval", sources)
        self.windows: list[list[int]] = []
        self.places: dict[tuple[int, int], tuple[int, list[tuple[int, int]], int]] = {}
        self.ended, self.rest = "", []
        self.starts = (chat.opening, chat.user, chat.to_user)  # behind which the user has not said a word yet

    def tell(self, rng: random.Random, facts: list[Fact], windows: int) -> list[Fact]:
        """Fills all windows, tells the facts in the first so many of them, and returns those that found room."""
        opening = self.chat.opening if rng.random() < 0.5 else self.chat.user
        room = list(self.sizes[:windows])
        room[0] -= len(self.chat.ids(opening))
        plan, told = [[] for _ in range(windows)], []
        for fact in facts:
            needs = [self.needs(telling) for telling in fact.tellings]
            chosen = sorted(rng.randrange(windows) for _ in needs)
            order = [chosen] + [[w] * len(needs) for w in rng.sample(range(windows), windows)]
            for places in order:
                left = [r - sum(n for n, place in zip(needs, places) if place == w) for w, r in enumerate(room)]
                if min(left) >= 0:
                    room = left
                    for telling, place in zip(fact.tellings, places):
                        plan[place].append((fact, telling))
                    told.append(fact)
                    break
        for window in range(len(self.sizes)):
            items = plan[window] if window < windows else []
            rng.shuffle(items)
            items.sort(key=lambda item: item[0].tellings.index(item[1]))
            self.write(window, items, opening if window == 0 else "")
        return told

    def needs(self, telling: Telling) -> int:
        """The most tokens that a sentence may take."""
        return max(len(self.piece(telling, ended)[0]) for ended in (self.chat.user, ".", "\n"))

    def piece(self, telling: Telling, ended: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a sentence behind a text that ended so, in its turn, and which characters of it they are."""
        before = behind = ""
        if telling.assistant:
            before = ("Go on." if ended in self.starts else "") + self.chat.to_assistant
            behind = self.chat.to_user
        ended = before or ended
        lead = gap(ended)
        if lead and "\n" in telling.text:
            lead = "\n"  # lines begin on a line of their own
        ids, offsets = self.chat.encode(lead + telling.text, ended[-1:] or "\n")
        offsets = [(first - len(lead), last - len(lead)) for first, last in offsets]
        before, behind = self.chat.ids(before), self.chat.ids(behind)
        return [*before, *ids, *behind], [(-1, -1)] * len(before) + offsets + [(-1, -1)] * len(behind)

    def write(self, window: int, items: list[tuple[Fact, Telling]], opening: str) -> None:
        """One window: the rest of the last sentence, then facts with filler before and behind each."""
        size = self.sizes[window]
        needs = [self.needs(telling) for _, telling in items]
        ids = self.chat.ids(opening)
        if opening:
            self.ended = opening
        if self.rest and len(self.rest) <= size - sum(needs):
            ids = list(self.rest)
        self.rest = []
        for number, (fact, telling) in enumerate(items):
            free = size - len(ids) - sum(needs[number:])
            self.fill(ids, len(ids) + int(free * self.rng.random()))
            piece, offsets = self.piece(telling, self.ended)
            self.places[id(fact), id(telling)] = (window, offsets, len(ids))
            ids += piece
            self.ended = self.chat.to_user if telling.assistant else telling.text
        self.fill(ids, size, cut=True)
        self.windows.append(ids)

    def fill(self, ids: list[int], size: int, cut: bool = False) -> None:
        """Filler up to so many tokens; `cut` fills them all, and the next window begins with what remains."""
        misses = 0
        while len(ids) < size and (cut or misses < 3):
            user, _, assistant = next(self.filler).partition(" | ")
            lead = gap(self.ended)
            text = lead + user + (self.chat.to_assistant + assistant + self.chat.to_user if assistant else "")
            piece = self.chat.encode(text, self.ended[-1:] or "\n")[0]
            room = size - len(ids)
            if len(piece) > room and (assistant or not cut):
                misses += 1
                continue
            ids += piece[:room]
            self.rest = piece[room:]
            self.ended = text

    def in_windows_of(self, window_size: int) -> tuple[list[list[int]], list[int]]:
        """The same text in windows of one size, and what is left of it behind them."""
        ids = list(itertools.chain(*self.windows))
        whole = len(ids) // window_size * window_size
        return [ids[i : i + window_size] for i in range(0, whole, window_size)], ids[whole:]

    def begun(self, rng: random.Random, room: int, telling: Telling | None = None) -> list[int]:
        """At most so many tokens with which the window behind the story may begin; the telling is among them."""
        ids = list(self.rest) if len(self.rest) <= room else []
        rest, ended = self.rest, self.ended
        needs = self.needs(telling) if telling else 0
        self.fill(ids, rng.randint(0, max(0, room - needs)))
        if telling and needs <= room - len(ids):
            ids += self.piece(telling, self.ended)[0]
        elif telling:
            ids = []
        self.rest, self.ended = rest, ended
        return ids


def ask(
    rng: random.Random, split: str, chat: Chat, window_size: int, fact: Fact, told: list[Fact], story: Story
) -> list[Question]:
    """The questions for a fact, as far as they and their answers fit into a window."""
    window, offsets, place = story.places[id(fact), id(fact.tellings[-1])]
    ids = story.windows[window][place : place + len(offsets)]
    questions = []
    for question, answer in fact.asked:
        slot = value_slot(answer)
        begin, end = chat.value_at(ids, offsets, *fact.tellings[-1].spans[slot])
        is_spaced = chat.is_space(ids[begin])
        value, kind = fact.slots[slot], value_kind(slot, fact.slots)
        text = question_of(question, fact.slots)
        sentence, spans = render(answer.replace("[", "").replace("]", ""), fact.slots)
        general = f"{GENERAL} {value}.", (len(GENERAL) + 1, len(GENERAL) + 1 + len(value))
        answers = {
            "question": chat.answer(sentence, spans[slot], True, is_spaced),
            "general": chat.answer(*general, True, is_spaced),
            # One beginning that fits every question. Taught to turn the question's words into an answer's, a model
            # begins wordings never met with words that no value fits ("Chris is a", behind which no "lentils" can be).
            "own": chat.answer(*general, False, is_spaced),
        }
        turn = chat.asks + gap(chat.asks) + text + chat.to_assistant
        reply = chat.spoken(rng.choice(NOTED)) + chat.following(text)
        longest = max(len(answer.ids) for answer in answers.values())
        prompts = [chat.ids(reply), chat.ids(turn)][rng.random() < 0.6 :] + [chat.ids(turn)]
        prompt = next((ids for ids in prompts if len(ids) + longest <= window_size), None)
        if prompt is None:
            continue
        near = [fact.before[slot]] if fact.before else []
        near += [
            word
            for other in (fact, *told)
            for key, word in other.slots.items()
            if value_kind(key, other.slots) == kind
        ]
        drawn = rivals(kind, rng, "train" if split == "train" else "eval", {value}, 2 * CANDIDATES)
        candidates = [w for w in dict.fromkeys(near + drawn) if not (alike(w, value) or mentions(text, w))]
        questions.append(
            Question(
                text=text,
                prompt=prompt,
                behind="nothing",
                answers=answers,
                value=value,
                kind=kind,
                pattern=fact.pattern.id,
                window=window,
                told=(place + begin, place + end),
                windows=len(story.sizes),
                candidates=(value, *candidates[: CANDIDATES - 1]),
            )
        )
    return questions


def in_windows(
    chat: Chat, window_size: int, fact: Fact, question: Question, story: Story, rest: list[int]
) -> Question:
    """The question behind the story in windows of one size, which have left `rest` for the one that asks."""
    window, offsets, place = story.places[id(fact), id(fact.tellings[-1])]
    before = sum(story.sizes[:window])
    first, last = (before + i for i in question.told)
    end = sum(story.sizes) + len(question.prompt)
    turn = len(chat.ids(gap(chat.asks) + question.text + chat.to_assistant))
    answered = end + max(answer.value[1] for answer in question.answers.values())
    is_cut = {
        "fact": (before + place) // window_size < (last - 1) // window_size,
        "question": (end - turn) // window_size < (answered - 1) // window_size,
    }
    return dataclasses.replace(
        question,
        prompt=rest + question.prompt,
        cut="both" if all(is_cut.values()) else next((name for name, x in is_cut.items() if x), "nothing"),
        window=first // window_size,
        told=(first % window_size, first % window_size + last - first),
        windows=end // window_size,
    )


def amid_others(
    rng: random.Random,
    chat: Chat,
    window_size: int,
    fact: Fact,
    question: Question,
    asked: list[tuple[Fact, Question]],
    story: Story,
) -> Question:
    """The question behind other text in its window, none of which tells its answer; as it is if nothing fits."""
    room = window_size - max(len(answer.ids) for answer in question.answers.values())
    for behind in rng.sample(AMID, len(AMID)):
        other, another = rng.choice(asked)
        said = other.tellings[-1].text + another.text + another.answers["question"].text
        if behind != "other text" and (other is fact or mentions(said, question.value)):
            continue
        if behind == "answer":
            turn = chat.asks + gap(chat.asks) + another.text + chat.spoken(another.answers["question"].text)
            prompt = chat.ids(turn + chat.following(question.text))
        else:
            telling = other.tellings[-1] if behind == "fact" else None
            before = story.begun(rng, room - len(question.prompt), telling)
            prompt = before and before + question.prompt
        if prompt and len(prompt) <= room:
            return dataclasses.replace(question, prompt=prompt, behind=behind)
    return question


def show(split: str, tokenizer: PreTrainedTokenizerBase, window_size: int, count: int, seed: int) -> None:
    """Prints units for a human to read."""
    for _, shown in zip(range(count), units(split, seed, tokenizer, window_size)):
        print(f"\n=== {split} {shown.index}")
        for window in shown.story:
            print(repr(tokenizer.decode(window)))
        for question in shown.questions:
            print(f"  {question.pattern}, window {question.window}: {question.text}")
            print(f"    {' | '.join(answer.text for answer in question.answers.values())}   {question.candidates}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints texts with facts, and the questions for them.")
    parser.add_argument("--tokenizer", required=True, help="a folder or the name of a model on the Hub")
    parser.add_argument("--split", choices=PATTERNS, default="train")
    parser.add_argument("--window-size", type=int, default=64)
    parser.add_argument("--show", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    show(args.split, AutoTokenizer.from_pretrained(args.tokenizer), args.window_size, args.show, args.seed)
