"""A saved model loads anywhere, with its code, and is the same model there."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from builders import random_ids
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from strangers import outputs, run_as_stranger
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_sleep import (
    SleepConfig,
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
)
from modeling_sleep.hub_upload.contents import code_files


CODE = code_files()
FILES = {"causal": {"config.json", "generation_config.json", "model.safetensors", *CODE}}
for kind in ("base", "sequence", "tokens"):
    FILES[kind] = FILES["causal"] - {"generation_config.json"}


def make_config(**overrides):
    """A field of every kind that is not the default."""
    options = dict(window_size=5, loop_span=[0, 3], memory_layers=[3], linear_num_value_heads=8, initializer_range=0.2)
    return SleepConfig.from_preset("tiny", **{**options, **overrides})


def make_model(**overrides):
    """In float64, so that rounding, which may differ from process to process, does not matter."""
    torch.manual_seed(0)
    model = SleepForCausalLM(make_config(**overrides)).double().eval()
    torch.nn.init.normal_(model.model.layers[3].linear_attn.o_proj.weight, std=0.2)  # zeros would hide a lost layer
    return model


def make_ids():
    return random_ids(2, 17)


def assert_same_logits(model, expected):
    torch.testing.assert_close(model(make_ids()).logits, expected, atol=1e-9, rtol=0)


# Both copies of the code name a cache layer of the same type; the last one imported is `DynamicCache`'s.
CLASH = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_sleep import SleepForCausalLM, SleepWindowLayer
from modeling_sleep.hub_upload.contents import AUTO_MAP

folder, out = map(Path, sys.argv[1:])
ids = load_file(folder / "ids.safetensors")["ids"]
remote_class = get_class_from_dynamic_module(AUTO_MAP["AutoModelForCausalLM"], folder / "causal")
layers = {"package": SleepWindowLayer, "remote": DYNAMIC_LAYER_TYPE_MAPPING["sleep_attention"]}
models = {
    "package": SleepForCausalLM.from_pretrained(folder / "causal"),
    "remote": remote_class.from_pretrained(folder / "causal"),
}
assert layers["remote"] is not layers["package"]
assert remote_class is not SleepForCausalLM

results = {}
for last, layer in layers.items():
    DYNAMIC_LAYER_TYPE_MAPPING["sleep_attention"] = layer
    for first, model in models.items():
        for second, other in models.items():
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                logits = [model(ids[:, :8], past_key_values=cache).logits]
                assert type(cache.layers[0]) is layer
                logits.append(other(ids[:, 8:], past_key_values=cache).logits)
            results[f"{last} registered, {first} then {second}"] = torch.cat(logits, dim=1)
        results[f"{last} registered, {first} generates"] = model.generate(ids, max_new_tokens=14, sleep_passes=3)
save_file(results, out / "outputs.safetensors")
"""


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The folder with all saved models, what they give as in the clean room, and what the first gives besides."""
    folder = tmp_path_factory.mktemp("saved")
    save_file({"ids": make_ids()}, folder / "ids.safetensors")
    torch.manual_seed(1)
    models = {"causal": model, "base": model.model}
    for kind, head in (("sequence", SleepForSequenceClassification), ("tokens", SleepForTokenClassification)):
        models[kind] = head(make_config(num_labels=3)).double().eval()
    for kind, each in models.items():
        each.save_pretrained(folder / kind)
    with torch.no_grad():
        plain = {"logits": model(make_ids()).logits}
        plain["greedy"] = model.generate(make_ids(), max_new_tokens=14, do_sample=False, sleep_passes=3)
    return folder, outputs({**models, "head taken off": model.model}, make_ids()), plain


@pytest.fixture(scope="module")
def generations(saved, tmp_path_factory):
    """Saved here, loaded and saved again without the package, loaded once more without it."""
    folders = [saved[0], *(tmp_path_factory.mktemp("again") for _ in range(2))]
    results = [run_as_stranger(*pair) for pair in zip(folders, folders[1:], strict=False)]
    return folders, results


# Without the package.


@pytest.mark.programs
@pytest.mark.parametrize("generation", [0, 1], ids=["loaded", "saved and loaded again"])
def test_the_folder_is_the_model_where_the_package_is_not_installed(saved, generations, generation):
    expected, found = saved[1], generations[1][generation]
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.programs
@pytest.mark.parametrize("generation", [0, 1, 2], ids=["saved", "saved again", "and again"])
@pytest.mark.parametrize("kind", FILES)
def test_the_folder_holds_what_is_needed_and_nothing_else(generations, generation, kind):
    folder = generations[0][generation] / kind
    assert {path.name for path in folder.iterdir()} == FILES[kind]
    for name, source in CODE.items():
        assert (folder / name).read_bytes() == source.read_bytes()
    first = generations[0][0] / kind
    assert load_file(folder / "model.safetensors").keys() == load_file(first / "model.safetensors").keys()
    assert json.loads((folder / "config.json").read_text()) == json.loads((first / "config.json").read_text())


@pytest.mark.programs
def test_package_and_remote_code_share_caches_in_one_process(saved, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-c", CLASH, saved[0], tmp_path]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = load_file(tmp_path / "outputs.safetensors")
    assert len(found) == 12
    for name, tensor in found.items():
        expected = saved[2]["greedy" if name.endswith("generates") else "logits"]
        torch.testing.assert_close(tensor, expected, atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# With the package.


def test_auto_classes_give_the_package_s_classes(saved):
    folder = saved[0]
    assert type(AutoConfig.from_pretrained(folder / "causal")) is SleepConfig
    assert type(AutoModel.from_pretrained(folder / "causal")) is SleepModel
    assert type(AutoModel.from_pretrained(folder / "base")) is SleepModel
    assert type(AutoModelForCausalLM.from_pretrained(folder / "causal")) is SleepForCausalLM
    assert type(AutoModelForCausalLM.from_config(make_config())) is SleepForCausalLM


@pytest.mark.parametrize("sharded", [False, True])
def test_loading_leaves_nothing_to_chance(model, tmp_path, sharded):
    model.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == sharded
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(sleep_passes=0), "`sleep_passes` .N. counts all passes"),
        (dict(window_size=-3), "`window_size` .L. must be at least 1 token, got -3"),
        (dict(loop_span=(2, 1)), "`loop_span` must be .start, end. with 0 <= start <= end <= 4 layers, got .2, 1."),
        (dict(num_hidden_layers=2), "layer_types"),
    ],
)
def test_fields_that_are_set_while_loading_are_checked(saved, overrides, message):
    folder = saved[0] / "causal"
    assert AutoModelForCausalLM.from_pretrained(folder, sleep_passes=7, window_size=3).config.sleep_passes == 7
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, **overrides)


def test_fields_that_are_set_later_are_checked(saved):
    model = AutoModelForCausalLM.from_pretrained(saved[0] / "causal")
    model.config.sleep_passes = 0
    with pytest.raises(ValueError, match="`sleep_passes` .N. counts all passes over a window.* got 0"):
        model(torch.ones(1, 3, dtype=torch.long))


def test_the_head_alone_is_new_on_a_model_saved_without(saved):
    _, info = AutoModelForCausalLM.from_pretrained(saved[0] / "base", output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {"missing_keys": ["lm_head.weight"]}


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 1e-3), (torch.float16, 0.1), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("way", ["saved", "asked for"])
def test_dtypes_survive(model, saved, tmp_path, dtype, rounding, way):
    expected = copy.deepcopy(model).to(dtype)
    if way == "saved":
        expected.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(saved[0] / "causal", dtype=dtype)
    assert loaded.config.dtype == loaded.dtype == dtype
    # A_log and dt_bias among them, and as they were, not drawn anew.
    assert all(tensor.equal(expected.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    assert (loaded(make_ids()).logits - saved[2]["logits"]).abs().max() < rounding


@pytest.mark.parametrize("fresh", [False, True], ids=["new", "loaded"])
def test_tied_embeddings_are_saved_once(tmp_path, fresh):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    if fresh:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert len(keys & {"lm_head.weight", "model.embed_tokens.weight"}) == 1
    assert_same_logits(model, make_model(tie_word_embeddings=True)(make_ids()).logits)


@pytest.mark.parametrize(
    "device_map",
    ["auto", {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "disk"}],
    ids=["auto", "disk"],
)
def test_device_maps_change_nothing(saved, tmp_path, device_map):
    loaded = AutoModelForCausalLM.from_pretrained(saved[0] / "causal", device_map=device_map, offload_folder=tmp_path)
    assert (loaded.lm_head.weight.device.type == "meta") == (device_map != "auto")
    assert_same_logits(loaded, saved[2]["logits"])
    assert loaded.generate(make_ids(), max_new_tokens=14, sleep_passes=3).equal(saved[2]["greedy"])


def test_offloading_to_the_cpu_changes_nothing(model, saved):
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    assert_same_logits(offloaded, saved[2]["logits"])
    assert offloaded.generate(make_ids(), max_new_tokens=14, sleep_passes=3).equal(saved[2]["greedy"])


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copied_model_is_another_model(model, saved, copier):
    copied = copier(model)
    assert_same_logits(copied, saved[2]["logits"])
    copied.model.embed_tokens.weight.data.zero_()
    assert_same_logits(model, saved[2]["logits"])


# The configuration.


def test_a_config_survives_saving(tmp_path):
    config = make_config(
        bptt_windows=3,
        rope_parameters={"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0},
        linear_dt_min=2e-4,
        eos_token_id=[1, 2],
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SleepConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert (loaded.loop_span, loaded.looped_layers, loaded.memory_layers) == ([0, 3], (0, 3), [3])


def test_fields_of_later_versions_are_kept(saved, tmp_path):
    for path in (saved[0] / "causal").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dream_depth": {"rem": 3}}))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.dream_depth == {"rem": 3}
    assert_same_logits(loaded, saved[2]["logits"])
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dream_depth"] == {"rem": 3}


def on_meta_then_empty(config):
    with torch.device("meta"):
        model = SleepForCausalLM(config)
    assert model.device.type == "meta"
    model.to_empty(device="cpu").init_weights()
    return model


@pytest.mark.parametrize(
    "make",
    [
        SleepForCausalLM,
        AutoModelForCausalLM.from_config,
        lambda config: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16),
        lambda config: SleepForCausalLM.from_pretrained(None, config=config, state_dict={}),
        on_meta_then_empty,
    ],
    ids=["init", "from_config", "from_config in bfloat16", "from nothing by way of meta", "meta, then empty"],
)
def test_memory_is_initialised_to_last(make):
    low_a, high_a, low_dt, high_dt = 0.2, 0.6, 1e-3, 1e-2
    config = make_config(
        linear_a_min=low_a,
        linear_a_max=high_a,
        linear_dt_min=low_dt,
        linear_dt_max=high_dt,
        linear_num_value_heads=64,
        linear_value_head_dim=2,
    )
    model = make(config)
    room = 0.05 if model.dtype == torch.bfloat16 else 1e-3  # for rounding
    for i in (1, 3):
        mixer = model.model.layers[i].linear_attn
        decay, dt = mixer.A_log.detach().double().exp(), F.softplus(mixer.dt_bias.detach().double())
        for values, low, high in ((decay, low_a, high_a), (dt, low_dt, high_dt)):
            assert low * (1 - room) <= values.min() < low * 1.4
            assert high / 1.4 < values.max() <= high * (1 + room)
        assert dt.log().mean().exp().item() == pytest.approx(
            (low_dt * high_dt) ** 0.5, rel=0.5
        )  # uniform in the logarithm
        assert (mixer.o_proj.weight == 0).all() == (i == 3)  # a memory layer changes nothing at first
        assert 0 < mixer.conv1d.weight.abs().max() <= config.linear_conv_kernel_dim**-0.5
        assert (mixer.o_norm.weight == 1).all()
    assert model.lm_head.weight.std().item() == pytest.approx(config.initializer_range, rel=0.1)
