"""TRL: what its trainers compute is what a plain forward computes, over several windows and N = 3 passes.

TRL calls the model's backbone itself (its "fused LM head"), pads on the right to train and on the left to generate,
and can pack texts into one row. So what a trainer's forward gives is held against the logits of the model by itself.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny_model, word_tokenizer
from packaging.version import Version
from transformers import TrainerCallback

from modeling_sleep import SleepForCausalLM, SleepForSequenceClassification


trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")

if Version(trl.__version__) < Version("1.16"):
    pytest.skip("before 1.16, TRL calls the model in other ways or needs Triton", allow_module_level=True)

REPOSITORY = Path(__file__).parents[1]
L, PASSES = 8, 3
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
WORDS = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(59))]
PAD, END = 0, 4
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "<assistant> {% generation %}{{ message.content }} <end>{% endgeneration %} "
    "{% else %}<user> {{ message.content }} <end> {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_tokenizer():
    return word_tokenizer(
        WORDS,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_model(model_class=SleepForCausalLM, **overrides):
    options = dict(window_size=L, sleep_passes=PASSES, initializer_range=0.1, pad_token_id=PAD, eos_token_id=END)
    model = tiny_model(model_class, **options, **overrides).train()
    torch.nn.init.normal_(model.get_input_embeddings().weight[PAD].detach(), std=0.1)  # zeros would need no mask
    return model


def say(role, length, seed):
    """A message of `length` words."""
    words = torch.randint(5, len(WORDS), (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"role": role, "content": " ".join(WORDS[i] for i in words)}


# Rows of different lengths, three windows and more each.
CHATS = [
    [say("user", 11 + i, i), say("assistant", 3, 10 + i), say("user", 4, 20 + i), say("assistant", 2 + 2 * i, 30 + i)]
    for i in range(4)
]
DATA = {
    "messages": [{"messages": chat} for chat in CHATS],
    "prompt and completion": [{"prompt": chat[:3], "completion": chat[3:]} for chat in CHATS],
    "preference": [
        {"prompt": chat[:1], "chosen": [say("assistant", 3 + i, i)], "rejected": [say("assistant", 9 - i, 50 + i)]}
        for i, chat in enumerate(CHATS)
    ],
}


def dataset(kind):
    return datasets.Dataset.from_list(DATA[kind])


def settings(folder, **overrides):
    """All texts in one batch, so that their order does not matter. As little else as possible is not TRL's default."""
    options = dict(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=len(CHATS),
        learning_rate=1e-2,
        bf16=False,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return {**options, **overrides}


def sft(folder, kind="messages", model=None, peft_config=None, **overrides):
    return trl.SFTTrainer(
        make_model() if model is None else model,
        trl.SFTConfig(**settings(folder, **overrides)),
        train_dataset=dataset(kind),
        eval_dataset=dataset(kind),
        processing_class=make_tokenizer(),
        peft_config=peft_config,
    )


def lora():
    """B is not zero, so that the adapters act from the start."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=2, target_modules="all-linear", init_lora_weights=False
    )


class FirstGradients(TrainerCallback):
    """Keeps what the optimizer is given first."""

    gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if self.gradients is None:
            self.gradients = gradients(model)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def record(model):
    """What the model is called with and what it returns, call by call."""
    calls = []
    model.register_forward_hook(lambda module, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True)
    return calls


@torch.no_grad()
def log_probabilities(model, input_ids, attention_mask=None):
    """Of every token but the first given those before it, (batch, length - 1), by a plain forward."""
    logits = model.eval()(input_ids, attention_mask=attention_mask).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)


def assert_scored_as_alone(model, call, output):
    """The scores that TRL took of padded rows are those that `model` gives to each row by itself, unpadded."""
    slept = 0
    for ids, mask, labels, scores in zip(
        call["input_ids"], call["attention_mask"].bool(), call["labels"], output.log_probs, strict=True
    ):
        alone = ids[mask][None]
        expected = log_probabilities(model, alone)[0]
        scored, wanted = labels[1:] != -100, labels[mask][1:] != -100
        assert scored.any()
        torch.testing.assert_close(scores[scored], expected[wanted], **TOLERANCE)
        slept += (alone.shape[1] - 1) // L
    assert slept >= 2 * len(call["input_ids"])


def changed(model, before):
    return {name for name, p in model.named_parameters() if not p.equal(before[name])}


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def plain_model_of(trainer, peft_config=None):
    """The model of a trainer as TRL has not touched it. Not a deep copy: that would call the original's forward."""
    model = make_model()
    if peft_config is not None:
        model = peft.get_peft_model(model, peft_config)
    model.load_state_dict(trainer.model.state_dict())
    return model


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


def collated(trainer):
    """All rows in a batch as the trainer makes it."""
    return trainer.data_collator(list(trainer.train_dataset.select_columns(["input_ids", "labels"])))


# SFTTrainer

FIVE_STEPS = dict(max_steps=5, lr_scheduler_type="constant", gradient_checkpointing=False, assistant_only_loss=True)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("messages", {}),
        ("messages", {"gradient_checkpointing": False}),
        ("messages", {"assistant_only_loss": True}),
        ("messages", {"peft_config": lora()}),
        ("prompt and completion", {}),
        ("prompt and completion", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    ],
    ids=["chats", "not checkpointed", "assistant only", "LoRA", "completions", "completions, accumulated"],
)
def test_sft_has_the_loss_and_gradients_of_a_plain_forward(kind, options, tmp_path):
    trainer = sft(tmp_path, kind, max_grad_norm=1e9, **options)  # clipped, gradients would say less
    plain, batch, first = plain_model_of(trainer, options.get("peft_config")), collated(trainer), FirstGradients()
    assert not batch["attention_mask"].all() and batch["attention_mask"].sum(1).min() > 2 * L
    trainer.add_callback(first)
    trainer.train()

    loss = plain(**batch).loss
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    expected = gradients(plain)
    assert first.gradients.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(first.gradients[name], expected[name], **TOLERANCE)
    with torch.no_grad():
        assert abs(plain(**batch, sleep_passes=1).loss - loss) > 1e-3  # it slept


@pytest.mark.parametrize(
    "kind, options, learned",
    [
        ("messages", {"assistant_only_loss": True}, [chat[1::2] for chat in CHATS]),
        ("prompt and completion", {}, [chat[3:] for chat in CHATS]),
    ],
    ids=["assistant only", "completions"],
)
def test_labels_are_what_the_assistant_says(kind, options, learned, tmp_path):
    labels = collated(sft(tmp_path, kind, **options))["labels"]
    words = [" ".join(WORDS[i] for i in row[row != -100]) for row in labels]
    # A prompt ends in what asks for the answer, so it is not learned with a completion either.
    assert sorted(words) == sorted(" ".join(f"{message['content']} <end>" for message in chat) for chat in learned)


def test_sft_as_trl_has_it_by_default(tmp_path):
    """In bfloat16 and from a folder, which holds the tokenizer too."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    arguments = trl.SFTConfig(str(tmp_path), max_steps=1, logging_steps=1, report_to="none", use_cpu=True)
    assert arguments.bf16 and arguments.gradient_checkpointing and arguments.max_length == 1024
    trainer = trl.SFTTrainer(str(tmp_path / "model"), arguments, train_dataset=dataset("messages"))
    batch, plain = collated(trainer), make_model()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(plain(**batch).loss.item(), rel=0.01)
    assert changed(trainer.model, parameters(plain))


def test_sft_learns_evaluates_and_reloads(tmp_path):
    trainer = sft(tmp_path, **FIVE_STEPS)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] == pytest.approx(before, abs=1e-5) and losses[-1] < 0.8 * losses[0]

    trainer.save_model(tmp_path / "model")
    reloaded, batch = SleepForCausalLM.from_pretrained(tmp_path / "model"), collated(trainer)
    torch.testing.assert_close(logits(reloaded, batch), logits(trainer.model, batch), **TOLERANCE)
    assert (tmp_path / "model" / "modeling_sleep.py").is_file()  # loads anywhere
    after = trainer.evaluate()["eval_loss"]
    assert after == pytest.approx(reloaded(**batch).loss.item(), abs=1e-5) and after < before


def test_sft_of_an_adapter_learns_and_reloads(tmp_path):
    model = make_model()
    before = parameters(model)
    trainer = sft(tmp_path, model=model, peft_config=lora(), **FIVE_STEPS)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.95 * losses[0]
    frozen = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora" not in name}
    assert frozen.keys() == before.keys() and all(p.equal(before[name]) for name, p in frozen.items())

    batch = collated(trainer)
    expected = logits(trainer.model, batch)
    trainer.save_model(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    torch.testing.assert_close(logits(reloaded, batch), expected, **TOLERANCE)
    # In float64, as merged weights are rounded otherwise, and sleeps make more of it.
    expected = logits(trainer.model.double(), batch)
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = SleepForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    torch.testing.assert_close(logits(merged, batch), expected)


# Packing


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "max_length": 96},
        {"packing": True, "max_length": 96, "packing_strategy": "bfd_split"},
        {"packing": True, "max_length": 96, "packing_strategy": "wrapped", "padding_free": True},
        {"packing": True, "max_length": 96, "per_device_train_batch_size": 1},
        {"packing": True, "max_length": 40, "per_device_train_batch_size": 1},  # nothing fits beside anything
        {"padding_free": True},
        {"padding_free": True, "per_device_train_batch_size": 1},
    ],
    ids=str,
)
def test_packed_documents_are_learned_as_rows_of_their_own(options, tmp_path):
    """The loss and gradients of a step are those of each document read by itself."""
    trainer, first = sft(tmp_path, max_grad_norm=1e9, **options), FirstGradients()
    calls, plain = record(trainer.model), plain_model_of(trainer)
    trainer.add_callback(first)
    trainer.train()
    call = calls[0][0]
    documents, losses, predicted = 0, [], 0
    for ids, positions, labels in zip(call["input_ids"], call["position_ids"], call["labels"], strict=True):
        lengths = torch.diff((positions == 0).nonzero().flatten(), append=torch.tensor([len(ids)])).tolist()
        for document, wanted in zip(ids.split(lengths), labels.split(lengths), strict=True):
            number = (wanted[1:] != -100).sum().item()
            losses.append(plain(document[None], labels=wanted[None]).loss * number)
            predicted += number
            documents += len(document) > L
    in_pieces = options.get("packing_strategy") == "wrapped" or options.get("per_device_train_batch_size") == 1
    assert documents >= (1 if in_pieces else len(CHATS))
    loss = sum(losses) / predicted
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    expected = gradients(plain)
    assert first.gradients.keys() == expected.keys()
    for name in expected:
        largest = max(1, expected[name].abs().max().item())  # in float32, through eight sleeps and more
        torch.testing.assert_close(first.gradients[name], expected[name], atol=1e-5 * largest, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "packing_strategy": "wrapped", "max_length": 96},
        {"eval_packing": True, "max_length": 96},  # with `packing`, it is refused
    ],
    ids=str,
)
def test_what_packing_leaves_no_trace_of(options, tmp_path):
    """
    Texts put one behind the other as if they were one: no model can tell, and this one's fast weights go on, too. If
    this fails, TRL tells us now, and it is time to refuse it.
    """
    trainer = sft(tmp_path, **options)
    calls = record(trainer.model)
    if "packing" in options:
        trainer.train()
    else:
        trainer.evaluate()
    ((call, _),) = calls
    assert set(call) == {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
    assert len(call["input_ids"]) < len(CHATS)
    assert call["attention_mask"].sum() == collated(sft(tmp_path))["attention_mask"].sum()  # nothing was left out


# DPOTrainer and RewardTrainer: chosen and rejected texts in one batch, padded on the right.


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
def test_dpo_begins_at_its_reference(adapter, tmp_path):
    """TRL loads the reference from where the model came from, or takes the adapter off."""
    make_model().save_pretrained(tmp_path / "model")
    model = SleepForCausalLM.from_pretrained(tmp_path / "model")
    calls = record(model)
    trainer = trl.DPOTrainer(
        model,
        args=trl.DPOConfig(**settings(tmp_path)),
        train_dataset=dataset("preference"),
        processing_class=make_tokenizer(),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if adapter else None,
    )
    before = parameters(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert_scored_as_alone(make_model(), *calls[0])
    names = changed(trainer.model, before)
    assert names and all("lora" in name for name in names) == adapter


def test_reward_is_that_of_each_text_alone(tmp_path):
    model = make_model(SleepForSequenceClassification, num_labels=1)
    calls, before = record(model), parameters(model)
    trainer = trl.RewardTrainer(
        model,
        args=trl.RewardConfig(**settings(tmp_path)),
        train_dataset=dataset("preference"),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    call, output = calls[0]
    plain = make_model(SleepForSequenceClassification, num_labels=1)
    with torch.no_grad():
        rewards = [
            plain(ids[mask][None]).logits for ids, mask in zip(call["input_ids"], call["attention_mask"].bool())
        ]
    rewards = torch.cat(rewards)
    torch.testing.assert_close(output.logits, rewards, **TOLERANCE)
    chosen, rejected = rewards.chunk(2)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert changed(model, before)


# GRPOTrainer: prompts padded on the left, completions on the right.


@pytest.mark.parametrize("lengths", [(19, 19 + L), (1, 4)], ids=["padded by a window", "padded within a window"])
def test_grpo_scores_what_it_has_sampled(lengths, tmp_path, caplog):
    """However much a row is padded on the left, and without a word about it."""
    prompts = [{"prompt": [say("user", length, seed=length)]} for length in lengths]
    model, plain = make_model(), make_model()
    calls, before = record(model), parameters(model)
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=different_words,
        args=trl.GRPOConfig(
            **{name: value for name, value in settings(tmp_path).items() if name != "max_length"},
            num_generations=2,
            max_completion_length=2 * L + 5,
        ),
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert math.isfinite(log["loss"]) and log["reward_std"] > 0 and changed(model, before)

    *generation, (call, output) = calls
    ids, labels, mask = call["input_ids"], call["labels"][:, 1:], call["attention_mask"]
    scored = labels != -100
    assert len(generation) > L  # it slept while it generated

    # The trainer has shuffled the rows.
    generated = torch.cat([given["input_ids"] for given, _ in generation], dim=1)
    order = (ids[:, None, :-1] == generated[None]).all(-1).int().argmax(1)
    assert ids[:, :-1].equal(generated[order])
    logits = torch.stack([result.logits[:, -1] for _, result in generation], dim=1)[order]
    sampled = logits.log_softmax(-1).gather(-1, ids[:, -len(generation) :, None]).squeeze(-1)
    torch.testing.assert_close(output.log_probs[scored], sampled[scored[:, -len(generation) :]], **TOLERANCE)
    torch.testing.assert_close(output.log_probs[scored], log_probabilities(plain, ids, mask)[scored], **TOLERANCE)

    assert not mask.all() and not any("padding" in entry.message for entry in caplog.records)
    assert_scored_as_alone(plain, call, output)


def different_words(completions, **kwargs):
    """The reward."""
    return [float(len(set(message["content"].split()))) for (message,) in completions]


# The example


@pytest.mark.programs
def test_the_example_trains_answers_and_reloads(tmp_path):
    command = [sys.executable, REPOSITORY / "examples" / "finetune_trl.py", "--output", tmp_path / "model"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    for more in ([], ["--model", tmp_path / "model"]):  # from nothing, and from what was saved
        run = subprocess.run(
            [*command, *more, "--steps", "2", "--passes", "3", "--chats", "3"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        assert "3 of 3 answers are the same" in run.stdout
        assert "Warning" not in run.stderr
