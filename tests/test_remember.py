"""The demo of a pretrained model that remembers, with a tiny model: what is counted, and what is drawn."""

import json
import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from examples import remember
from examples.finetune_trainer import new_tokenizer
from modeling_sleep import SleepForCausalLM
from modeling_sleep.teach.chat import Chat
from modeling_sleep.teach.evaluate import Reader
from modeling_sleep.teach.filler import sentences


L = 32


@pytest.fixture(autouse=True)
def as_loud_as_before():
    """The program lowers transformers' voice."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny original, and a memory for it that reads at once."""
    folder = tmp_path_factory.mktemp("remember")
    texts = [*sentences("prose", "eval"), *(" ".join(parts) for parts in remember.FACTS)] * 3
    tokenizer = new_tokenizer(texts, vocab_size=1000)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<' + message['role'] + '>\n' + message['content'] + '</s>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    original = LlamaForCausalLM(config)
    original.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, read_out=0.5)
    model.save_pretrained(folder / "memory", memory_only=True)
    return folder, Chat(tokenizer), model, original


def test_three_readers_side_by_side(folder, tmp_path, capsys, monkeypatch):
    folder, *_ = folder
    plot = tmp_path / "remember.png"
    options = ["--base", folder / "base", "--memory", folder / "memory", "--windows", 1, 3, "--plot", plot]
    monkeypatch.setattr("sys.argv", ["remember.py", *map(str, options)])
    assert remember.main() == 0
    told = capsys.readouterr().out
    assert [*re.findall(r"After (\d+) tokens of other text", told)] == ["32", "96"]
    assert told.count("What is my dog called?") == 2 and plot.stat().st_size > 10_000
    kept = [[float(x) for x in re.findall(r"([\d.]+) MB", line)] for line in told.splitlines() if "kept" in line]
    (ours, whole, same), (ours_later, whole_later, _) = kept
    assert ours == ours_later and whole < whole_later and abs(same - ours) <= 0.02


@torch.no_grad()
def test_an_answer_is_right_if_it_names_the_value(folder, monkeypatch):
    """And what is told is in the text, once."""
    _, chat, model, _ = folder
    before = remember.told(chat)
    text = chat.tokenizer.decode(before)
    assert all(text.count(fact) == 1 for fact, _, _ in remember.FACTS)
    said = iter(
        f"I think it is {value.upper()}." if i % 2 else "Noted." for i, (_, _, value) in enumerate(remember.FACTS)
    )
    monkeypatch.setattr(Reader, "write", lambda self, ids, cache, before: (next(said), True))
    found = remember.ask(Reader("with sleep", model, chat), before)
    assert [right for _, right in found["answers"]] == [bool(i % 2) for i in range(len(remember.FACTS))]


def test_a_missing_original_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["remember.py", "--base", str(tmp_path)])
    with pytest.raises(SystemExit):
        remember.main()
    assert "`make smollm2` brings it" in capsys.readouterr().err


def test_the_memory_that_ships_is_small_and_named(request):
    config = json.loads((remember.MEMORY / "memory_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = (remember.MEMORY / "README.md").read_text()
    assert "license: apache-2.0" in card and "| memory | eval |" in card
    assert sum(path.stat().st_size for path in remember.MEMORY.iterdir()) < 1e7  # 4.7 million parameters in half
