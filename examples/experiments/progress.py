"""A progress bar for `Trainer` that carries the loss, instead of a line of numbers per log."""

from transformers.trainer_callback import ProgressCallback


class LossBar(ProgressCallback):
    """
    One bar for a whole training.

    Differs from its parent [`ProgressCallback`] in that logs go onto the bar and evaluation has no bar of its own.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("   training")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")

    def on_prediction_step(self, *args, **kwargs):
        pass


def use_loss_bar(trainer):
    """Exchange the trainer's bar for a [`LossBar`]."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar)
