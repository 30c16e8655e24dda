"""What the sleep does while `Trainer` trains: how often it comes, how much each pass changes S, how large S grows."""

from transformers import TrainerCallback


class SleepCallback(TrainerCallback):
    """
    Logs the sleep's own numbers beside the loss, to whatever the trainer logs to.

    Of the steps that are logged, and of the main process's batches:

    - `sleeps_per_step`: how often the model slept, over all micro-batches
    - `state_change_pass_2`, ...: relative change of the fast weights in each pass asleep, mean over these sleeps
    - `state_norm`: norm of the fast weights after these sleeps, mean; see [`SleepEvent`] for both

    Parameters
    ----------
    trainer : Trainer
        The trainer that it is added to, TRL's included: `trainer.add_callback(SleepCallback(trainer))`.

    Raises
    ------
    ValueError
        When training begins, if the trainer's model does not sleep.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._listens = False
        self._events = []  # of the last step listened to
        self._hook = None

    def on_train_begin(self, args, state, control, model, **kwargs):
        sleepers = [module for module in model.modules() if hasattr(module, "check_sleep_passes")]
        if not sleepers:
            raise ValueError(f"SleepCallback is for models that sleep, and {type(model).__name__} does not.")
        if self._hook is not None:  # of a training that was interrupted
            self._hook.remove()
        self._hook = sleepers[0].register_forward_pre_hook(self._listen, with_kwargs=True)
        # First of all, so that the others get our numbers with the loss. A new list: this one is being walked.
        handler = self.trainer.callback_handler
        handler.callbacks = [self, *(callback for callback in handler.callbacks if callback is not self)]

    def on_step_begin(self, args, state, control, **kwargs):
        # Measuring waits for the device: leave the steps alone that are not logged.
        step, every = state.global_step + 1, state.logging_steps
        self._listens = (
            args.logging_strategy != "steps" or step % every == 0 or (step == 1 and args.logging_first_step)
        )
        self._events = []

    def on_step_end(self, args, state, control, **kwargs):
        self._listens = False

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        numbers = {"sleeps_per_step": len(self._events)}
        if self._events:
            numbers["state_norm"] = sum(event.state_norm for event in self._events) / len(self._events)
            for i, changes in enumerate(zip(*(event.relative_change for event in self._events))):
                numbers[f"state_change_pass_{i + 2}"] = sum(changes) / len(changes)
        logs.update(numbers)
        state.log_history[-1].update(numbers)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def _listen(self, module, args, kwargs):
        """Add ourselves to what the caller of `forward` may have given."""
        if not self._listens:
            return None
        given = kwargs.get("sleep_callback")

        def tell(event):
            self._events.append(event)
            if given is not None:
                given(event)

        return args, {**kwargs, "sleep_callback": tell}
