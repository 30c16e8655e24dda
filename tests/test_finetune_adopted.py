"""The texts that teach an adopted model to sleep, and the examples that do it, on a tiny model."""

import importlib.util
import json
import re
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from examples.experiments import finetune_adopted
from examples.experiments.natural_texts import NAMES, THINGS, NaturalTexts, manual_pages
from examples.experiments.tasks.gsm_symbolic import draw_problem
from examples.finetune_trainer import new_tokenizer
from modeling_sleep import SleepForCausalLM


L = 48
WIDE = 160  # facts of the evaluation need room
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>\n' + message.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = new_tokenizer(manual_pages("train")[:10], vocab_size=600)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def pretrained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The texts.


@pytest.mark.parametrize("split", ["train", "eval"])
def test_facts_are_told_and_asked_for_and_their_values_labelled(tokenizer, split):
    texts = NaturalTexts(tokenizer, L, windows=6, told=3)
    seen = set()
    for index in range(60):
        row = texts.facts(index, split)
        ids = row["input_ids"]
        text = tokenizer.decode(ids)
        assert len(row["since"]) == len(row["values"]) == 3
        for since, (begin, end) in zip(row["since"], row["values"], strict=True):
            # Told once and answered once, each in the sentence of the same person.
            answer = tokenizer.decode(ids[:begin]).rsplit("<assistant>\n", 1)[1]
            name, thing = re.fullmatch(r"(\w+)'s ([\w ]+) is ?", answer).groups()
            value = tokenizer.decode(ids[begin:end]).strip()
            sentence = f"{name}'s {thing.strip()} is {value}."
            assert name in NAMES.split() and value in THINGS[thing].split()
            assert text.count(sentence) == 2 and text.count(f"What is {name}'s {thing}?") == 1
            # The sleeps, counted independently: by the tokens up to the end of the sentence.
            told = len(tokenizer(text[: text.index(sentence) + len(sentence)])["input_ids"]) - 1
            assert abs(since - ((begin - 1) // L - told // L)) <= (told % L in (0, L - 1))
            assert row["labels"][begin:end] == ids[begin:end]
            seen.add(since)
        labelled = tokenizer.decode([i for i in row["labels"] if i != -100])
        assert labelled.count("<end>") == 3 and "What" not in labelled and "<user>" not in labelled
    assert {1, 2, 3} <= seen


def test_problems_have_their_question_first_or_last(tokenizer):
    texts = NaturalTexts(tokenizer, L, windows=6)
    places = set()
    for index in range(40):
        row = texts.problems(index, "eval")
        ids, ((begin, end),) = row["input_ids"], row["values"]
        text = tokenizer.decode(ids)
        assert row["labels"][:begin] == [-100] * begin
        context, question, answer, _ = draw_problem(texts._rng("problems", "eval", index), "eval")
        assert answer == tokenizer.decode(ids[begin:end]).strip()
        places.add(text.index(question) < text.index(context))
    assert places == {True, False}


def test_ordinary_text_fills_its_windows_and_is_labelled_throughout(tokenizer):
    texts = NaturalTexts(tokenizer, L, windows=3)
    for index in range(20):
        row = texts.ordinary(index, "train")
        assert len(row["input_ids"]) == 3 * L and row["labels"] == row["input_ids"]


def test_the_same_index_is_the_same_text_and_splits_share_nothing(tokenizer):
    first, second = (NaturalTexts(tokenizer, L, seed=3) for _ in range(2))
    mixture = dict(facts=0.5, problems=0.2, ordinary=0.3)
    one, two = first.dataset(30, "train", **mixture), second.dataset(30, "train", **mixture)
    assert one.to_list() == two.to_list() and set(one["kind"]) == set(mixture)
    assert one.to_list() != NaturalTexts(tokenizer, L, seed=4).dataset(30, "train", **mixture).to_list()
    assert not set(manual_pages("train")) & set(manual_pages("eval")) and len(manual_pages("eval")) > 5
    assert first.facts(0, "train") != first.facts(0, "eval")


def test_the_collator_pads_labels_too(tokenizer):
    texts = NaturalTexts(tokenizer, L)
    rows = [{k: texts.facts(i, "train")[k] for k in ("input_ids", "labels")} for i in range(4)]
    batch = texts.collator()(rows)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["labels"][i, :length].tolist() == row["labels"]
        assert (batch["labels"][i, length:] == -100).all() and batch["attention_mask"][i].sum() == length


def test_a_tokenizer_that_cannot_chat_is_refused(tokenizer):
    silent = new_tokenizer(["a"], vocab_size=300)
    with pytest.raises(ValueError, match="no chat template"):
        NaturalTexts(silent, L)


# The examples.

SMALL = (
    f"--window-size {L} --windows 3 --memory-layers 1 --examples 0 --batch-size 2 --mixture 0.4 0.2 0.4 --passes 1 2"
)


def test_adopts_trains_in_two_stages_saves_and_loads(pretrained, tmp_path, capsys):
    folder = tmp_path / "sleep"
    options = f"--output {folder} --model {pretrained} {SMALL} --steps 6 4 --rank 2".split()
    finetune_adopted.main(options)
    assert "loss" not in capsys.readouterr().out

    assert json.loads((folder / "adoption.json").read_text())["readers"] == {}  # nothing was to be measured
    for name in ("adoption.png", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).exists(), name
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert not any("lora" in name or "modules_to_save" in name for name, _ in model.named_parameters())


def test_without_the_harness_it_says_so_before_any_work(pretrained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--examples 0"):
        finetune_adopted.main(f"--output {tmp_path / 'out'} --model {pretrained}".split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='no lm_eval: pip install ".[eval]"')
def test_what_is_measured_before_and_after(pretrained, tmp_path, capsys):
    """Right after conversion it is the original that has forgotten; then it learns, in every stage."""
    options = f"--output {tmp_path} --model {pretrained} {SMALL} --steps 6 4 --rank 2 --window-size {WIDE}"
    assert finetune_adopted.main(f"{options} --examples 3".split()) == 0
    readers = json.loads((tmp_path / "adoption.json").read_text())["readers"]
    assert list(readers) == [
        *("original, whole cache", "original, cut to a window", "with sleep, not trained"),
        *("stage 1, cut to a window", "stage 1, N = 1", "stage 1, N = 2"),
        *("stage 2, cut to a window", "stage 2, N = 1", "stage 2, N = 2"),
    ]
    assert all(sum(cell["total"] for cell in reader["facts"]) == 3 for reader in readers.values())
    assert readers["stage 1, N = 2"]["perplexity"] < readers["with sleep, not trained"]["perplexity"]
    assert readers["stage 2, N = 2"]["perplexity"] < readers["stage 1, N = 2"]["perplexity"]
    assert readers["with sleep, not trained"] != readers["original, whole cache"]
    assert (tmp_path / "adoption.png").exists() and "perplexity" in capsys.readouterr().out


HYBRID = dict(
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
FAMILIES = {
    "mistral": {},
    "qwen2": {},
    "qwen3": dict(head_dim=16),
    "olmo_hybrid": HYBRID,
    "qwen3_5_text": dict(HYBRID, head_dim=16),
    "qwen3_next": dict(HYBRID, head_dim=16, num_experts=0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_both_stages_in_slices(family, tokenizer, tmp_path, capsys):
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **sizes,
        **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    original = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    original.save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")

    few = f"--window-size {L} --windows 2 --examples 0 --batch-size 2 --passes 2 --memory-layers 1"
    if FAMILIES[family].get("layer_types"):
        few = few.removesuffix(" --memory-layers 1")
    folder = tmp_path / "sleep"
    options = f"--model {tmp_path / 'original'} --output {folder} {few} --steps 3 2 --rank 2"
    assert finetune_adopted.main(f"{options} --minutes 0.00001".split()) == 0
    assert "stage 1: 1 of 3 steps" in capsys.readouterr().out
    assert finetune_adopted.main(options.split()) == 0
    losses = json.loads((folder / "adoption.json").read_text())["losses"]
    assert all(losses)

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert not any("lora" in name or "modules_to_save" in name for name, _ in model.named_parameters())
    inserted = {} if "layer_types" in FAMILIES[family] else dict(memory_layers=1, memory="gated_delta")
    before = SleepForCausalLM.from_causal_lm(original, window_size=L, **inserted)
    changed = {
        name
        for name, parameter in model.named_parameters()
        if (parameter - before.get_parameter(name)).abs().max() > 0
    }
    memory = [f"model.{name}." for name in finetune_adopted.memory_of(before)]
    assert changed >= {name for name, _ in before.named_parameters() if name.startswith(tuple(memory))}
    assert any(".mlp." in name for name in changed) and any(".self_attn." in name for name in changed)


def test_stage_1_trains_the_memory_alone(pretrained, tmp_path):
    options = f"--output {tmp_path} --model {pretrained} {SMALL} --steps 2 0".split()
    assert finetune_adopted.main(options) == 0
    original = AutoModelForCausalLM.from_pretrained(pretrained)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    (memory,) = model.config.memory_layers
    kept = [layer for i, layer in enumerate(model.model.layers) if i != memory]
    for layer, theirs in zip(kept, original.model.layers, strict=True):
        for name, parameter in theirs.named_parameters():
            torch.testing.assert_close(layer.get_parameter(name), parameter, atol=0, rtol=0)
    assert model.model.layers[memory].linear_attn.o_proj.weight.abs().max() > 0


def test_goes_on_from_a_slice_and_refuses_other_settings(pretrained, tmp_path, capsys):
    options = f"--output {tmp_path} --model {pretrained} {SMALL} --steps 4 0"
    assert finetune_adopted.main(f"{options} --minutes 0.00001".split()) == 0
    assert "stage 1: 1 of 4 steps. The same command goes on from here." in capsys.readouterr().out
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(SystemExit, match="other settings"):
        finetune_adopted.main(f"{options} --seed 1".split())
    assert finetune_adopted.main(f"{options} --minutes 60".split()) == 0  # time enough
    assert (tmp_path / "model.safetensors").exists()


def test_a_model_in_half_precision_is_trained_in_float32(pretrained, tmp_path):
    """Steps that bfloat16 would round away."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(half)
    options = f"--output {tmp_path / 'out'} --model {half} {SMALL} --steps 3 0 --learning-rate 1e-4 0"
    assert finetune_adopted.main(options.split()) == 0
    model = SleepForCausalLM.from_pretrained(tmp_path / "out")
    (memory,) = (model.model.layers[i] for i in model.config.memory_layers)
    assert model.dtype == torch.float32 and model.config.adopted_from is None  # a folder is nothing to strangers
    change = (memory.input_layernorm.weight - 1).abs()
    assert 0 < change.max() < 1e-3
