"""A sleep as its caller sees it: how long it may take, what it tells, and the nap on demand."""

import time
from collections.abc import Callable
from numbers import Integral, Real
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache

from .cache_sleep import SleepState, read_state, write_state
from .checks_sleep import check_dtype
from .configuration_sleep import MAX_SLEEP_PASSES
from .distributed_sleep import is_sharded


class Sleep(NamedTuple):
    """
    How long to sleep over a window: `sleep_passes=Sleep(passes=8, until=0.01)`.

    Attributes
    ----------
    passes : int
        N, the most passes over a window, the one awake included.
    until : float | None
        A row is not passed again once a pass has changed its fast weights by less than this, as |S_j - S_{j-1}| /
        |S_{j-1}| over those of the looped span, which must have some. None: all passes are made.
    least : int
        The fewest passes, whatever changes.
    write_dropout : float
        In training, the share of a window's tokens that a pass asleep leaves unwritten, drawn anew for every pass. A
        later one has to make up for it, so that late passes learn to work as early ones do. As with any dropout,
        `model.eval()` ends it. Our own, not the paper's.
    """

    passes: int = 1
    until: float | None = None
    least: int = 1
    write_dropout: float = 0.0


class SleepEvent(NamedTuple):
    """
    What a `sleep_callback` is told after every sleep.

    Attributes
    ----------
    window_index : int
        The window that was slept over, counted from 0; of several rows that sleep at once, the first one's.
    passes : int
        How often it was passed over, the pass awake included. With `until`, the most of all rows.
    seconds : float
        Wall time of the sleep.
    relative_change : list[float]
        For each pass asleep, |S_j - S_{j-1}| / |S_{j-1}| over all fast weights of the looped span.
    state_norm : float
        |S| after the sleep: the Frobenius norm over all fast weights of a row, averaged over the rows.
    freed_bytes : int
        Bytes of cache that the sleep freed.
    rows : tuple[int, ...] | None
        The rows of the batch that slept. None: all.
    passes_of_rows : tuple[int, ...] | None
        With `until`, how often the window of each of them was passed over.
    """

    window_index: int
    passes: int
    seconds: float
    relative_change: list[float]
    state_norm: float
    freed_bytes: int
    rows: tuple[int, ...] | None = None
    passes_of_rows: tuple[int, ...] | None = None


class Recorder:
    """Hears of each pass of a sleep, and tells a callback. [`NOBODY`] stands where nobody listens."""

    def __init__(self, callback: Callable[[SleepEvent], None], rows: tuple[int, ...] | None = None):
        self.callback, self.rows = callback, rows
        self.changes: list[torch.Tensor] = []

    def begin(self, state: SleepState) -> None:
        """The sleep begins on `state`."""
        self.began, self.bytes = _now(state), state.nbytes()
        self.window_index = state.sleeps if isinstance(state.sleeps, int) else state.sleeps[0]

    def passed(self, before: list, after: list) -> None:
        """A pass has rewritten S of each memory, `before` into `after`; of none if the span holds none."""
        if not after:
            return
        change, size = squared_change(before, after)
        self.changes.append(_ratio(change.sum(), size.sum()))

    def end(self, state: SleepState, fast_weights: list, passes: tuple[int, ...]) -> None:
        """The sleep has left `state`; `passes` of each row, or one number for all."""
        self.callback(
            SleepEvent(
                window_index=self.window_index,
                passes=max(passes),
                seconds=_now(state) - self.began,
                relative_change=torch.stack(self.changes).tolist() if self.changes else [],
                state_norm=_norm(fast_weights),
                freed_bytes=self.bytes - state.nbytes(),
                rows=self.rows,
                passes_of_rows=passes if len(passes) > 1 else None,
            )
        )


class _Nobody:
    """A [`Recorder`] that does nothing: a clock and a norm would break a compiled graph in two."""

    def begin(self, state):
        pass

    def passed(self, before, after):
        pass

    def end(self, state, fast_weights, passes):
        pass


NOBODY = _Nobody()


def squared_change(before: list, after: list) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row |S_j - S_{j-1}|^2 and |S_{j-1}|^2, (batch,) each, over all matrices; None stands for zeros."""
    before = [torch.zeros_like(y) if x is None else x.detach() for x, y in zip(before, after, strict=True)]
    change = _sum([(y.detach() - x).square().sum((1, 2, 3)) for x, y in zip(before, after, strict=True)])
    return change, _sum([x.square().sum((1, 2, 3)) for x in before])


def settled(before: list, after: list, until: float) -> torch.Tensor:
    """(batch,) of bool: the rows whose fast weights a pass has changed by less than `until`."""
    return _ratio(*squared_change(before, after)) < until


class Restless:
    """The rows that still change: with `until`, those that have settled are put aside, and not passed again."""

    def __init__(self, state: SleepState, sleep: Sleep):
        self.sleep = sleep
        self.rows: tuple[int, ...] | None = None  # that still change; None: all
        self.whole: SleepState | None = None  # with what has settled
        self.passes: tuple[int, ...] = (sleep.passes,)  # of each row, or one number for all

    def after(self, number: int, state: SleepState, before: list, after: list) -> SleepState | None:
        """What is to be passed again after pass `number`, which turned S `before` into `after`. None: nothing."""
        if self.sleep.until is None or not after:
            return state
        if number < self.sleep.least:
            return state
        is_settled = settled(before, after, self.sleep.until).tolist()
        batch = len(is_settled)
        if self.rows is None:
            self.rows, self.whole, self.batch = tuple(range(batch)), state, batch
            self.passes = (self.sleep.passes,) * batch
        if not any(is_settled):
            return state
        done = tuple(i for i, x in enumerate(is_settled) if x)
        left = tuple(i for i, x in enumerate(is_settled) if not x)
        passes = list(self.passes)
        for i in done:
            passes[self.rows[i]] = number
        self.passes = tuple(passes)
        self.whole = self.whole.put(tuple(self.rows[i] for i in done), state.select(done, batch), self.batch)
        self.rows = tuple(self.rows[i] for i in left)
        return state.select(left, batch) if left else None

    def all(self, state: SleepState | None) -> SleepState:
        """What has settled, with the rest, which is now in `state`."""
        if self.rows is None:
            return state
        return self.whole if state is None else self.whole.put(self.rows, state, self.batch)


def _ratio(change: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    # A window of padding leaves S at zero: 0 / 0 would be NaN, but nothing has changed.
    return (change / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()


def _norm(fast_weights: list) -> float:
    squares = [x.detach().square().sum(dim=(1, 2, 3)) for x in fast_weights if x is not None]
    return _sum(squares).sqrt().mean().item() if squares else 0.0


def _sum(tensors: list) -> torch.Tensor:
    """Of what may lie on several devices, as the layers do."""
    return sum(tensor.to(tensors[0].device) for tensor in tensors)


def _now(state: SleepState) -> float:
    """Of a clock that waits for the device: what was asked of it before is not part of what is timed."""
    tensors = state.tensors()
    if tensors and tensors[0].device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(tensors[0].device)
    return time.perf_counter()


def check_sleep_passes(sleep_passes: "int | Sleep | dict | list | None", config) -> Sleep:
    """
    How long a call is to sleep: what it was given, or `config.sleep_passes`.

    Raises
    ------
    ValueError
        If it is no number of passes, no [`Sleep`], more than a model without fast weights can use, an `until` or
        `write_dropout` for one that replays no memory, or a `write_dropout` that is no probability.
    """
    if sleep_passes is None:
        sleep_passes = config.sleep_passes
    # As a generation config is saved.
    if isinstance(sleep_passes, list) and 1 <= len(sleep_passes) <= len(Sleep._fields):
        sleep_passes = Sleep(*sleep_passes)
    if isinstance(sleep_passes, dict):  # as one can write it by hand
        if unknown := set(sleep_passes) - set(Sleep._fields):
            raise ValueError(f"`sleep_passes` has no {sorted(unknown)}: a `Sleep` has {Sleep._fields}.")
        sleep_passes = Sleep(**sleep_passes)
    # By name: a model loaded as remote code brings its own copy of the class.
    until, least, write_dropout = None, 1, 0.0
    if type(sleep_passes).__name__ == "Sleep":
        sleep_passes, until, least, write_dropout = sleep_passes
    for name, number in (("sleep_passes", sleep_passes), ("least", least)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise ValueError(
                f"`{name}` (N) counts all passes over a window, the one awake included, so it must be an integer "
                f"of at least 1, got {number!r}."
            )
    if sleep_passes > MAX_SLEEP_PASSES:
        raise ValueError(f"`sleep_passes` (N) is {sleep_passes}: no sleep needs more than {MAX_SLEEP_PASSES} passes.")
    if until is not None and (not isinstance(until, Real) or isinstance(until, bool) or not until > 0):
        raise ValueError(f"`until` is the relative change of S below which a sleep ends, above 0, got {until!r}.")
    if not isinstance(write_dropout, Real) or isinstance(write_dropout, bool) or not 0 <= write_dropout < 1:
        raise ValueError(f"`write_dropout` is a probability: 0 <= `write_dropout` < 1, got {write_dropout!r}.")
    if sleep_passes > 1 and not config._holds_memory(config.layer_types):
        raise ValueError(
            f"`sleep_passes` is {sleep_passes}, but a model of attention layers alone has no fast weights that a "
            "sleep could rewrite: it takes `sleep_passes=1`."
        )
    looped = config.layer_types[slice(*config.looped_layers)]
    if (until is not None or write_dropout) and sleep_passes > 1 and not config._holds_memory(looped):
        asked = f"`write_dropout` is {write_dropout!r}" if until is None else f"`until` is {until!r}"
        raise ValueError(
            f"{asked}, but no memory of this model is replayed (`loop_span` is {config.looped_layers}): its N writes "
            f"are made at once, so that there are no passes to tell apart. Give the number, {sleep_passes}, alone."
        )
    return Sleep(int(sleep_passes), until, int(least), write_dropout)


class SleepMixin:
    """Adds `sleep()` to a model."""

    @torch.no_grad()
    def sleep(
        self,
        past_key_values: Cache,
        sleep_passes: int | Sleep | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
    ) -> Cache:
        """
        Sleep now, whether the window is full or not: consolidate it into the fast weights and clear it.

        Parameters
        ----------
        past_key_values : Cache
            What `forward` or `generate` returned. Changed in place.
        sleep_passes : int or Sleep, optional
            N, all passes over the window, the one awake included: 2 replays it once, 1 only clears it. Default:
            `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`].

        Returns
        -------
        Cache
            `past_key_values`. Rows whose window is empty already stay as they are.

        Raises
        ------
        ValueError
            If the cache was not made for this model, N is not a positive integer, or the model's parameters are
            sharded over processes, all of which would have to nap at once.
        """
        model = self.base_model
        sleep = check_sleep_passes(sleep_passes, model.config)
        if is_sharded(model.layers[0]):
            raise ValueError(
                "A nap passes through layers whose parameters are sharded, so that this process would wait for all "
                "others to nap, too. Nap with a model that is not sharded, or let windows fill up."
            )
        state = read_state(past_key_values, model.config)
        check_dtype(state, model.embed_tokens.weight.dtype, model.device.type)
        write_state(past_key_values, model.nap(state, sleep, sleep_callback), model.config)
        return past_key_values


def raise_if_not_finite(fast_weights: list) -> None:
    """
    Raise `FloatingPointError`, naming the layers, if S of a layer is NaN or infinite; None stands for nothing yet.

    In a compiled model the device itself asserts it, as reading an answer would break the graph in two: on a CPU that
    is a `RuntimeError`; on CUDA the process cannot go on after it, as after an index that is out of range.
    """
    finite = {i: S.isfinite().all() for i, S in enumerate(fast_weights) if S is not None}
    message = (
        "The fast weights of layer(s) {} are not finite: everything after would be nonsense. Start from a new cache, "
        "and check the model's weights and dtype."
    )
    if torch.compiler.is_compiling():
        for i, is_finite in finite.items():
            torch._assert_async(is_finite, message.format([i]))
    elif finite and not torch.stack([x.to(next(iter(finite.values())).device) for x in finite.values()]).all():
        raise FloatingPointError(message.format([i for i, is_finite in finite.items() if not is_finite]))
