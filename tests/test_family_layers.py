"""In-tree hybrids that sleep: inside the first window the family's own model, then Algorithm 1 over its layers."""

import functools
import importlib
import json
import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from builders import random_ids
from families import FAMILIES, SMALL, Float64, L, make_model, make_original, put_to_sleep
from helpers import assert_close, fast_weights, gradients_of
from huggingface_hub.errors import StrictDataclassClassValidationError
from packaging.version import Version
from safetensors.torch import save_file
from strangers import outputs, run_as_stranger
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from modeling_sleep import (
    SleepConfig,
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
    memory_target_modules,
)
from modeling_sleep.family_layers_sleep import MODULES, family_base_config, family_state_dict


each_family = pytest.mark.parametrize("family", FAMILIES)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
# There OLMo-Hybrid's cache does not know what masks ask of it, and mixers take no S in for more than one token.
BEFORE_5_17 = Version(transformers.__version__) < Version("5.17")
make_ids = functools.partial(random_ids, low=0, high=SMALL["vocab_size"])


def gradients(model, logits, ids):
    return gradients_of(F.cross_entropy(logits[:, -1], ids[:, 0]), model)


# A recall memory inserted beside the family's own.


@each_family
@torch.no_grad()
def test_a_recall_memory_is_inserted(family, tmp_path):
    """Nothing changes in the first window; behind it, pieces equal the whole; the folder loads."""
    original = make_original(family)
    model = put_to_sleep(original, memory="recall", memory_layers=[1, 5], read_out=0.5, sleep_passes=2)
    assert [i for i, x in enumerate(model.config.layer_types) if x == "recall_memory"] == [1, 5]
    without, ids = put_to_sleep(original), make_ids(2, 3 * L + 2)
    whole = model(ids).logits
    assert torch.equal(whole[:, :L], without(ids[:, :L]).logits)
    assert (whole - without(ids).logits)[:, L:].abs().max() > 1e-3
    cache, pieces = DynamicCache(config=model.config), []
    for piece in ids.split(4, dim=1):
        pieces.append(model(piece, past_key_values=cache).logits)
    assert_close(torch.cat(pieces, 1), whole, atol=1e-6)  # families' norms compute in float32
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(again(ids).logits, whole, atol=1e-6)
    model.save_pretrained(tmp_path / "memory", memory_only=True)
    again = put_to_sleep(original, memory=str(tmp_path / "memory"), sleep_passes=2)
    assert_close(again(ids).logits, whole, atol=1e-6)


# Inside the first window.


@each_attention
@each_family
def test_the_first_window_is_the_original(family, attention):
    original = make_original(family)
    original.set_attn_implementation(attention)
    model, ids = put_to_sleep(original, window_size=20, sleep_passes=3), make_ids(2, 20)
    with Float64():
        expected, ours = original(ids, use_cache=False).logits, model(ids).logits
        assert_close(ours, expected)
        expected, ours = gradients(original, expected, ids), gradients(model, ours, ids)
    if not BEFORE_5_17:  # else three convolutions stand for one
        assert_close(ours, expected)
    assert all(grad.abs().max() > 0 for grad in ours.values())


@each_family
def test_the_first_window_is_the_original_in_the_precision_of_use(family):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        original = make_original(family, dtype)
        model, ids = put_to_sleep(original, window_size=20), make_ids(2, 20)
        assert {parameter.dtype for parameter in (*original.parameters(), *model.parameters())} == {dtype}
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        for options in ({}, {"attention_mask": mask}):
            ours, expected = (m(ids, use_cache=False, **options).logits for m in (model, original))
            if options:  # what padding predicts means nothing
                ours, expected = ours[mask == 1], expected[mask == 1]
            assert (ours - expected).norm() < tolerance * expected.norm()


@each_family
def test_hidden_states_and_attentions_are_the_original_ones(family):
    original = make_original(family)
    original.set_attn_implementation("eager")
    model, ids = put_to_sleep(original), make_ids(2, L)
    with Float64():
        options = dict(output_hidden_states=True, output_attentions=True, use_cache=False)
        ours, expected = model(ids, **options), original(ids, **options)
    assert len(ours.hidden_states) == 6 and len(ours.attentions) == 2
    assert_close(ours.hidden_states, expected.hidden_states)
    assert_close(ours.attentions, expected.attentions)


@each_family
def test_generates_the_original_text_inside_the_window_and_sleeps_beyond(family):
    original = make_original(family)
    model, ids, naps = put_to_sleep(original, window_size=10), make_ids(2, 5), []
    options = dict(do_sample=False, sleep_callback=naps.append)
    with Float64():
        ours = model.generate(ids, max_new_tokens=5, **options)
        if not (BEFORE_5_17 and family.startswith("olmo")):
            assert torch.equal(ours, original.generate(ids, max_new_tokens=5, do_sample=False))
        assert naps == []
        longer = model.generate(ids, max_new_tokens=17, sleep_passes=3, **options)
    assert torch.equal(longer[:, :10], ours) and longer.shape == (2, 22)
    assert [nap.window_index for nap in naps] == [0, 1] and all(nap.state_norm > 0 for nap in naps)


@each_family
def test_nothing_of_the_familys_kernels_runs(family, monkeypatch):
    """They are chosen when transformers is imported, and with `fla` installed do not run on a CPU."""
    model = make_model(family)
    folder, _ = MODULES[family.partition(" ")[0]]
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")

    def refuse(*args, **kwargs):
        raise AssertionError("a kernel of the family")

    for name in vars(module).copy():
        if "gated_delta_rule" in name or "causal_conv1d" in name:
            monkeypatch.setattr(module, name, refuse)
    model(make_ids(1, 2 * L + 1), sleep_passes=2)


# Beyond it.


def blocks(original, h, S, layers):
    """h, S <- Blocks(h, S) over one window, (batch, tokens, hidden_size), by the family's own layers and cache."""
    S, cache, length = dict(S), DynamicCache(config=original.config), h.shape[1]
    positions = torch.arange(length).expand(len(h), -1)
    rotary = original.model.rotary_emb
    rotation = None if rotary is None else rotary(h, positions)
    mask = torch.full((length, length), -torch.inf, dtype=h.dtype).triu(1)[None, None]
    for i in layers:
        is_linear = original.config.layer_types[i] == "linear_attention"
        if is_linear and S.get(i) is not None:
            mixer = original.model.layers[i].linear_attn
            cache.update_conv_state(S[i].new_zeros(len(h), mixer.conv_dim, mixer.conv_kernel_size), i)
            cache.update_recurrent_state(S[i], i)
        h = original.model.layers[i](
            h,
            position_embeddings=rotation,
            attention_mask=None if is_linear else mask,
            past_key_values=cache,
        )
        if is_linear:
            S[i] = cache.layers[i].recurrent_states[0].clone()
    return h, S


def algorithm_1(original, ids, passes, span):
    """As algorithm_1.py, over the family's own layers."""
    S, logits = {}, []
    start, end = span or (0, SMALL["num_hidden_layers"])
    prelude, looped, coda = range(start), range(start, end), range(end, SMALL["num_hidden_layers"])
    windows = ids.split(L, dim=1)
    for number, window in enumerate(windows):
        h, S = blocks(original, original.model.embed_tokens(window), S, prelude)
        S_coda_before = {i: S.get(i) for i in coda if SMALL["layer_types"][i] == "linear_attention"}
        h, S = blocks(original, h, S, looped)
        prediction, S = blocks(original, h, S, coda)
        logits.append(original.lm_head(original.model.norm(prediction)))
        if passes > 1 and number < len(windows) - 1:
            for _ in range(passes - 1):
                h, S = blocks(original, h, S, looped)
            _, S = blocks(original, h, {**S, **S_coda_before}, coda)
    return torch.cat(logits, dim=1), [S[i] for i in sorted(S)]


@pytest.mark.skipif(BEFORE_5_17, reason="the families' own mixers take no S in for more than one token")
@pytest.mark.parametrize("passes, span", [(1, None), (3, None), (3, [1, 3])], ids=str)
@each_family
def test_equals_algorithm_1_over_the_familys_own_layers(family, passes, span):
    original = make_original(family)
    original.set_attn_implementation("eager")
    model, ids = put_to_sleep(original, sleep_passes=passes, loop_span=span), make_ids(2, 3 * L + 2)
    with Float64(), torch.no_grad():
        ours = model(ids)
        logits, S = algorithm_1(original, ids, passes, span)
        assert_close(ours.logits, logits)
        assert_close(fast_weights(ours.past_key_values), S)
        if passes > 1:
            assert (model(ids, sleep_passes=1).logits - logits)[:, L:].abs().max() > 1e-3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("passes", [1, 3])
@each_family
def test_every_chunking_gives_the_same(family, passes, dtype, tolerance):
    model, ids = make_model(family, dtype, sleep_passes=passes, loop_span=[1, 4]), make_ids(2, 3 * L + 2)
    with Float64() if dtype == torch.float64 else torch.no_grad(), torch.no_grad():
        whole = model(ids)
        for chunks in ([1] * 20, [4, 5, 1, 10]):
            cache, pieces = None, []
            for piece in ids.split(chunks, dim=1):
                output = model(piece, past_key_values=cache)
                cache = output.past_key_values
                pieces.append(output.logits)
            assert_close(torch.cat(pieces, dim=1), whole.logits, tolerance)
            assert_close(fast_weights(cache), fast_weights(whole.past_key_values), tolerance)


@each_attention
@each_family
def test_left_padding_by_whole_windows_changes_nothing(family, attention):
    model, ids = make_model(family, sleep_passes=3), make_ids(2, 2 * L + 3)
    model.set_attn_implementation(attention)
    padded = torch.cat([make_ids(2, L, seed=2), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[0, :L] = 0
    with Float64(), torch.no_grad():
        output, expected = model(padded, attention_mask=mask), model(ids)
    assert_close(output.logits[0, L:], expected.logits[0])
    for ours, theirs in zip(fast_weights(output.past_key_values), fast_weights(expected.past_key_values)):
        assert_close(ours[0], theirs[0])


@each_family
def test_padding_leaves_the_fast_weights_as_they_were(family):
    model, ids = make_model(family, sleep_passes=2), make_ids(1, L + 2)
    with torch.no_grad():
        cache = model(ids).past_key_values
        before = [S.clone() for S in fast_weights(cache)]
        model(ids[:, :2], attention_mask=torch.tensor([[1] * (L + 2) + [0] * 2]), past_key_values=cache)
    assert_close(fast_weights(cache), before, atol=0)


# Training.


@each_family
def test_gradients_flow_over_windows_under_any_way_of_calling(family):
    model, ids = make_model(family, sleep_passes=2, loop_span=[1, 4]), make_ids(2, 3 * L)
    with Float64():
        expected = gradients(model, model(ids).logits, ids)
        cache = None
        for piece in ids.split([4, 7, 7], dim=1):
            output = model(piece, past_key_values=cache)
            cache = output.past_key_values
        assert_close(gradients(model, output.logits, ids), expected)

        embeddings = model.model.embed_tokens(ids).detach().requires_grad_()
        F.cross_entropy(model(inputs_embeds=embeddings).logits[:, -1], ids[:, 0]).backward()
        assert embeddings.grad[:, :L].abs().max() > 1e-6  # through two sleeps

    model.train()
    expected = gradients(model, model(ids).logits, ids)  # `Float64` does not reach into a backward that computes again
    for reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_close(gradients(model, model(ids).logits, ids), expected)


@each_family
def test_a_new_model_begins_as_the_family_does_but_remembers(family):
    """Norms multiply by one, and S outlives windows: with Qwen's own values, it is gone after a few tokens."""
    base = family_base_config(AutoConfig.for_model(family.partition(" ")[0], **FAMILIES[family]))
    model = SleepForCausalLM(SleepConfig(base_config=base, window_size=L))
    for name, module in model.named_modules():
        if type(module).__name__.endswith("RMSNorm"):
            assert_close(module(torch.ones(1, *module.weight.shape)), torch.ones(1, *module.weight.shape), 1e-5)
        elif name.endswith("linear_attn"):
            half_life = torch.log(torch.tensor(2.0)) / (module.A_log.exp() * F.softplus(module.dt_bias))
            assert half_life.max() > L and module.conv1d.weight.abs().max() <= 0.5


@each_family
def test_the_memory_is_found_for_lora_and_whole_layers_for_sharding(family):
    model = make_model(family)
    assert model._no_split_modules == model.model._no_split_modules == {"FamilyDecoderLayer"}
    mixers = [module for name, module in model.named_modules() if name.endswith("linear_attn")]
    linear = {name for name, child in mixers[0].named_children() if type(child) is torch.nn.Linear}
    assert {f"linear_attn.{name}" for name in linear} == set(memory_target_modules(model.config))


# Saved and loaded.


@each_family
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    model, ids = make_model(family, sleep_passes=2, loop_span=[1, 4]), make_ids(2, 2 * L + 1)
    model.save_pretrained(tmp_path)
    loaded = SleepForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.base_config == model.config.base_config
    assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": str(tmp_path)}
    with Float64():
        assert_close(loaded(ids).logits, model(ids).logits)

    loaded.resize_token_embeddings(32000)  # which is our default, and the family's is another
    loaded.save_pretrained(tmp_path)
    assert SleepForCausalLM.from_pretrained(tmp_path).lm_head.weight.shape[0] == 32000


@pytest.mark.programs
def test_loads_as_remote_code_where_the_package_is_not_installed(tmp_path):
    model = make_model("qwen3_next", sleep_passes=2, pad_token_id=0)
    torch.manual_seed(1)
    models = {"causal": model, "base": model.model}
    config = {**model.config.to_dict(), "num_labels": 3, "id2label": None, "label2id": None}
    for kind, head in (("sequence", SleepForSequenceClassification), ("tokens", SleepForTokenClassification)):
        models[kind] = head(SleepConfig.from_dict(config)).double().eval()
    for kind, each in models.items():
        each.save_pretrained(tmp_path / "saved" / kind)
    ids = make_ids(2, 2 * L + 1).clamp_min(1)
    save_file({"ids": ids}, tmp_path / "saved" / "ids.safetensors")
    (tmp_path / "out").mkdir()
    found = run_as_stranger(tmp_path / "saved", tmp_path / "out")
    expected = outputs({**models, "head taken off": model.model}, ids)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], 1e-5)
    saved = json.loads((tmp_path / "out" / "causal" / "config.json").read_text())
    assert saved["base_config"] == model.config.base_config


# What is refused.


@pytest.mark.parametrize(
    "base, options, message",
    [
        (dict(model_type="mamba"), {}, "of the family 'mamba': nobody has said .* Supported are olmo_hybrid, qwen3_5"),
        (dict(), {}, "of the family None: .* Supported are olmo_hybrid, qwen3_5_text, qwen3_next"),
        (dict(model_type="qwen3_5_moe_text"), {}, "'qwen3_5_moe_text': its layers are mixtures of experts"),
        (
            dict(SMALL, model_type="qwen3_next", num_experts=4, mlp_only_layers=[0, 2]),
            {},
            r"Layers \[1, 3, 4\] of `base_config` \(qwen3_next\) are mixtures of experts",
        ),
        (dict(SMALL, model_type="qwen3_next", num_experts=0, hidden_act="gelu"), {}, "knows 'silu' alone"),
        (dict(SMALL, model_type="qwen3_5_text"), dict(hidden_size=32), "`hidden_size` is 32, but .* makes it 16"),
        (dict(SMALL, model_type="qwen3_5_text"), dict(memory_layers=[9]), r"but \[9\] are not"),
        (
            dict(
                SMALL, model_type="olmo_hybrid", rope_parameters=dict(rope_theta=1e4, rope_type="dynamic", factor=2.0)
            ),
            {},
            "must be one of .'default', 'linear', 'llama3', .*., got 'dynamic'",
        ),
    ],
)
def test_what_cannot_work_is_refused(base, options, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError)) as caught:
        SleepConfig(base_config=base, **options)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("rope", [dict(rope_theta=1e4, partial_rotary_factor=0.5), dict(rope_theta=None)])
def test_our_own_layers_rotate_whole_heads(rope):
    with pytest.raises(ValueError, match="Our own attention rotates whole heads"):
        SleepConfig(rope_parameters=rope)


def test_dense_layers_among_experts_that_no_layer_uses():
    base = dict(SMALL, model_type="qwen3_next", head_dim=8, num_experts=4, mlp_only_layers=list(range(5)))
    SleepModel(SleepConfig(base_config=base))(make_ids(1, 3))


def test_the_text_of_a_multimodal_model():
    text = dict(FAMILIES["qwen3_5_text"], model_type="qwen3_5_text")
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=16)
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision, tie_word_embeddings=True)
    original = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    model = SleepForCausalLM(SleepConfig(base_config=family_base_config(config), window_size=L)).eval()
    model.load_state_dict(family_state_dict(original))
    assert model.config.tie_word_embeddings
    assert_close(model(make_ids(2, L)).logits, original(make_ids(2, L)).logits, 1e-5)
