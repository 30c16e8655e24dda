"""Heads for classification: over several windows and sleeps, padded on either side, trained, saved and loaded."""

import pytest
import torch
from builders import tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

from modeling_sleep import (
    SleepConfig,
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
)


HEADS = [SleepForSequenceClassification, SleepForTokenClassification]


def make(head, **overrides):
    return tiny_model(head, torch.float64, initializer_range=0.1, num_labels=3, **overrides)


@pytest.fixture
def ids():
    return torch.randint(1, 64, (2, 21))  # two windows that are slept over, and a rest


def test_a_text_is_classified_by_its_last_token(ids):
    model = make(SleepForSequenceClassification)
    output = model(ids, sleep_passes=3)
    assert output.logits.shape == (2, 3) and output.loss is None
    last = model.model(ids, sleep_passes=3).last_hidden_state[:, -1]
    torch.testing.assert_close(output.logits, last @ model.score.weight.T)
    assert (output.logits - model(ids, sleep_passes=1).logits).abs().max() > 1e-4  # it slept


def test_tokens_are_classified_one_by_one(ids):
    model = make(SleepForTokenClassification)
    output = model(ids)
    assert output.logits.shape == (2, 21, 3)
    torch.testing.assert_close(model(ids[:, :9]).logits, output.logits[:, :9])  # causal, across a sleep


def test_padding_changes_no_class(ids):
    """Left padding of whole windows, right padding of any length; told by the mask or by the padding token."""
    model = make(SleepForSequenceClassification)
    alone = model(ids).logits
    for left, right in ((8, 0), (0, 5), (16, 3)):
        padded = torch.nn.functional.pad(ids, (left, right))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        torch.testing.assert_close(model(padded, attention_mask=mask).logits, alone)
        embeds = model.get_input_embeddings()(padded)
        torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).logits, alone)
    torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 5))).logits, alone)  # padding comes after it
    uneven = torch.stack([ids[0], torch.nn.functional.pad(ids[1, :9], (0, 12))])
    torch.testing.assert_close(model(uneven).logits, torch.cat([alone[:1], model(ids[1:, :9]).logits]))


def test_where_texts_end_is_never_guessed(ids):
    model = make(SleepForSequenceClassification, pad_token_id=None)
    assert model(ids[:1]).logits.shape == (1, 3)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="where the texts of a batch end cannot be told. Give an `attention_mask`"):
        model(ids)


@pytest.mark.parametrize(
    "labels, loss",
    [
        (torch.tensor([2, 0]), torch.nn.functional.cross_entropy),
        (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), torch.nn.functional.binary_cross_entropy_with_logits),
        (torch.tensor([[0.3, 1, 2], [1, 0, 1]]), torch.nn.functional.mse_loss),
    ],
    ids=["one class", "several classes", "regression"],
)
def test_losses_are_those_of_transformers(ids, labels, loss):
    model = make(SleepForSequenceClassification)
    if loss is torch.nn.functional.mse_loss:
        model.config.problem_type = "regression"
    if labels.is_floating_point():
        labels = labels.double()
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss.double(), loss(output.logits, labels).double())
    output.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters())


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_steps_have_the_loss_of_their_batch(head, tmp_path):
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (8, 21)) if head is SleepForTokenClassification else torch.randint(0, 3, (8,))
    data = [{"input_ids": torch.randint(1, 64, (21,)), "labels": label} for label in labels]
    found = []
    for accumulated in (1, 4):
        args = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=8 // accumulated, learning_rate=0.0,
            gradient_accumulation_steps=accumulated, report_to="none", use_cpu=True, logging_steps=1,
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(make(head), args, train_dataset=data)
        trainer.train()
        found.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_token_classifier_keeps_no_cache(ids, monkeypatch):
    """Nobody would see it, and without one, windows can be read side by side."""
    model, caches = make(SleepForTokenClassification), []
    monkeypatch.setattr(model.model, "forward", lambda *args, use_cache, **kwargs: caches.append(use_cache) or kept)
    kept = SleepModel(model.config).double()(ids)
    model(ids)
    model(ids, use_cache=True)
    assert caches == [False, True]


def test_tokens_without_label_have_no_loss(ids):
    model = make(SleepForTokenClassification)
    labels = torch.randint(0, 3, ids.shape)
    labels[:, :10] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, 10:].flatten(0, 1), labels[:, 10:].flatten())
    torch.testing.assert_close(output.loss.double(), expected)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_on_a_language_model(head, ids, tmp_path):
    """Fine-tuning begins with the weights of a causal model; only the head is new."""
    causal = make(SleepForCausalLM).float()
    causal.save_pretrained(tmp_path / "causal")
    auto = AutoModelForSequenceClassification if "Sequence" in head.__name__ else AutoModelForTokenClassification
    model, info = auto.from_pretrained(tmp_path / "causal", num_labels=5, output_loading_info=True)
    assert type(model) is head
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"score"}
    assert set(info["unexpected_keys"]) == {"lm_head.weight"}
    torch.testing.assert_close(model.model(ids).last_hidden_state, causal.model(ids).last_hidden_state)

    model.save_pretrained(tmp_path / "head")
    again = auto.from_pretrained(tmp_path / "head")
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_trainer_learns_what_an_earlier_window_said(tmp_path):
    """The class stands in the first token, two sleeps before the end."""
    torch.manual_seed(0)
    texts = torch.randint(4, 64, (64, 17))
    texts[:, 0] = torch.arange(64) % 3 + 1
    data = [{"input_ids": text, "labels": text[0] - 1} for text in texts]
    config = SleepConfig.from_preset("tiny", num_labels=3, sleep_passes=2)
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=40,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=100,
    )
    trainer = Trainer(SleepForSequenceClassification(config), arguments, train_dataset=data)
    trainer.train()
    predictions = trainer.predict(data).predictions.argmax(axis=-1)
    assert (predictions == (texts[:, 0] - 1).numpy()).mean() > 0.95
