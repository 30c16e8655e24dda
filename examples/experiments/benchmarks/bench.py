"""How everything here is measured: ratios within one run, of sides that take turns.

Notable:
- a ratio compares two sides within one run, measured in turn and round by round; it is the median over rounds of
  their quotient, given with its quartiles. So a slow or busy machine widens the quartiles and does not shift the ratio
- with one thread on a CPU the clock counts this process's CPU time, so that other programs do not count; otherwise it
  is the wall's, with the accelerator waited for
- a target that is missed is called so
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm


def quartiles(values) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    return tuple(np.quantile(np.asarray(values), (0.25, 0.5, 0.75)).tolist())


def short(number: float) -> str:
    """Three digits, without an exponent where there is room for it."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def named(context: int) -> str:
    """A number of tokens as it is spoken of: 1k, 64k, 1M."""
    for size, suffix in ((2**20, "M"), (2**10, "k")):
        if context % size == 0:
            return f"{context // size}{suffix}"
    return str(context)


@dataclass
class Row:
    """One comparison; `target` is the largest ratio wanted, None for a comparison without one."""

    measurement: str
    setting: str
    ratio: float
    target: float | None = None
    at_least: bool = False  # then `target` is the smallest ratio wanted
    quartiles: tuple[float, float] | None = None  # None where nothing varies from round to round
    absolute: str = ""
    details: dict = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Whether the target is met, judged on the ratio as measured, not as rounded."""
        if self.target is None:
            return "–"
        met = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return "met" if met else "**not met**"

    @classmethod
    def read(cls, saved: dict) -> "Row":
        """A row as it was saved, with its verdict."""
        return cls(**{name: value for name, value in saved.items() if name != "verdict"})

    @property
    def goal(self) -> str:
        """The target as the table shows it."""
        return "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:.2f}"


@dataclass
class Result:
    """What a section has found: comparisons, and the numbers that its tables and plots show."""

    rows: list[Row]
    data: dict


class Rounds:
    """Seconds of every side in every round."""

    def __init__(self, rounds: list[dict[str, float]]):
        self.rounds = rounds
        self.seconds = {side: np.array([seconds[side] for seconds in rounds]) for side in rounds[0]}

    def __add__(self, other: "Rounds") -> "Rounds":
        """The rounds of both, of the sides that both have."""
        common = self.seconds.keys() & other.seconds.keys()
        return Rounds(
            [{side: found[side] for side in found if side in common} for found in self.rounds + other.rounds]
        )

    def ms(self, side: str) -> dict:
        """Median and quartiles of a side, in milliseconds."""
        low, median, high = quartiles(1000 * self.seconds[side])
        return {"median": median, "quartiles": (low, high)}

    def ratio(self, one: str, other: str, factor: float = 1.0, invert: bool = False) -> dict:
        """
        `ratio`, `quartiles`, `absolute` and `details` of a [`Row`]: `one` over `factor` times `other`.

        With `invert`, rates are compared instead of times.
        """
        first, second = self.seconds[one], factor * self.seconds[other]
        low, ratio, high = quartiles(second / first if invert else first / second)
        ms = [1000 * float(np.median(x)) for x in (first, second)]
        return {
            "ratio": ratio,
            "quartiles": (low, high),
            "absolute": f"{short(ms[0])} over {short(ms[1])} ms",
            "details": {"rounds": len(first), "ms": ms},
        }


class Bench:
    """Sizes, device, clock, and the rounds of a comparison."""

    def __init__(self, quick: bool = False, device: str = "cpu", threads: int = 1):
        self.quick, self.device, self.threads = quick, device, threads
        self.window_size = 16 if quick else 128
        self.width = 1  # times the hidden size and heads of the models
        self.dtype = torch.float32  # of their parameters
        # At least so many rounds, and more until so many seconds are over.
        self.min_rounds, self.seconds = (3, 0.0) if quick else (5, 2.5)

    def tokens(self, vocab_size: int, batch: int, length: int) -> torch.Tensor:
        """Random ids, (batch, length)."""
        return torch.randint(1, vocab_size, (batch, length), device=self.device)

    def clock(self) -> float:
        """Seconds; only differences mean something."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" and self.threads == 1 else time.perf_counter()

    def timed(self, function: Callable, *args, **kwargs) -> float:
        """Seconds that a call takes."""
        began = self.clock()
        function(*args, **kwargs)
        return self.clock() - began

    def in_turn(self, sides: dict[str, Callable[[], float | dict]], label: str, min_rounds: int = 0) -> Rounds:
        """
        Let all sides give their seconds (or a dict of several), round by round; who begins alternates.

        The first round is for kernels and caches to warm up, and does not count. `min_rounds` instead of the usual
        number where a round takes long.
        """
        min_rounds = min_rounds or self.min_rounds
        rounds, began = [], None
        with tqdm(desc=f"   {label}", unit="round", leave=False) as bar:
            while began is None or len(rounds) < min_rounds or time.perf_counter() - began < self.seconds:
                shift = bar.n % len(sides)
                names = list(sides)[shift:] + list(sides)[:shift]
                found = {}
                for name in names:
                    seconds = sides[name]()
                    found |= seconds if isinstance(seconds, dict) else {name: seconds}
                if began is None:
                    began = time.perf_counter()
                else:
                    rounds.append(found)
                bar.update()
        return Rounds(rounds)
