"""Watching a model sleep, pass by pass: to show how far it is, or to wake it up."""

from collections.abc import Callable
from contextlib import contextmanager

from ..memory_file_sleep import core_of


@contextmanager
def watched(model, on_pass: Callable[[], None]):
    """
    While this lasts, `on_pass` is called whenever `model` begins a pass over a window, awake or asleep.

    If it raises, the pass is not made: what was asked of the model ends there.
    """
    core = core_of(model)
    start, end = core.config.looped_layers
    layer = core.layers[start if start < end else 0]
    hook = layer.register_forward_pre_hook(lambda module, inputs: on_pass())
    try:
        yield
    finally:
        hook.remove()
