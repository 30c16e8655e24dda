"""Idle naps: while nobody asks anything, the model sleeps over what it has read, so that nobody waits for it later."""

import threading
import time

from ..memory_sleep import SleepMemory
from .watch import watched


class _WokenUp(Exception):
    """Somebody wants the model."""


class IdleNap:
    """
    A nap in a thread of its own, on a fork of a memory.

    Whoever wants the model calls `wake`, which returns at once, between two passes: then either the nap was over, and
    its memory is there, or nothing has happened. A nap that was cut short is no loss, as the memory itself stayed as
    it was.

    Parameters
    ----------
    model : SleepForCausalLM
        Nobody else may use it until `wake` has been called.
    memory : SleepMemory
    sleep_passes : int or Sleep, optional
        N. Default: `config.sleep_passes`.
    """

    def __init__(self, model, memory: SleepMemory, sleep_passes=None):
        self.model, self.sleep_passes = model, sleep_passes
        self.memory: SleepMemory | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self._is_wanted = threading.Event()
        self._thread = threading.Thread(target=self._nap, args=(memory.fork(),), daemon=True)
        self._thread.start()

    def _nap(self, fork: SleepMemory) -> None:
        began = time.perf_counter()
        try:
            with watched(self.model, self._raise_if_wanted):
                self.model.sleep(fork, self.sleep_passes)
            self.seconds = time.perf_counter() - began
            self.memory = fork
        except _WokenUp:
            pass
        except Exception as error:  # of a thread, nobody would see it
            self.error = error

    def _raise_if_wanted(self) -> None:
        if self._is_wanted.is_set():
            raise _WokenUp

    def wait(self) -> None:
        """Until the nap is over."""
        self._thread.join()

    def wake(self) -> SleepMemory | None:
        """The memory after the nap, or None if there was no time for it."""
        self._is_wanted.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.memory
