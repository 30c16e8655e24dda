"""`Trainer` with texts of several windows and N > 1: the numbers of a plain loop, with every switch a user turns."""

import json

import numpy as np
import pytest
import torch
from builders import tiny_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithFlattening,
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_sleep import SleepCallback


WINDOW = 8
LENGTHS = (26, 9, 17, 40, 3, 33, 16, 25)


def sleepy_model(**overrides):
    model = tiny_model(**{"initializer_range": 0.1, "sleep_passes": 3, **overrides}).train()
    assert model.config.window_size == WINDOW
    return model


def texts():
    """Of one to five windows, with labels on fewer and fewer of their tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 64, (length,), generator=generator) for length in LENGTHS]
    labels = [row.clone() for row in rows]
    for i, label in enumerate(labels):
        label[:i] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels)]


def collate(rows):
    """Padding on the right, which changes nothing: each row is read as it is alone."""
    ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def make_trainer(folder, model=None, callbacks=None, compute_metrics=None, collator=collate, **settings):
    arguments = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    }
    return Trainer(
        sleepy_model() if model is None else model,
        TrainingArguments(output_dir=str(folder), **{**arguments, **settings}),
        data_collator=collator,
        train_dataset=texts(),
        eval_dataset=texts()[:5],
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def train(trainer, **options):
    trainer.train(**options)
    return losses(trainer)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return train(make_trainer(tmp_path_factory.mktemp("reference")))


def test_it_is_the_plain_loop(tmp_path):
    model = sleepy_model()
    trainer = make_trainer(tmp_path, model, max_steps=3, max_grad_norm=0.5, weight_decay=0.1)
    by_trainer = train(trainer)

    twin, by_hand = sleepy_model().train(), []
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    decayed = trainer.get_decay_parameter_names(twin)
    optimizer.param_groups[0]["params"] = [p for n, p in twin.named_parameters() if n in decayed]
    rest = [p for n, p in twin.named_parameters() if n not in decayed]
    optimizer.add_param_group({"params": rest, "weight_decay": 0.0})
    # The sampler draws anew in every epoch; what it drew is what the trainer saw.
    drawn = make_trainer(tmp_path).get_train_dataloader()
    batches = list(drawn)
    drawn.set_epoch(1)
    batches += list(drawn)
    for step, batch in enumerate(batches[:3]):
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (3 - step) / 3
        loss = twin(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        by_hand.append(loss.item())
    assert by_trainer == pytest.approx(by_hand, abs=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},  # labels are counted over both
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "gradient_checkpointing": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
    ids=str,
)
def test_these_change_nothing(tmp_path, reference, settings):
    assert train(make_trainer(tmp_path, **settings)) == pytest.approx(reference, abs=2e-4)


def test_a_resumed_run_has_the_same_curve_bit_by_bit(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    whole = make_trainer(tmp_path / "whole", **settings)
    train(whole)
    resumed = make_trainer(tmp_path / "resumed", sleepy_model(), **settings)
    curve = train(resumed, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(curve) == 6 and curve == losses(whole)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters()):
        assert ours.equal(theirs)


def test_bf16_autocast_is_near_and_keeps_fast_weights_in_float32(tmp_path):
    model, dtypes = sleepy_model(), set()
    model.model.layers[1].linear_attn.register_forward_hook(
        lambda *args: dtypes.add(args[-1][1].recurrent_state.dtype)
    )
    settings = {"learning_rate": 1e-4}
    near = train(make_trainer(tmp_path, model, bf16=True, **settings))
    assert near != (exact := train(make_trainer(tmp_path, **settings))) and near == pytest.approx(exact, rel=0.01)
    assert dtypes == {torch.float32}


def test_grouped_by_length(tmp_path):
    trainer = make_trainer(tmp_path, train_sampling_strategy="group_by_length", per_device_train_batch_size=2)
    lengths = [int(mask.sum()) for batch in trainer.get_train_dataloader() for mask in batch["attention_mask"]]
    assert sorted(lengths) == sorted(LENGTHS) and lengths[0] == max(LENGTHS)
    assert np.isfinite(train(trainer)).all()


def test_evaluation_with_metrics_and_early_stopping(tmp_path):
    def share_right(prediction):
        labels = prediction.label_ids[:, 1:]
        right = prediction.predictions[:, :-1].argmax(-1) == labels
        return {"right": right[labels != -100].mean()}

    trainer = make_trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        compute_metrics=share_right,
        max_steps=30,
        learning_rate=0.0,  # nothing improves
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="right",
        per_device_eval_batch_size=5,
    )
    trainer.train()
    assert trainer.state.global_step == 6  # the first is the best, and two more did not beat it
    evaluations = [log for log in trainer.state.log_history if "eval_right" in log]
    batch = collate(texts()[:5])
    with torch.no_grad():
        output = sleepy_model().eval()(**batch)
    assert evaluations[0]["eval_loss"] == pytest.approx(output.loss.item(), abs=1e-4)
    labels = batch["labels"][:, 1:]
    right = (output.logits[:, :-1].argmax(-1) == labels)[labels != -100].double().mean()
    assert evaluations[0]["eval_right"] == pytest.approx(right.item())


@pytest.mark.parametrize("settings", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}], ids=str)
def test_packed_texts_are_trained_on_as_rows_of_their_own(tmp_path, reference, settings):
    trainer = make_trainer(tmp_path, collator=DataCollatorWithFlattening(**settings))
    trainer.train_dataset = [{name: values.tolist() for name, values in row.items()} for row in texts()]
    assert train(trainer) == pytest.approx(reference, abs=2e-4)


def test_smoothed_labels_are_shifted(tmp_path):
    """With label smoothing, `Trainer` computes the loss by itself."""
    model = sleepy_model()
    trainer = make_trainer(tmp_path, model, label_smoothing_factor=0.1)
    batch = collate(texts()[:3])
    logits, labels = model(**batch).logits[:, :-1].float(), batch["labels"][:, 1:]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


# The sleep's own numbers.


def test_the_callback_logs_what_a_sleep_callback_is_told(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=4, logging_steps=2, report_to="tensorboard", per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=0.0,
    )  # fmt: skip
    trainer.add_callback(SleepCallback(trainer))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "sleeps_per_step" in log]
    assert [log["step"] for log in logs] == [2, 4]
    assert all("loss" in log for log in logs)  # one row, not two

    # By hand, as the learning rate is zero: what the second step saw.
    batches, events = list(make_trainer(tmp_path, per_device_train_batch_size=2).get_train_dataloader()), []
    for batch in batches[2:4]:
        sleepy_model()(**batch, sleep_callback=events.append)
    assert logs[0]["sleeps_per_step"] == len(events) > 4
    assert logs[0]["state_norm"] == pytest.approx(np.mean([event.state_norm for event in events]), rel=1e-4)
    for j in (2, 3):
        changes = [event.relative_change[j - 2] for event in events]
        assert logs[0][f"state_change_pass_{j}"] == pytest.approx(np.mean(changes), rel=1e-4)
    assert "state_change_pass_4" not in logs[0]

    board = EventAccumulator(str(next(tmp_path.glob("runs/*"))))
    board.Reload()
    assert {"train/loss", "train/sleeps_per_step", "train/state_norm", "train/state_change_pass_3"} <= set(
        board.Tags()["scalars"]
    )


def test_the_norm_is_that_of_the_cache():
    model, events = sleepy_model().eval(), []
    ids = torch.randint(1, 64, (3, WINDOW))
    with torch.no_grad():
        cache = model(ids).past_key_values
        model.sleep(cache, sleep_callback=events.append)
    norms = sum(
        layer.recurrent_states[0].square().sum((1, 2, 3))
        for layer in cache.layers
        if hasattr(layer, "recurrent_states")
    ).sqrt()
    assert events[0].state_norm == pytest.approx(norms.mean().item())


def test_the_callback_changes_nothing_and_leaves_nothing(tmp_path, reference):
    model = sleepy_model()
    trainer = make_trainer(tmp_path, model, gradient_checkpointing=True)
    trainer.add_callback(SleepCallback(trainer))
    assert train(trainer) == pytest.approx(reference, abs=2e-4)
    assert not model.model._forward_pre_hooks
    assert json.dumps(trainer.state.log_history)  # plain numbers


def test_the_callback_counts_once_after_an_interruption(tmp_path):
    class Interrupt(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, max_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=1)
    trainer.add_callback(SleepCallback(trainer))
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interrupt)
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "sleeps_per_step" in log]
    batches = list(make_trainer(tmp_path, per_device_train_batch_size=1).get_train_dataloader())[:2]
    events = []
    for batch in batches:
        sleepy_model()(**batch, sleep_callback=events.append)
    assert log["sleeps_per_step"] == len(events) > 0
    assert not trainer.model.model._forward_pre_hooks


def test_the_callback_is_silent_where_nothing_sleeps(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train_dataset = [{name: values[:5] for name, values in row.items()} for row in texts()]
    trainer.add_callback(SleepCallback(trainer))
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "sleeps_per_step" in log]
    assert log["sleeps_per_step"] == 0 and not any(name.startswith("state_") for name in log)


def test_the_callback_says_so_if_the_model_does_not_sleep(tmp_path):
    config = LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    trainer = make_trainer(tmp_path, LlamaForCausalLM(config))
    trainer.add_callback(SleepCallback(trainer))
    with pytest.raises(ValueError, match="LlamaForCausalLM does not"):
        trainer.train()
