"""What cannot work is refused before any work is done, and the message says what was wrong and what to do."""

import copy
import re

import numpy as np
import pytest
import torch
from builders import tiny_model
from helpers import assert_same_memory, tensors_of
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, LlamaConfig, StaticCache, cache_utils
from transformers.cache_utils import QuantizedCache

from modeling_sleep import Sleep, SleepConfig


LLAMA = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=4, vocab_size=64)
USE_OURS = re.escape("Use `DynamicCache(config=model.config)`, or leave `past_key_values` out.")
ATTENTION, LINEAR = "sleep_attention", "linear_attention"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def ids():
    return torch.randint(1, 64, (2, 5))


def forward(model, ids, **kwargs):
    return model(ids, **kwargs)


def generate(model, ids, **kwargs):
    return model.generate(ids, max_new_tokens=2, **kwargs)


def sleep(model, ids, past_key_values=None, **kwargs):
    return model.sleep(model(ids).past_key_values if past_key_values is None else past_key_values, **kwargs)


every_way_in = pytest.mark.parametrize("call", [forward, generate, sleep])
every_way_of_reading = pytest.mark.parametrize("call", [forward, generate])


# The configuration.


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(window_size=0), r"`window_size` \(L\) must be at least 1 token, got 0"),
        (dict(window_size=-3), r"`window_size` \(L\) must be at least 1 token, got -3"),
        (dict(sleep_passes=0), r"`sleep_passes` \(N\) counts all passes .* must be at least 1, got 0"),
        (dict(bptt_windows=0), r"`bptt_windows` must be at least 1, or None .* got 0"),
        (dict(loop_span=[0, 5]), r"`loop_span` .* 0 <= start <= end <= 4 layers, got \(0, 5\)"),
        (dict(loop_span=[-1, 2]), r"`loop_span` .* 0 <= start <= end <= 4 layers, got \(-1, 2\)"),
        (dict(loop_span=[2, 2]), r"`loop_span` \(2, 2\) is empty, so a sleep would rewrite nothing"),
        (dict(loop_span=[3, 1]), r"`loop_span` .* got \(3, 1\)"),
        (dict(loop_span=[1]), r"`loop_span` is a pair \(start, end\) or None, got \[1\]"),
        (dict(loop_span=[0, 1, 2]), r"`loop_span` is a pair \(start, end\) or None, got \[0, 1, 2\]"),
        (
            dict(loop_span=[2, 4], layer_types=[ATTENTION, LINEAR, ATTENTION, ATTENTION]),
            r"`loop_span` \(2, 4\) leaves no memory .* would rewrite nothing",
        ),
        (dict(layer_types=[ATTENTION] * 4), "at least one memory, 'linear_attention' or 'recall_memory': its fast"),
        (dict(layer_types=[LINEAR] * 4), "at least one 'sleep_attention' layer: without a cache that fills"),
        (
            dict(layer_types=[ATTENTION, LINEAR, "full_attention", LINEAR]),
            r"`layer_types` may hold \('sleep_attention', .*, 'recall_memory'\), got \['full_attention'\]",
        ),
        (dict(layer_types=[ATTENTION, LINEAR]), "names 2 layers, but `num_hidden_layers` is 4. Make them equal"),
        (
            dict(memory_layers=[0]),
            r"`memory_layers` must be indices of 'linear_attention' or 'recall_memory' layers, but",
        ),
        (dict(memory_layers=[1, 4, -1]), r"`memory_layers` must be .*, but \[4, -1\] are not"),
        (dict(hidden_size=0, head_dim=8), "`hidden_size` must be at least 1, got 0"),
        (dict(num_attention_heads=0), "`num_attention_heads` must be at least 1, got 0"),
        (
            dict(num_key_value_heads=3),
            r"`num_attention_heads` \(4\) must be a multiple of .* \(3\)",
        ),
        (dict(linear_num_value_heads=6), r"`linear_num_value_heads` \(6\) must be a multiple of .* \(4\)"),
        (dict(head_dim=7), "`head_dim` must be even for the rotary position embedding, got 7"),
        (dict(linear_a_min=0.0), "0 < `linear_a_min` <= `linear_a_max` must hold, got 0.0 and 1.0"),
        (dict(linear_dt_min=0.2), "0 < `linear_dt_min` <= `linear_dt_max` must hold, got 0.2 and 0.1"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(overrides, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        SleepConfig.from_preset("tiny", **overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(window_size="8"),
        dict(window_size=8.0),
        dict(sleep_passes=True),
        dict(loop_span=[0.0, 2.0]),
        dict(loop_span=(0, "2")),
        dict(layer_types="sleep_attention"),
        dict(memory_layers=["1"]),
        dict(linear_dt_max="0.1"),
        dict(linear_allow_neg_eigval=1),
        dict(hidden_act=3),
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_is_refused(overrides):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"field '{next(iter(overrides))}'"):
        SleepConfig.from_preset("tiny", **overrides)


@pytest.mark.parametrize("rope_type", ["dynamic", "proportional", "nonsense"])
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_that_depends_on_the_length_of_the_text_is_refused(rope_type, name, key):
    message = rf"must be one of \('default', 'linear', 'llama3', 'yarn', 'longrope'\), got '{rope_type}'"
    with pytest.raises(ValueError, match=message):
        SleepConfig(**{name: {key: rope_type, "rope_theta": 1e4, "factor": 2.0}})


@pytest.mark.parametrize("rope_type", ["yarn", "longrope"])
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_that_lacks_what_it_is_made_of_is_refused(rope_type, name, key):
    with pytest.raises(ValueError, match=f"of type '{rope_type}' lack original_max_position_embeddings"):
        SleepConfig(**{name: {key: rope_type, "rope_theta": 1e4, "factor": 2.0}})


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="No preset 'tinny'. Known presets: .*rule110, .*tiny"):
        SleepConfig.from_preset("tinny")


# Tokens, masks, positions.


@pytest.mark.parametrize("call", [forward, generate, sleep])
def test_attention_alone_does_not_sleep(ids, call):
    model = tiny_model(layer_types=[ATTENTION] * 4, sleep_passes=1)
    window = torch.cat([ids, ids], dim=1)[:, :8]
    # Its cache is evicted all the same: what is behind a window's end does not know the window.
    torch.testing.assert_close(model(torch.cat([window, ids], dim=1)).logits[:, 8:], model(ids).logits)
    call(model, ids)
    with pytest.raises(ValueError, match="attention layers alone has no fast weights.*takes `sleep_passes=1`"):
        call(model, ids, sleep_passes=2)


@every_way_in
@pytest.mark.parametrize("passes", [0, -1, 2.0, "2"])
def test_a_number_of_passes_below_one_is_refused(model, ids, call, passes):
    with pytest.raises(ValueError, match=rf"`sleep_passes` \(N\) counts all passes .* got {passes!r}"):
        call(model, ids, sleep_passes=passes)


@every_way_of_reading
@pytest.mark.parametrize("shift, low, high", [(-2, -1, 1), (63, 64, 66)])
def test_ids_out_of_the_vocabulary_are_refused(model, call, shift, low, high):
    ids = torch.tensor([[1, 2, 3]]) + shift
    with pytest.raises(ValueError, match=f"between 0 and 63 .* from {low} to {high}. Is this .* own tokenizer"):
        call(model, ids)


@pytest.mark.parametrize("shape", [(5, 32), (2, 0, 32), (1, 2, 31), (1, 2, 3, 32)], ids=str)
def test_embeddings_that_are_no_rows_of_tokens_are_refused(model, shape):
    message = r"`inputs_embeds` must have shape \(batch, length, 32\), with at least one token, got"
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=torch.randn(shape))


def test_keys_and_values_alone_are_refused(model):
    cache = DynamicCache(config=model.config)
    with pytest.raises(RuntimeError, match="Keys and values alone cannot be put into this cache"):
        cache.update(torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8), 0)


@pytest.mark.parametrize("passes", [np.int64(3), torch.tensor(3).numpy()[()]])
def test_numpy_may_have_drawn_n(model, ids, passes):
    sleep = model.model.check_sleep_passes(passes)
    assert sleep == Sleep(3) and type(sleep.passes) is int
    for wrong in (np.float64(3), np.int64(0), np.bool_(True), True):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            model(ids, sleep_passes=wrong)


@every_way_of_reading
@pytest.mark.parametrize("shape", [(5,), (2, 0), (1, 2, 3)])
def test_ids_that_are_no_rows_of_tokens_are_refused(model, call, shape):
    with pytest.raises(ValueError, match=r"`input_ids` must have shape \(batch, length\), with at least one token"):
        call(model, torch.ones(shape, dtype=torch.long))


def test_ids_and_embeddings_exclude_each_other(model, ids):
    for both in ({}, dict(input_ids=ids, inputs_embeds=model.get_input_embeddings()(ids))):
        with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
            model(**both)


@every_way_of_reading
@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5)])
def test_a_mask_of_another_shape_is_refused(model, ids, call, shape):
    message = (
        rf"`attention_mask` must have shape \(batch, past \+ new tokens\) = \(2, 5\),.* got {re.escape(str(shape))}"
    )
    with pytest.raises(ValueError, match=message):
        call(model, ids, attention_mask=torch.ones(shape))


def test_a_mask_may_be_of_new_tokens_alone_and_of_no_other_length(model, ids):
    with torch.no_grad():
        cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"= \(2, 10\), or \(2, 5\) for the new ones alone, got \(2, 7\)"):
        model(ids, past_key_values=cache, attention_mask=torch.ones(2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    expected = model(
        ids, past_key_values=copy.deepcopy(cache), attention_mask=torch.cat([torch.ones(2, 5), mask], dim=1)
    )
    assert model(ids, past_key_values=cache, attention_mask=mask).logits.equal(expected.logits)


@every_way_of_reading
@pytest.mark.parametrize("past", [[1, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]], ids=str)
def test_a_mask_that_contradicts_the_cache_is_refused(model, ids, call, past):
    """By the number of tokens that were read, or by their places."""
    read = torch.ones(2, 5, dtype=torch.long)
    read[1] = torch.tensor([0, 1, 1, 1, 1])
    with torch.no_grad():
        cache = model(ids, attention_mask=read).past_key_values
    mask = torch.cat([read, torch.ones(2, 5, dtype=torch.long)], dim=1)
    mask[1, :5] = torch.tensor(past)
    message = rf"says that {sum(past)} of the first 5 tokens of row 1 are no padding, but `past_key_values` has read 4"
    with pytest.raises(ValueError, match=message):
        given = torch.cat([ids, ids], dim=1) if call is generate else ids
        call(model, given, attention_mask=mask, past_key_values=cache)


def test_masks_that_are_more_than_padding_are_refused(model, ids):
    mask = torch.ones(2, 1, 5, 5)
    with pytest.raises(ValueError, match=r"got \(2, 1, 5, 5\). Masks that are more than padding .* no meaning asleep"):
        model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="must be 2D"):
        model.generate(ids, attention_mask=mask)


@pytest.mark.parametrize("positions", [[0, 1, 1, 2, 3], [4, 3, 2, 1, 0], [0, 2, 4, 6, 8], [0, 1, 2, 1, 2]], ids=str)
def test_positions_that_neither_run_on_nor_begin_anew_are_refused(model, ids, positions):
    message = "`position_ids` neither run on by one nor begin anew at 0.* Leave them out"
    with pytest.raises(ValueError, match=message):
        model(ids, position_ids=torch.tensor([positions]))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("cu_seq_lens_q", [0, 3, 5], r"`cu_seq_lens_q` must rise from 0 to batch \* length = 10, got \[0, 3, 5\]"),
        ("cu_seq_lens_q", [1, 3, 10], r"`cu_seq_lens_q` must rise from 0 .* got \[1, 3, 10\]"),
        ("cu_seq_lens_q", [0, 7, 3, 10], r"`cu_seq_lens_q` must rise from 0 .* got \[0, 7, 3, 10\]"),
        ("seq_idx", [0, 3, 5], r"`seq_idx` must have shape \(2, 5\), got \(3,\)"),
        ("seq_idx", [[0, 0, 1, 1]], r"`seq_idx` must have shape \(2, 5\), got \(1, 4\)"),
    ],
)
def test_packing_that_does_not_fit_the_tokens_is_refused(model, ids, name, value, message):
    with pytest.raises(ValueError, match=message):
        model(ids, **{name: torch.tensor(value)})


@pytest.mark.parametrize("told_by", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_packed_rows_cannot_go_on_from_a_cache_nor_show_attention(model, ids, told_by):
    options = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 5, 10]),
        "seq_idx": torch.tensor([[0, 0, 0, 1, 1]]),
    }
    packed = {told_by: options[told_by]}
    with pytest.raises(ValueError, match="Packed rows cannot go on from `past_key_values`.* rows of their own"):
        model(ids, past_key_values=model(ids).past_key_values, **packed)
    with pytest.raises(ValueError, match="`output_attentions` is not given for packed rows"):
        model(ids, output_attentions=True, **packed)


@pytest.mark.parametrize(
    "given, meant",
    [("sleep_pases", "sleep_passes"), ("past_key_value", "past_key_values"), ("sleep_calback", "sleep_callback")],
)
def test_arguments_that_would_be_dropped_are_refused(model, ids, given, meant):
    message = f"does not know the argument `{given}`, and would have to drop it. Did you mean `{meant}`"
    with pytest.raises(TypeError, match=message):
        model(ids, **{given: 3})
    model(ids, **{given: None})


@every_way_of_reading
def test_two_caches_are_refused(model, ids, call):
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match="Give one of `past_key_values` and `cache`, which are two names of the same"):
        call(model, ids, past_key_values=cache, cache=copy.deepcopy(cache))


@every_way_of_reading
@pytest.mark.parametrize(
    "pinned, message",
    [
        (-1, "is a number of tokens, at least 0, got -1"),
        (1.0, "is a number of tokens, at least 0, got 1.0"),
        (False, "is a number of tokens, at least 0, got False"),
        (9, "is 9, more than the window of 8"),
    ],
    ids=str,
)
def test_pinned_tokens_that_cannot_be_are_refused(model, ids, call, pinned, message):
    with pytest.raises(ValueError, match=f"`pinned_tokens` {message}"):
        call(model, ids, pinned_tokens=pinned)


def test_pinned_tokens_cannot_be_chosen_later(model, ids):
    cache = model(ids, pinned_tokens=2).past_key_values
    with pytest.raises(ValueError, match="`pinned_tokens` is 3, but the text of `past_key_values` began with 2"):
        model(ids, past_key_values=cache, pinned_tokens=3)
    model(ids, past_key_values=cache, pinned_tokens=2)


@pytest.mark.parametrize("shape", [(3, 2, 5), (5,), (2, 4), (3, 5)])
def test_positions_of_another_shape_are_refused(model, ids, shape):
    with pytest.raises(ValueError, match=rf"must have shape \(2, 5\), got {re.escape(str(shape))}"):
        model(ids, position_ids=torch.zeros(shape, dtype=torch.long))


# Caches.


needs_fp8 = pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="the other quantised caches need packages of their own"
)


def used_cache(tokens=5, **overrides):
    return tiny_model(**overrides)(torch.ones(2, tokens, dtype=torch.long)).past_key_values


@every_way_in
@pytest.mark.parametrize(
    "make_cache, message",
    [
        (DynamicCache, "has 0 layers for a model of 4: it was not made for this config"),
        (lambda: DynamicCache(config=LlamaConfig(num_hidden_layers=2)), "has 2 layers for a model of 4"),
        (lambda: DynamicCache(config=LLAMA), "is a DynamicLayer, which cannot serve a 'sleep_attention' layer"),
        (lambda: StaticCache(config=LLAMA, max_cache_len=8), r"\(StaticCache\) is a StaticLayer, which cannot serve"),
        pytest.param(
            lambda: QuantizedCache("fp8", config=LLAMA),
            r"\(QuantizedCache\) is a Fp8QuantizedLayer, which cannot",
            marks=needs_fp8,
        ),
        (lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()), "a `DynamicCache`, got EncoderDecoderCache"),
        (lambda: ((torch.zeros(2, 2, 5, 8),) * 2,) * 4, "a `DynamicCache`, got tuple"),
        (
            lambda: DynamicCache(config=SleepConfig.from_preset("tiny"), offloading=True),
            r"never outgrows one window, so it cannot be \(and need not be\) offloaded",
        ),
        (lambda: used_cache(layer_types=[LINEAR, ATTENTION] * 2), "Layer 0 .* is a FastWeightsLayer, which cannot"),
        (lambda: used_cache(head_dim=4), r"The keys of layer 0 .* end in dimensions \(4,\), this model's in \(8,\)"),
        (
            lambda: used_cache(hidden_size=16, head_dim=8, linear_key_head_dim=8),
            r"The kept hidden states of layer 0 .* end in dimensions \(16,\), this model's in \(32,\)",
        ),
        (
            lambda: used_cache(linear_key_head_dim=4),
            r"The fast weights of layer 1 .* end in dimensions \(4, 4, 4\), this model's in \(4, 8, 8\)",
        ),
        (
            lambda: used_cache(linear_num_value_heads=8),
            r"The fast weights of layer 1 .* end in dimensions \(8, 8, 8\), this model's in \(4, 8, 8\)",
        ),
        (
            lambda: used_cache(tokens=9, window_overlap=2),
            "keeps 2 tokens from before its window, and this model's `window_overlap` is 0: the cache was made by",
        ),
        (
            lambda: used_cache(loop_span=(0, 2)),
            r"holds what a `loop_span` of \(0, 2\) replays, and this model's is \(0, 4\): the cache was made by",
        ),
    ],
    ids=[
        "without config",
        "other depth",
        "llama",
        "static",
        "quantised",
        "encoder-decoder",
        "tuple",
        "offloaded",
        "other layers",
        "other head_dim",
        "other hidden_size",
        "other key dim of S",
        "other heads of S",
        "other overlap",
        "other loop",
    ],
)
def test_a_foreign_cache_is_refused(model, call, make_cache, message):
    ids = torch.ones(2, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=f"{message}.*{USE_OURS}"):
        call(model, ids, past_key_values=make_cache())


@needs_fp8
def test_a_quantised_cache_for_our_config_is_refused(model):
    with pytest.raises(ValueError, match="only supported for models with only full attention layers"):
        QuantizedCache("fp8", config=model.config)


@every_way_of_reading
def test_a_cache_of_another_number_of_rows_is_refused(model, ids, call):
    cache = model(ids[:1]).past_key_values
    with pytest.raises(ValueError, match=r"holds 1 rows, the new tokens have 2.*batch_repeat_interleave\(times\)"):
        call(model, torch.cat([ids, ids], dim=1), past_key_values=cache)


def test_new_ids_alone_are_refused_without_a_mask_that_says_so(model, ids):
    cache = model(ids).past_key_values
    message = (
        r"has seen 5 tokens already, but `input_ids` holds 2. .* `attention_mask` of shape \(batch, past \+ new\)"
    )
    with pytest.raises(ValueError, match=message):
        model.generate(ids[:, :2], past_key_values=cache)


def test_a_refused_call_leaves_the_cache_alone(model, ids):
    with torch.no_grad():
        cache = model(ids).past_key_values
    before = tensors_of(copy.deepcopy(cache))
    with pytest.raises(ValueError):
        model(torch.cat([ids, ids], dim=1), past_key_values=cache, attention_mask=torch.ones(2, 3))
    assert cache.get_seq_length() == 5
    assert_same_memory(tensors_of(cache), before, atol=0)


# Ways to generate that would need to forget.


@pytest.mark.parametrize("place", ["call", "GenerationConfig", "model"])
@pytest.mark.parametrize("implementation", ["static", "offloaded_static", "quantized", "offloaded", "paged"])
def test_other_kinds_of_cache_are_refused(ids, place, implementation):
    model, options = tiny_model(), {}
    if place == "call":
        options = dict(cache_implementation=implementation)
    elif place == "GenerationConfig":
        options = dict(generation_config=GenerationConfig(cache_implementation=implementation))
    else:
        model.generation_config.cache_implementation = implementation
    with pytest.raises(ValueError, match=f"`cache_implementation='{implementation}'` does not know .* Leave it out"):
        model.generate(ids, **options)


@pytest.mark.parametrize("name", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assisted_decoding_is_refused(model, ids, name):
    value = model if name == "assistant_model" else 3
    with pytest.raises(ValueError, match=f"`{name}`: .* cannot give them back. Generate without an assistant"):
        model.generate(ids, **{name: value})


def test_assisted_decoding_by_a_generation_config_is_refused(model, ids):
    with pytest.raises(ValueError, match="`prompt_lookup_num_tokens`: assisted decoding takes rejected tokens back"):
        model.generate(ids, GenerationConfig(prompt_lookup_num_tokens=3))


# Numbers that are none.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fast_weights_that_are_not_finite_are_reported(model, ids, value):
    cache = model(ids).past_key_values
    layer = cache.layers[3]
    broken = layer.state.recurrent_state.index_fill(1, torch.tensor([2]), value)
    layer.store(layer.state._replace(recurrent_state=broken), layer.window_start_state)
    message = r"The fast weights of layer\(s\) \[3\] are not finite.* Start from a new cache"
    with pytest.raises(FloatingPointError, match=message):
        model.generate(torch.cat([ids, ids], dim=1), past_key_values=cache)
    with pytest.raises(FloatingPointError, match=message):
        model.sleep(cache)


def test_logits_too_large_for_their_dtype_are_reported(ids):
    model = tiny_model()
    model.lm_head.weight.data.fill_(6e4)[::2] *= -1
    with pytest.raises(FloatingPointError, match="largest logit is inf: .* too large for this dtype"):
        model.half().generate(ids, max_new_tokens=2)


def test_weights_that_are_not_a_number_are_reported(ids):
    model = tiny_model()
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    for options in (dict(), dict(num_beams=2), dict(do_sample=True)):
        with pytest.raises(FloatingPointError, match="largest logit is nan: weights or fast weights are NaN"):
            model.generate(ids, max_new_tokens=2, **options)
    # With a window to sleep over, its fast weights are named first.
    with torch.no_grad(), pytest.raises(FloatingPointError, match=r"fast weights of layer\(s\) \[1, 3\]"):
        model(torch.ones(1, 9, dtype=torch.long))
