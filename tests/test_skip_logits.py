"""The loss from one window after the other: the same loss and gradients, without the logits of the whole text."""

import pytest
import torch
from builders import tiny_model
from helpers import gradients_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments


VOCABULARY, WINDOW = 64, 8


def sleepy_model(**overrides):
    model = tiny_model(initializer_range=0.2, sleep_passes=2, **overrides).train()
    assert (model.config.vocab_size, model.config.window_size) == (VOCABULARY, WINDOW)
    return model


def labels_of(ids, case):
    labels = ids.clone()
    if case == "question at the end":
        labels[:, :26] = -100
    elif case == "windows without labels":
        labels[:, 3:20] = -100
        labels[0] = -100
    elif case == "the first token alone":  # predicted by nobody
        labels[:, 1:] = -100
    return labels


def loss_and_gradients(model, **inputs):
    output = model(**inputs)
    return output, gradients_of(output.loss, model)


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(11)], ids=str)
@pytest.mark.parametrize("case", ["all", "question at the end", "windows without labels"])
@pytest.mark.parametrize("how", ["plain", "tied", "checkpointed", "padded"])
def test_it_is_the_loss_with_its_gradients(how, case, num_items):
    model = sleepy_model(tie_word_embeddings=how == "tied").double()
    model.train()
    if how == "checkpointed":
        model.gradient_checkpointing_enable()
    ids = torch.randint(1, VOCABULARY, (3, 29))
    inputs = {"input_ids": ids, "labels": labels_of(ids, case)}
    if how == "padded":
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][1, :WINDOW] = 0
        inputs["labels"][1, : WINDOW + 1] = -100
    if num_items is not None:
        inputs["num_items_in_batch"] = num_items
    expected, gradients = loss_and_gradients(model, **inputs)
    output, ours = loss_and_gradients(model, **inputs, skip_logits=True)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected.loss)  # transformers' loss is float32
    torch.testing.assert_close(ours, gradients, atol=1e-7, rtol=1e-5)


def test_shift_labels_and_ignore_index_are_passed_on():
    model = sleepy_model()
    ids = torch.randint(1, VOCABULARY, (2, 20))
    shifted = ids.roll(-1, 1)
    shifted[:, 4:15] = -7
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": shifted, "ignore_index": -7}
    torch.testing.assert_close(model(**inputs, skip_logits=True).loss, model(**inputs).loss)


def test_without_any_label_it_is_not_a_number_either():
    model = sleepy_model()
    ids = torch.randint(1, VOCABULARY, (2, 20))
    labels = labels_of(ids, "the first token alone")
    assert model(ids, labels=labels).loss.isnan() and model(ids, labels=labels, skip_logits=True).loss.isnan()
    # As transformers' Trainer has it, where another rank or accumulation step has the labels.
    output, gradients = loss_and_gradients(model, input_ids=ids, labels=labels, skip_logits=True, num_items_in_batch=5)
    assert output.loss == 0 and not any(gradient.any() for gradient in gradients.values())


def test_windows_without_labels_do_not_meet_the_head():
    model, rows = sleepy_model(), []
    model.lm_head.register_forward_hook(lambda module, inputs, logits: rows.append(len(inputs[0])))
    ids = torch.randint(1, VOCABULARY, (2, 4 * WINDOW + 3))
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 3 * WINDOW + 2 : 3 * WINDOW + 6] = 5, 6
    loss = model(ids, labels=labels, skip_logits=True).loss
    assert rows == [1, 4]  # of windows 0 and 3
    loss.backward()
    assert sorted(rows) == [1, 1, 4, 4]  # computed again, not kept


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any tensor has while it is on, in the backward pass too."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_of_the_whole_text_are_never_in_memory():
    model = sleepy_model()
    model.resize_token_embeddings(5_000)
    ids = torch.randint(1, 5_000, (6, 6 * WINDOW))
    for skip_logits, most in ((False, ids.numel() * 5_000), (True, 6 * WINDOW * 5_000)):
        with LargestTensor() as largest:
            model(ids, labels=ids, skip_logits=skip_logits).loss.backward()
        assert largest.elements == most


def test_the_config_decides_for_training_and_the_call_for_itself():
    model = sleepy_model(skip_logits=True)
    ids = torch.randint(1, VOCABULARY, (2, 20))
    assert model.train()(ids, labels=ids).logits is None
    for output in (
        model(ids),
        model(ids, labels=ids, skip_logits=False),
        model.eval()(ids, labels=ids),
    ):
        assert output.logits is not None
    assert model(ids, labels=ids, skip_logits=True).logits is None


def test_contradictions_are_refused():
    model = sleepy_model()
    ids = torch.randint(1, VOCABULARY, (2, 20))
    with pytest.raises(ValueError, match="needs `labels`"):
        model(ids, skip_logits=True)
    with pytest.raises(ValueError, match="no `logits_to_keep`"):
        model(ids, labels=ids, skip_logits=True, logits_to_keep=1)


def test_trainer_trains_and_evaluates_alike(tmp_path):
    ids = torch.randint(1, VOCABULARY, (12, 26))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    results = []
    for skip_logits in (False, True):
        torch.manual_seed(0)
        model = sleepy_model(skip_logits=skip_logits)
        arguments = TrainingArguments(
            output_dir=tmp_path, max_steps=4, logging_steps=1, per_device_train_batch_size=2, use_cpu=True,
            gradient_accumulation_steps=2, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        results.append(losses + [trainer.evaluate()["eval_loss"]])
        assert trainer.predict(rows).predictions[0].shape[-1] == VOCABULARY  # evaluation has its logits
    assert results[1] == pytest.approx(results[0], abs=1e-4)
