"""A control that needs code: amnesia. The other controls are settings of a recipe."""

from modeling_sleep import SleepForCausalLM, SleepModel


class AmnesiacModel(SleepModel):
    """[`SleepModel`] whose fast weights, too, go back to zero at the end of a window: nothing crosses it."""

    def _forget(self, *args, **kwargs):
        state = super()._forget(*args, **kwargs)
        nothing = (None,) * len(state.layers)
        return state._replace(layers=nothing, window_start=nothing, kept=0, pinned=0)

    def _windows_at_once(self, *args):
        return 1  # read side by side, S would go from one window to the next


class AmnesiacForCausalLM(SleepForCausalLM):
    """[`SleepForCausalLM`] with amnesia: what it answers, it answers without memory."""

    def __init__(self, config):
        super().__init__(config)
        self.model.__class__ = AmnesiacModel  # the weights of its seed, as those of the other variants
