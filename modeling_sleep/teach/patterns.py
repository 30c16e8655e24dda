r"""How facts are told and asked for. The patterns are data beside this file, in this format:

    lives.left                                                     its name: what it is about, and how it is said
        {person} left {city2} and now lives in {city}.             told so, or as another such line says
        later: {person} has just moved to {city}.                  told so when what was told before has changed
        assistant: ...                                             told by the assistant, not the user
        {thing} is one of car, van, truck                          words for a slot of this pattern alone
        Where does {person} live? -> {person} lives in [{city}].   a question; its answer, with the value in brackets

A slot is named after its kind (`names.py`), with a digit behind it where one kind stands twice. `{trait}` is what a
person has one of (`TRAITS`), `{value}` a value of that kind. `\n` begins a line, `\t` is a tab. Patterns with the same
word before the dot are about the same, so that no text tells two of them about one person.

Lessons of a seed depend on the order of patterns: new ones change them all.
"""

import dataclasses
import re
from pathlib import Path

from .names import LISTS, MADE


SLOT = re.compile(r"{(\w+)}")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """
    One way to tell a fact, in several sentences, and to ask for it.

    Parameters
    ----------
    id : str
    told, later, assistant : tuple of str
        Sentences that tell it: by the user; by the user, when it has changed; by the assistant.
    asked : tuple of (str, str)
        Questions and their answers.
    words : dict of str to tuple of str
        Slots that are this pattern's own, and their words.
    """

    id: str
    told: tuple[str, ...]
    later: tuple[str, ...]
    assistant: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]
    words: dict[str, tuple[str, ...]]

    @property
    def about(self) -> str:
        """What it is about, however it is said."""
        return self.id.partition(".")[0]

    @property
    def slots(self) -> list[str]:
        """All slots, in order of their first mention."""
        return list(
            dict.fromkeys(SLOT.findall("".join((*self.told, *self.later, *self.assistant, *map("".join, self.asked)))))
        )

    @property
    def impersonal(self) -> bool:
        """Whether it means the same, whoever of the two says it."""
        return not re.search(r"\b(I|me|my|we|us|our|you|your)\b", "".join(self.told), re.IGNORECASE)


def parse(text: str) -> tuple[Pattern, ...]:
    """
    Patterns from text in the format above.

    Raises
    ------
    ValueError
        If a pattern has no statement or no question, an answer does not mark its value, a slot is of no kind, or a
        value is one of its own words: then nobody could say what else might have been told.
    """
    return tuple(_parse(block.splitlines()) for block in re.split(r"\n(?=\S)", text.strip()))


def _parse(lines: list[str]) -> Pattern:
    fields, asked, words = {"told": [], "later": [], "assistant": []}, [], {}
    for line in (line.strip().replace(r"\n", "\n").replace(r"\t", "\t") for line in lines[1:]):
        if match := re.fullmatch(r"{(\w+)} is one of (.+)", line):
            words[match[1]] = tuple(match[2].split(", "))
        elif " -> " in line:
            asked.append(tuple(line.split(" -> ")))
        else:
            match = re.match(r"(later|assistant): ", line)
            fields[match[1] if match else "told"].append(line[match.end() :] if match else line)
    pattern = Pattern(lines[0], *map(tuple, fields.values()), tuple(asked), words)
    if not asked or not (pattern.told or pattern.assistant):
        raise ValueError(f"The pattern {pattern.id!r} needs a line that tells its fact and one that asks for it.")
    for _, answer in asked:
        if not re.fullmatch(r"[^][]*\[{\w+}\][^][]*", answer):
            raise ValueError(f"The answer {answer!r} of {pattern.id!r} must have its value, one slot, in brackets.")
        if (slot := SLOT.search(answer.partition("[")[2])[1]) in words:
            raise ValueError(
                f"The value of {answer!r} in {pattern.id!r} must be of a kind of names.py; {slot!r} is its own word."
            )
    for slot in pattern.slots:
        if slot not in words and kind_of(slot) not in {*LISTS, *MADE, "trait", "value"}:
            raise ValueError(
                f"The slot {slot!r} of {pattern.id!r} is neither a kind of names.py nor words of its own."
            )
    return pattern


def kind_of(slot: str) -> str:
    """`city2` holds a city."""
    return slot.rstrip("0123456789")


def read(name: str) -> tuple[Pattern, ...]:
    """The patterns of a file beside this one."""
    return parse((Path(__file__).parent / f"patterns_{name}.txt").read_text(encoding="utf-8"))


TRAIN = read("train")
EVAL = read("eval")  # nothing is trained on these, in any wording
JOINED = read("joined")  # nor on these, whose answers join two facts
