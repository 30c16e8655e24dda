"""A memory saved by itself, and put on its base again."""

import json

import pytest
import torch
from builders import random_ids
from originals import SIZES, L, make_original

from modeling_sleep import SleepForCausalLM
from modeling_sleep.adapter_sleep import LATER_FIELDS
from modeling_sleep.adopt_sleep import RECALL_FIELDS


@pytest.fixture
def original():
    return make_original("llama")


@pytest.fixture
def taught(original, tmp_path):
    """A model whose memory reads, saved as a memory."""
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, sleep_passes=3, read_out=0.5)
    model.save_pretrained(tmp_path / "memory", memory_only=True)
    return model


def test_a_memory_is_put_on_its_base(original, taught, tmp_path):
    folder = tmp_path / "memory"
    assert {path.name for path in folder.iterdir()} == {"README.md", "memory_config.json", "memory_model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < sum(p.nbytes for p in original.parameters())
    again = SleepForCausalLM.from_causal_lm(original, memory=str(folder))
    assert (again.config.window_size, again.config.sleep_passes) == (L, 3)
    ids = random_ids(2, 3 * L, low=3, high=SIZES["vocab_size"])
    torch.testing.assert_close(again(ids).logits, taught(ids).logits)
    assert SleepForCausalLM.from_causal_lm(original, 6, memory=str(folder)).config.window_size == 6


def test_an_overlap_that_is_asked_of_a_memory_without_one_pins_the_attention_sink(original, tmp_path):
    SleepForCausalLM.from_causal_lm(original, L, window_overlap=0).save_pretrained(tmp_path, memory_only=True)
    for asked, expected in (
        ({}, (0, 0)),
        (dict(window_overlap=3), (3, 1)),
        (dict(window_overlap=3, pinned_tokens=0), (3, 0)),
    ):
        config = SleepForCausalLM.from_causal_lm(original, memory=str(tmp_path), **asked).config
        assert (config.window_overlap, config.pinned_tokens) == expected


def test_the_same_weights_in_another_precision_are_known(original, taught, tmp_path):
    half = SleepForCausalLM.from_causal_lm(original.bfloat16(), memory=str(tmp_path / "memory"))
    assert half.dtype == torch.bfloat16 and half.model.layers[4].o_proj.weight.abs().max() > 0


def test_a_memory_saved_before_there_were_fields_goes_on_as_it_did(original, tmp_path):
    """Not as a new one, to which `from_causal_lm` gives them."""
    before = SleepForCausalLM.from_causal_lm(original, L, **LATER_FIELDS)
    before.save_pretrained(tmp_path, memory_only=True)
    path = tmp_path / "memory_config.json"
    config = json.loads(path.read_text())
    new = SleepForCausalLM.from_causal_lm(original, L).config
    for name, value in LATER_FIELDS.items():
        assert config.pop(name) == value
        assert (getattr(new, name) != value) == (name in (*RECALL_FIELDS, "recall_key_layer"))
    path.write_text(json.dumps(config))
    loaded = SleepForCausalLM.from_causal_lm(original, memory=str(tmp_path))
    assert all(getattr(loaded.config, name) == value for name, value in LATER_FIELDS.items())
    expected = before.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def test_another_base_is_refused(taught, tmp_path):
    folder = str(tmp_path / "memory")
    torch.manual_seed(1)
    other = make_original("llama")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    with pytest.raises(ValueError, match="other weights .*Put it on its own base, or teach"):
        SleepForCausalLM.from_causal_lm(other, memory=folder)
    with pytest.raises(ValueError, match="num_hidden_layers is 4, not 5"):
        SleepForCausalLM.from_causal_lm(make_original("llama", num_hidden_layers=4), memory=folder)


def test_what_is_no_memory_is_said(original, taught, tmp_path):
    with pytest.raises(ValueError, match="'recall', 'gated_delta', or a folder"):
        SleepForCausalLM.from_causal_lm(original, memory=str(tmp_path))
    with pytest.raises(ValueError, match="says what .*memory_layers.* are"):
        SleepForCausalLM.from_causal_lm(original, memory_layers=[1], memory=str(tmp_path / "memory"))
    with pytest.raises(ValueError, match="`calibration` is what a new recall memory begins with"):
        SleepForCausalLM.from_causal_lm(original, memory=str(tmp_path / "memory"), calibration=[[1] * L])
    spread = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="gated_delta")
    with pytest.raises(ValueError, match="saves recall memories"):
        spread.save_pretrained(tmp_path / "none", memory_only=True)
    assert not (tmp_path / "none").exists()


def test_no_name_of_a_folder_is_given_away(original, tmp_path):
    original.save_pretrained(tmp_path / "base")
    model = SleepForCausalLM.from_causal_lm(str(tmp_path / "base"), window_size=L)
    model.save_pretrained(tmp_path / "memory", memory_only=True)
    assert json.loads((tmp_path / "memory" / "memory_config.json").read_text())["base_model_name_or_path"] is None
    assert str(tmp_path) not in (tmp_path / "memory" / "README.md").read_text()
    model.config.adopted_from = "somebody/some-model"
    (tmp_path / "memory" / "README.md").unlink()
    model.save_pretrained(tmp_path / "memory", memory_only=True)
    assert "base_model: somebody/some-model\n" in (tmp_path / "memory" / "README.md").read_text()
