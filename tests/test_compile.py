"""torch.compile: no graph is broken, and every full window and pass runs the same few."""

import copy
import math
import pickle

import pytest
import torch
from builders import tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, set_seed

from modeling_sleep import SleepForCausalLM


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def losses_and_gradients(model, call, ids, passes: int = 3) -> list[torch.Tensor]:
    model.zero_grad()
    loss = call(ids, labels=ids, sleep_passes=passes, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def build(num_layers: int = 4) -> tuple[SleepForCausalLM, torch.Tensor]:
    model = tiny_model(dtype=torch.float64, num_hidden_layers=num_layers, window_size=8).train()
    return model, torch.randint(1, model.config.vocab_size, (2, 40))


@pytest.mark.programs
def test_the_whole_model_is_one_graph():
    model, ids = build(num_layers=2)
    ids = ids[:, :16]
    expected = losses_and_gradients(model, model, ids, passes=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for result, wanted in zip(losses_and_gradients(model, compiled, ids, passes=2), expected, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("train", [True, False])
def test_compiled_layers_run_four_graphs_whatever_the_text(train):
    """Attention; Gated DeltaNet without S, with S, and as the end of the last pass asleep. Layers share them."""
    model, ids = build()
    model.train(train)
    with torch.set_grad_enabled(train):
        expected = model(ids, sleep_passes=3).logits
        for layer in model.model.layers:
            layer.compile(backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(model(ids, sleep_passes=3).logits, expected)
        assert counters["stats"]["unique_graphs"] == 4
        model(ids[:, :24], sleep_passes=2)
        assert counters["stats"]["unique_graphs"] == 4
    if train:
        compiled = losses_and_gradients(model, model, ids)
        model, ids = build()
        for result, wanted in zip(compiled, losses_and_gradients(model, model, ids), strict=True):
            torch.testing.assert_close(result, wanted)


def test_generation_through_compiled_layers_stops_compiling():
    """Lengths that differ, of prompts and of keys, become dynamic: later texts and tokens need no more graphs."""
    model, ids = build(num_layers=2)
    model.eval()
    options = dict(min_new_tokens=20, max_new_tokens=20, do_sample=False, sleep_passes=3)
    prompts = [ids[:1, :length] for length in (19, 29, 22)]
    expected = [model.generate(prompt, **options) for prompt in prompts]
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=16):  # the default 8 are not enough
        for prompt, wanted in zip(prompts, expected, strict=True):
            torch.testing.assert_close(model.generate(prompt, **options), wanted)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2] <= 16


@pytest.mark.programs
@torch.no_grad()
def test_the_whole_model_is_one_graph_through_a_sleep():
    """Token by token, too: a number of sleeps or of tokens seen is no reason to compile anew."""
    model, ids = build(num_layers=2)
    model.eval()
    expected = model(ids).logits
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    cache, logits, graphs = DynamicCache(config=model.config), [], []
    for token in ids.split(1, dim=1):
        logits.append(compiled(token, past_key_values=cache).logits)
        graphs.append(counters["stats"]["unique_graphs"])
    torch.testing.assert_close(torch.cat(logits, dim=1), expected)
    assert cache.layers[0].sleeps == 4
    assert graphs[23] == graphs[-1] <= 8  # after two sleeps none are new


@torch.no_grad()
def test_a_compiled_sleep_asserts_that_fast_weights_are_finite():
    model, ids = build(num_layers=2)
    compiled = torch.compile(model.eval(), backend="aot_eager", fullgraph=True)
    cache = DynamicCache(config=model.config)
    model(ids[:, :8], past_key_values=cache)
    cache.layers[1].state.recurrent_state[0, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"fast weights of layer\(s\) \[1\] are not finite"):
        compiled(ids[:, 8:9], past_key_values=cache)


COMPILED = dict(compile_config=CompileConfig(backend="eager", mode="default", fullgraph=True))


def test_generation_compiles_single_tokens():
    """First of a window, second, later ones, and the first that was ever met; texts and sleeps are not compiled."""
    model, ids = build(num_layers=2)
    model.eval()
    options = dict(min_new_tokens=20, max_new_tokens=20, do_sample=False)
    for length, passes in ((19, 2), (29, 1), (8, 3), (1, 2)):
        prompt = ids[:1, :length]
        expected = model.generate(prompt, sleep_passes=passes, **options)
        torch.testing.assert_close(model.generate(prompt, sleep_passes=passes, **options, **COMPILED), expected)
        assert counters["stats"]["unique_graphs"] == 4

    told = {"eager": [], "compiled": []}
    model.generate(prompt, sleep_callback=told["eager"].append, **options)
    model.generate(prompt, sleep_callback=told["compiled"].append, **options, **COMPILED)
    assert [event.window_index for event in told["compiled"]] == [0, 1]
    for event, wanted in zip(told["compiled"], told["eager"], strict=True):
        assert event.state_norm == pytest.approx(wanted.state_norm)
    assert counters["stats"]["unique_graphs"] == 4


@pytest.mark.parametrize("chunk", [1, 4])
def test_compiled_generation_of_a_padded_batch(chunk):
    """Read in pieces of one token, too, some of which are padding; one row begins with a whole window of it."""
    model, ids = build(num_layers=2)
    ids = ids.repeat(2, 1)[:3, :13]
    model.eval()
    mask = torch.ones_like(ids)
    mask[0, :11], mask[2, :3] = 0, 0
    options = dict(attention_mask=mask, min_new_tokens=20, max_new_tokens=20, do_sample=False)
    options |= dict(return_dict_in_generate=True, output_scores=True, output_hidden_states=True)
    options |= dict(prefill_chunk_size=chunk)
    expected, found = (model.generate(ids, **options, **extra) for extra in ({}, COMPILED))
    torch.testing.assert_close(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states)


@pytest.mark.programs
@pytest.mark.parametrize(
    "num_layers, overrides",
    [(4, dict(loop_span=(1, 3))), (2, dict(memory_layers=[1])), (2, dict(num_key_value_heads=1))],
)
def test_compiled_generation_of_other_stacks(num_layers, overrides):
    model = tiny_model(dtype=torch.float64, num_hidden_layers=num_layers, window_size=8, **overrides)
    ids = torch.randint(1, model.config.vocab_size, (1, 13))
    options = dict(min_new_tokens=20, max_new_tokens=20, do_sample=False, sleep_passes=3)
    options |= dict(return_dict_in_generate=True, output_scores=True)
    expected, found = (model.generate(ids, **options, **extra) for extra in ({}, COMPILED))
    torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.programs
def test_generation_stays_compiled_in_a_process_with_other_batches():
    """Torch gives up after 8 graphs, or raises in full graphs."""
    model, ids = build(num_layers=2)
    model.eval()
    options = dict(min_new_tokens=10, max_new_tokens=10, do_sample=True, pad_token_id=0)
    mask = torch.ones_like(ids[:, :13])
    mask[0, :8] = 0
    for _ in range(2):
        graphs = counters["stats"]["unique_graphs"]
        for batch, masked in (
            (ids[:1, :13], None),
            (ids[:, :13], None),
            (ids[:, :13], mask),
            (ids[:, :11], mask[:, 2:]),
        ):
            expected, found = (
                set_seed(0) or model.generate(batch, attention_mask=masked, num_return_sequences=2, **options, **extra)
                for extra in ({}, COMPILED)
            )
            torch.testing.assert_close(found, expected)
    assert 8 < counters["stats"]["unique_graphs"] == graphs


@pytest.mark.programs
def test_a_copy_generates_with_its_own_weights():
    original, ids = build(num_layers=2)
    options = dict(min_new_tokens=10, max_new_tokens=10, do_sample=False)
    original.eval().generate(ids[:1, :5], **options, **COMPILED)
    for model in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()
        expected = model.generate(ids[:1, :5], **options)
        torch.testing.assert_close(model.generate(ids[:1, :5], **options, **COMPILED), expected)


def test_generation_compiles_only_where_it_can_and_is_asked_to(caplog, monkeypatch):
    model, ids = build(num_layers=2)
    options = dict(max_new_tokens=3, do_sample=False)
    model.eval().generate(ids[:1, :5], **options)
    with caplog.at_level("WARNING"):
        model.generate(ids[:1, :5], disable_compile=True, num_beams=2, **options, **COMPILED)
        assert "left aside" not in caplog.text
        model.generate(ids[:1, :5], num_beams=2, **options, **COMPILED)
        assert "transformers does not compile beam search" in caplog.text
        model.generate(ids[:1, :5], use_cache=False, **options, **COMPILED)
        assert "every token reads the whole text anew" in caplog.text
        monkeypatch.setattr(model, "hf_device_map", {"model.embed_tokens": "cpu", "model.layers": 0}, raising=False)
        model.generate(ids[:1, :5], **options, **COMPILED)
        assert "`compile_config` is left aside, as the model is offloaded" in caplog.text
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize(
    "mode, instead", [("reduce-overhead", "default"), ("max-autotune", "max-autotune-no-cudagraphs")]
)
def test_generation_does_not_record_cuda_graphs(mode, instead, caplog):
    model, ids = build(num_layers=2)
    with caplog.at_level("INFO"):
        model.eval().generate(ids[:1, :5], max_new_tokens=3, compile_config=CompileConfig(backend="eager", mode=mode))
    assert f"compiling with `mode='{instead}'` instead" in caplog.text
    assert counters["stats"]["unique_graphs"] > 0
    options = CompileConfig(mode=None, options={"triton.cudagraphs": True})
    with pytest.raises(ValueError, match="leave `triton.cudagraphs` out"):
        model.generate(ids[:1, :5], max_new_tokens=3, compile_config=options)
