"""`past_key_values` and `cache` are one, whichever the installed transformers says, and no argument is dropped."""

import functools
import warnings

import pytest
import torch
import transformers
from builders import random_ids, tiny_model
from packaging import version
from transformers import DynamicCache, StaticCache

from modeling_sleep import SleepCache, SleepConfig, SleepForCausalLM, SleepForSequenceClassification, SleepModel
from modeling_sleep.outputs_sleep import CACHE


IDS = random_ids(2, 13)
make_model = functools.partial(tiny_model, dtype=torch.float64, initializer_range=0.2, window_size=5)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@pytest.mark.parametrize("model_class", [SleepForCausalLM, SleepModel, SleepForSequenceClassification])
@torch.no_grad()
def test_either_name_is_taken_and_given(model_class, name):
    model = make_model(model_class)
    mask = torch.ones_like(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # 5.24 warns of the old name; reading ours is no fault
        begun = model(IDS[:, :9], use_cache=True)
        assert begun.past_key_values is begun.cache and isinstance(begun.cache, SleepCache)
        output = model(IDS[:, 9:], attention_mask=mask, **{name: getattr(begun, name)})
    whole = model(IDS, attention_mask=mask)
    first = "logits" if hasattr(whole, "logits") else "last_hidden_state"
    expected = whole[first] if whole[first].ndim == 2 else whole[first][:, 9:]
    torch.testing.assert_close(output[first], expected, atol=1e-9, rtol=0)


WAYS = [{}, dict(num_beams=3), dict(do_sample=True, top_k=1)]
if version.parse(transformers.__version__) >= version.parse("5.23"):  # pieces began with the text
    WAYS.append(dict(prefill_chunk_size=4))


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_generation_takes_either_name(model, name, options):
    expected = model.generate(IDS, max_new_tokens=8, **{"do_sample": False, **options})
    beams = options.get("num_beams", 1)
    with torch.no_grad():
        cache = model(IDS[:, :9].repeat_interleave(beams, 0)).past_key_values
    found = model.generate(IDS, max_new_tokens=8, **{"do_sample": False, name: cache, **options})
    assert found.equal(expected)


def test_generation_returns_both(model):
    output = model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True)
    assert getattr(output, CACHE).get_seq_length() == 15


def test_both_at_once_are_refused(model):
    cache = DynamicCache(config=model.config)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="Give one of `past_key_values` and `cache`"):
            call(IDS, past_key_values=cache, cache=cache)


@pytest.mark.parametrize(
    "argument, hint", [("sleep_pases", "Did you mean `sleep_passes`"), ("pixel_values", "would have to drop it")]
)
def test_an_unknown_argument_is_refused(model, argument, hint):
    with pytest.raises(TypeError, match=f"does not know the argument `{argument}`.*{hint}"):
        model(IDS, **{argument: 3})
    with pytest.raises(TypeError, match=f"`{argument}`"):
        model.model(IDS, **{argument: 3})
    assert model(IDS, **{argument: None}).logits.shape == (2, 13, 64)  # that says nothing


def test_a_cache_given_is_used_whatever_use_cache_says(model):
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False)
    cache = DynamicCache(config=model.config)
    found = model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False, past_key_values=cache)
    assert found.equal(expected) and cache.get_seq_length() == 18


def test_a_static_cache_says_why_there_is_none(model):
    with pytest.raises(ValueError, match="does not know how to sleep. Use `DynamicCache"):
        StaticCache(config=model.config, max_cache_len=32)


def test_a_cache_of_another_dtype_is_refused(model):
    cache = make_model().float()(IDS).past_key_values
    with pytest.raises(ValueError, match="was made in torch.float32, and this model computes in torch.float64"):
        model(IDS, past_key_values=cache)


def test_embeddings_that_are_new_are_told_from_the_whole_text(model):
    embeds = model.get_input_embeddings()(IDS).detach()
    expected = model.generate(IDS, max_new_tokens=6, do_sample=False)[:, 13:]
    mask = torch.ones_like(IDS)
    for past in (3, 9):
        with torch.no_grad():
            caches = [model(IDS[:, :past]).past_key_values for _ in range(2)]
        for given, cache in zip((embeds[:, past:], embeds), caches, strict=True):
            options = dict(past_key_values=cache, attention_mask=mask, max_new_tokens=6, do_sample=False)
            assert model.generate(inputs_embeds=given, **options).equal(expected)
    with pytest.raises(ValueError, match="`prefill_chunk_size` reads pieces of `input_ids`"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2, prefill_chunk_size=4)


@pytest.mark.parametrize(
    "method", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"]
)
def test_continuous_batching_is_refused_in_our_words(model, method):
    with pytest.raises(ValueError, match="cannot be paged. Call `generate` with a padded batch"):
        getattr(model, method)([[1, 2], [3]])


def test_the_default_program_is_exported(model):
    ids = IDS[:, :5]
    program = torch.export.export(model, (ids,), strict=False)  # with gradients on
    torch.testing.assert_close(program.module()(ids).logits, model(ids).logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize("length", [1, 5])
def test_under_autocast_one_token_computes_as_many_do(length):
    seen = []
    model = make_model().float()
    convolution = model.model.layers[1].linear_attn
    convolve = convolution._convolve
    convolution._convolve = lambda *args: seen.append(convolve(*args)) or seen[-1]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(IDS[:, :length])
    assert seen[0][0].dtype == torch.bfloat16


# A release that nobody has tried.


def test_a_newer_transformers_is_tried_once_before_the_first_generation(monkeypatch):
    model, calls = make_model(), []
    monkeypatch.setattr(SleepConfig, "tested_transformers", "<5")
    forward = model.forward

    @functools.wraps(forward)  # whose signature `generate` looks at
    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    expected = make_model().generate(IDS, max_new_tokens=4)
    assert model.generate(IDS, max_new_tokens=4).equal(expected)
    checked = len(calls)
    model.generate(IDS, max_new_tokens=4)
    assert checked == 3 + 4 and len(calls) == checked + 4


def test_a_release_that_loses_the_memory_is_refused(monkeypatch):
    """As 5.24 did with the releases before it: the cache came by a name that `forward` dropped."""
    model = make_model()
    monkeypatch.setattr(SleepConfig, "tested_transformers", "<5")
    forward = model.model.forward

    def forgetful(*args, past_key_values=None, cache=None, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", forgetful)
    message = rf'tested with transformers<5 and does not work with {transformers.__version__} .*`pip install "transf'
    with pytest.raises(RuntimeError, match=message):
        model.generate(IDS, max_new_tokens=4)
    assert not model.training
