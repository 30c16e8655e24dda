"""Texts for two curves: how recall falls with sleeps, and with how many facts S holds.

for sleeps, asked in over_sleeps("eval", 0, chat, 64, questions=50):  ...
for told, asked in over_facts("known", 0, chat, 64, questions=50):    ...
"""

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

from .facts import Chat, Unit, unit


SLEEPS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
FACTS = (10, 20, 50, 100, 200, 500, 1000)
TOKENS_OF_A_FACT = 24  # with what stands around it


def over_sleeps(
    split: str, seed: int, chat: Chat, window_size: int, questions: int, sleeps: Sequence[int] = SLEEPS
) -> Iterator[tuple[int, list[Unit]]]:
    """
    For each number of sleeps, units whose every question is asked exactly so many sleeps after its fact.

    Facts stand in one window, filler in all that follow. The facts are the same at every distance.
    """
    for count in sleeps:
        units, index = [], 0
        while (missing := questions - sum(len(drawn.questions) for drawn in units)) > 0:
            facts = max(1, window_size // TOKENS_OF_A_FACT)
            drawn = unit(split, seed, index, chat, window_size, windows=1, facts=facts, between=count - 1)
            units.append(dataclasses.replace(drawn, questions=drawn.questions[:missing]))
            index += 1
        yield count, units


def over_facts(
    split: str, seed: int, chat: Chat, window_size: int, questions: int, facts: Sequence[int] = FACTS
) -> Iterator[tuple[int, list[Unit]]]:
    """
    For each number of facts, units that tell so many, one after the other with hardly any filler.

    Of a long story only some questions are asked, drawn from all of it; of short stories there are several.
    """
    for count in facts:
        units, index = [], 0
        while (missing := questions - sum(len(drawn.questions) for drawn in units)) > 0:
            windows = math.ceil(count * TOKENS_OF_A_FACT / window_size)
            drawn = unit(split, seed, index, chat, window_size, windows=windows, facts=count)
            some = random.Random(f"asked/{split}/{seed}/{index}").sample(drawn.questions, len(drawn.questions))[
                :missing
            ]
            units.append(dataclasses.replace(drawn, questions=some))
            index += 1
        yield count, units
