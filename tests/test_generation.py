"""`generate()`, `sleep()` and the cache between calls: every way to the same tokens gives the same tokens."""

import copy
import functools
import logging
from threading import Thread

import pytest
import torch
from builders import random_ids, tiny_model, word_tokenizer
from helpers import assert_same_memory, fast_weights, nbytes, read, tensors_of, tensors_of_row
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer, pipeline
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from modeling_sleep.nap_sleep import Sleep


L = 5
SPANS = {"all": None, "coda": [0, 2], "prelude-coda": [1, 3]}
every_span = pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)


# In float64 no two tokens tie; the weights are so large that every pass changes the tokens after it.
OPTIONS = dict(dtype=torch.float64, window_size=L, initializer_range=0.3, pad_token_id=None)
make_model = functools.partial(tiny_model, **OPTIONS)


def make_ids(batch=2, length=7, seed=1):
    return random_ids(batch, length, seed)


def fast_weights_after(model, cache, passes):
    """S of every memory after a nap of a copy of `cache`."""
    return fast_weights(model.sleep(copy.deepcopy(cache), sleep_passes=passes))


def read_after_forced_sleep(model, ids, cache, passes):
    """
    Logits and memory after a sleep over what `cache` holds and `ids` behind it, by another way than `model.sleep`: for
    a model of just that window, the first token of `ids` is one too many.
    """
    narrow, cache = copy.deepcopy(model), copy.deepcopy(cache)
    narrow.config.window_size = cache.layers[0].stored_length()
    logits, cache = read(narrow, ids, cache, sleep_passes=passes)
    return logits, tensors_of(cache)


@pytest.fixture(scope="module")
def model():
    return make_model()


# Ways to generate.


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_greedy_with_cache_equals_greedy_without(model, passes):
    ids = make_ids()
    options = dict(max_new_tokens=18, sleep_passes=passes)
    cached = model.generate(ids, **options)
    assert cached.equal(model.generate(ids, use_cache=False, **options))
    assert cached.shape == (2, 25)
    assert cached[:, 7:].unique().numel() > 10  # a model that repeats itself would show nothing


def test_the_number_of_passes_shows_in_the_tokens(model):
    outputs = [model.generate(make_ids(), max_new_tokens=10, sleep_passes=n) for n in (1, 2, 4)]
    assert not any(outputs[i].equal(outputs[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.parametrize("passes", [1, 3])
def test_passes_of_a_call_equal_passes_of_the_config(model, passes):
    configured = make_model(sleep_passes=passes)
    ids = make_ids()
    options = dict(max_new_tokens=15, do_sample=False)
    assert model.generate(ids, sleep_passes=passes, **options).equal(configured.generate(ids, **options))
    assert model.config.sleep_passes == 2
    assert model.generate(ids, **options).equal(model.generate(ids, sleep_passes=2, **options))


def test_passes_of_a_generation_config(model):
    """In this order: those of the call, of its generation config, of the model's, of the model."""
    ids, options = make_ids(), dict(max_new_tokens=12, do_sample=False)
    expected = {n: model.generate(ids, sleep_passes=n, **options) for n in (2, 3, 4, 6)}
    assert len({tuple(tokens.flatten().tolist()) for tokens in expected.values()}) == 4
    assert model.generate(ids, GenerationConfig(sleep_passes=3, **options)).equal(expected[3])
    other = copy.deepcopy(model)
    other.generation_config.sleep_passes = 4
    assert other.generate(ids, **options).equal(expected[4])
    assert other.generate(ids, GenerationConfig(sleep_passes=3, **options)).equal(expected[3])
    assert other.generate(ids, sleep_passes=6, **options).equal(expected[6])
    assert other.generate(ids, GenerationConfig(sleep_passes=3, **options), sleep_passes=6).equal(expected[6])
    assert other.generation_config.sleep_passes == 4
    with pytest.raises(ValueError, match="`sleep_passes` .N. counts all passes.* got 0"):
        other.generate(ids, GenerationConfig(sleep_passes=0, **options))


def test_options_of_a_generation_config_are_saved(model, tmp_path):
    ids, options = make_ids(), dict(max_new_tokens=12, do_sample=False)
    sleep = Sleep(6, until=1e-9)
    for sleep_passes, plain in ((4, 4), (sleep, sleep)):
        saved = copy.deepcopy(model)
        saved.generation_config.sleep_passes, saved.generation_config.pinned_tokens = sleep_passes, 2
        saved.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, dtype=model.dtype)
        expected = model.generate(ids, sleep_passes=plain, pinned_tokens=2, **options)
        assert loaded.generate(ids, **options).equal(expected)
        assert loaded.generate(ids, GenerationConfig.from_pretrained(tmp_path), **options).equal(expected)


def test_guidance_reads_with_the_passes_of_the_config(model):
    ids, options = make_ids(1), dict(max_new_tokens=8, do_sample=False, guidance_scale=1.5)
    with pytest.raises(ValueError, match="being told of `sleep_passes=5`. Set `model.config.sleep_passes` instead"):
        model.generate(ids, sleep_passes=5, **options)
    other = make_model(sleep_passes=5)
    guided = other.generate(ids, sleep_passes=5, **options)
    assert guided.equal(other.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [2, L])
def test_padding_changes_nothing_and_nobody_warns_of_it(caplog, recwarn, padding, side, with_mask):
    """Without a mask, transformers makes one of the tokens that are not the padding token."""
    model, ids = make_model(pad_token_id=0), make_ids(1)
    parts = [torch.zeros(1, padding, dtype=torch.long), ids][:: 1 if side == "left" else -1]
    padded = torch.cat(parts, dim=1)
    mask = dict(attention_mask=(padded != 0).long()) if with_mask else {}
    expected = model.generate(ids, max_new_tokens=12)[:, 7:]
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        output = model.generate(padded, max_new_tokens=12, **mask)
    transformers_logging.disable_propagation()
    assert output[:, 7 + padding :].equal(expected)
    assert not caplog.records and not recwarn.list


def test_rows_padded_on_any_side_equal_rows_alone(model):
    lengths, width = (7, 4, 11, 1), 13
    texts = [make_ids(1, length, seed=length) for length in lengths]
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    for row, (text, begin) in enumerate(zip(texts, (0, 5, 2, 12), strict=True)):  # right, both, left by any number
        ids[row, begin : begin + text.shape[1]] = text
        mask[row, begin : begin + text.shape[1]] = 1
    for options in (dict(), dict(use_cache=False), dict(prefill_chunk_size=4), dict(num_beams=3)):
        output = model.generate(ids, attention_mask=mask, max_new_tokens=12, **options)[:, width:]
        alone = [model.generate(x, max_new_tokens=12, num_beams=options.get("num_beams", 1)) for x in texts]
        assert output.equal(torch.cat([new[:, -12:] for new in alone])), options


@every_span
def test_beam_search_with_cache_equals_beam_search_without(span):
    model, ids = make_model(loop_span=span), make_ids()
    options = dict(max_new_tokens=9, num_beams=3)
    assert model.generate(ids, **options).equal(model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_of_a_batch_do_not_touch_each_other(model, num_beams):
    ids = make_ids(batch=3)
    options = dict(max_new_tokens=13, num_beams=num_beams)
    alone = [model.generate(row[None], **options) for row in ids]
    assert model.generate(ids, **options).equal(torch.cat(alone))


def test_rows_that_are_finished_do_not_touch_the_others(model):
    ids = make_ids()
    endless = model.generate(ids, max_new_tokens=20)
    end = next(i for i in endless[0, 7:].tolist() if i not in endless[1])
    length = endless[0].tolist().index(end) + 1
    output = model.generate(ids, max_new_tokens=20, eos_token_id=end, pad_token_id=0)
    assert output[1].equal(endless[1])
    assert output[0, :length].equal(endless[0, :length])
    assert length < 20
    assert output[0, length:].tolist() == [0] * (27 - length)


def test_beams_come_back_best_first(model):
    options = dict(max_new_tokens=9, num_beams=3, return_dict_in_generate=True, output_scores=True)
    output = model.generate(make_ids(), num_return_sequences=3, **options)
    scores = output.sequences_scores.view(2, 3)
    assert (scores.diff(dim=1) <= 0).all()
    assert output.sequences[::3].equal(model.generate(make_ids(), **options).sequences)


def test_samples_with_cache_equal_samples_without(model):
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        outputs.append(
            model.generate(
                make_ids(), max_new_tokens=9, do_sample=True, num_return_sequences=3, use_cache=use_cache, top_k=10
            )
        )
    assert outputs[0].equal(outputs[1])
    assert outputs[0].unique(dim=0).shape == (6, 16)
    assert outputs[0][:, :7].equal(make_ids().repeat_interleave(3, dim=0))


@pytest.mark.parametrize("chunk", [1, 3, L, L + 5])
def test_chunked_prefill_equals_prefill_at_once(model, chunk):
    ids = make_ids(length=4 * L + 2)
    options = dict(max_new_tokens=8, return_dict_in_generate=True, output_logits=True)
    once, chunked = model.generate(ids, **options), model.generate(ids, prefill_chunk_size=chunk, **options)
    assert chunked.sequences.equal(once.sequences)
    # transformers hands logits out in float32.
    torch.testing.assert_close(chunked.logits, once.logits, atol=1e-5, rtol=0)


def test_embeddings_equal_ids(model):
    ids = make_ids(length=12)
    output = model.generate(inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=9)
    assert output.equal(model.generate(ids, max_new_tokens=9)[:, 12:])


@pytest.mark.parametrize("padding", [1, L - 1, L, 3 * L + 2])
def test_left_padding_changes_nothing(model, padding):
    ids = make_ids()
    padded = torch.cat([torch.zeros(2, padding, dtype=torch.long), ids], dim=1)
    mask = (padded > 0).long()
    output = model.generate(padded, attention_mask=mask, max_new_tokens=12)
    assert output[:, padding:].equal(model.generate(ids, max_new_tokens=12))


@pytest.mark.parametrize("padding", [3, L])
def test_left_padded_rows_equal_rows_alone(model, padding):
    short, long = make_ids(1, 7), make_ids(1, 7 + padding, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, padding, dtype=torch.long), short], dim=1), long])
    output = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=12)
    assert output[:1, padding:].equal(model.generate(short, max_new_tokens=12))
    assert output[1:].equal(model.generate(long, max_new_tokens=12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_half_precision_gives_finite_logits(dtype, num_beams):
    model = make_model(initializer_range=0.02).to(dtype)
    padded = make_ids().index_fill(1, torch.tensor([0]), 0)
    output = model.generate(
        padded,
        attention_mask=(padded > 0).long(),
        max_new_tokens=14,
        sleep_passes=3,
        num_beams=num_beams,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert output.sequences.shape == (2, 21)
    assert torch.stack(output.logits).isfinite().all()
    dtypes = {name: tensor.dtype for (_, name), tensor in tensors_of(output.past_key_values).items()}
    assert dtypes.pop("recurrent_state") == torch.float32
    assert dtypes == dict.fromkeys(["keys", "values", "conv_state", "kept_hidden_states", "last_hidden_state"], dtype)


def test_inference_mode_changes_nothing(model):
    with torch.inference_mode():
        output = model.generate(make_ids(), max_new_tokens=12)
        cache = model.sleep(model(make_ids()).past_key_values)
    assert output.equal(model.generate(make_ids(), max_new_tokens=12))
    assert cache.layers[0].stored_length() == 0


def test_what_generation_remembers_can_be_trained_on(model):
    """Passes asleep run in inference mode, whose tensors no backward may keep."""
    output = model.generate(make_ids(2, 9), max_new_tokens=12, sleep_passes=3, return_dict_in_generate=True)
    cache = output.past_key_values
    assert cache.layers[0].sleeps > 0
    assert not any(tensor.is_inference() for tensor in tensors_of(cache).values())
    model(make_ids(2, 9), past_key_values=cache, sleep_passes=3).logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Streamers and pipelines.


class CollectIds(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], False

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<pad>", *(f"w{i}" for i in range(1, 64))]
    return word_tokenizer(words, pad_token="<pad>", padding_side="left")


def test_a_streamer_gets_every_id(model):
    streamer = CollectIds()
    output = model.generate(make_ids(1), max_new_tokens=13, streamer=streamer)
    assert streamer.ids == output[0].tolist()
    assert streamer.ended


def test_a_text_streamer_gives_the_text(model, tokenizer):
    ids = make_ids(1)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, args=(ids,), kwargs=dict(max_new_tokens=13, streamer=streamer))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(model.generate(ids, max_new_tokens=13)[0, 7:])
    assert len(text.split()) == 13


def test_pipeline_equals_generate(model, tokenizer):
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = dict(max_new_tokens=12, do_sample=False, return_full_text=False)
    short, long = (" ".join(f"w{i}" for i in make_ids(1, length)[0].tolist()) for length in (7, 7 + L + 2))

    expected = []
    for prompt in (short, long):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected.append(tokenizer.decode(model.generate(ids, max_new_tokens=12)[0, ids.shape[1] :]))
        assert generator(prompt, **options) == [{"generated_text": expected[-1]}]
    # One batch, the short prompt padded on the left.
    batch = generator([short, long], batch_size=2, **options)
    assert [rows[0]["generated_text"] for rows in batch] == expected


def test_pipeline_takes_the_number_of_passes(model, tokenizer):
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    ids = make_ids(1)
    options = dict(max_new_tokens=12, do_sample=False, return_tensors=True)
    output = generator(tokenizer.decode(ids[0]), sleep_passes=4, **options)
    assert output[0]["generated_token_ids"] == model.generate(ids, max_new_tokens=12, sleep_passes=4)[0].tolist()


# The cache between calls.


@pytest.mark.parametrize("given", ["all ids", "new ids"])
@pytest.mark.parametrize("first", [1, 4, 9])
def test_continuing_from_a_cache_equals_one_go(model, first, given):
    ids = make_ids()
    whole = model.generate(ids, max_new_tokens=16)
    begun = model.generate(ids, max_new_tokens=first, return_dict_in_generate=True)
    cache = begun.past_key_values
    assert cache.get_seq_length() == 7 + first - 1
    mask = torch.ones_like(begun.sequences)
    given = begun.sequences if given == "all ids" else begun.sequences[:, cache.get_seq_length() :]
    output = model.generate(given, attention_mask=mask, past_key_values=cache, max_new_tokens=16 - first)
    assert output[:, given.shape[1] :].equal(whole[:, 7 + first :])


def test_continuing_with_new_turns_equals_one_text(model):
    turns = [make_ids(2, length, seed=length) for length in (7, 1, 11)]
    text, cache = torch.zeros(2, 0, dtype=torch.long), None
    for turn in turns:
        text = torch.cat([text, turn], dim=1)
        output = model.generate(text, past_key_values=cache, max_new_tokens=6, return_dict_in_generate=True)
        assert output.sequences.equal(model.generate(text, max_new_tokens=6))
        text, cache = output.sequences, output.past_key_values


def test_continuing_a_padded_text_equals_one_go(model):
    ids = make_ids().index_fill(1, torch.tensor([0, 1]), 0)
    mask = (ids > 0).long()
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=16)
    begun = model.generate(ids, attention_mask=mask, max_new_tokens=4, return_dict_in_generate=True)
    mask = torch.cat([mask, mask.new_ones(2, 4)], dim=1)
    output = model.generate(
        begun.sequences, attention_mask=mask, past_key_values=begun.past_key_values, max_new_tokens=12
    )
    assert output.equal(whole)


@pytest.mark.parametrize("prefill", [1, 3 * L + 2])
def test_the_cache_never_outgrows_one_window(prefill):
    model = make_model(loop_span=[0, 2])
    ids = make_ids(1, 30 * L)
    _, cache = read(model, ids[:, :prefill])
    sizes = []
    for i in range(prefill, ids.shape[1]):
        read(model, ids[:, i : i + 1], cache)
        # Of the storages: a view of something larger would keep it alive.
        sizes.append({key: x.untyped_storage().nbytes() for key, x in tensors_of(cache).items()})
        assert all(x.shape[2] <= L for (_, name), x in tensors_of(cache).items() if name in ("keys", "values"))
        assert all(x.shape[1] <= L for (_, name), x in tensors_of(cache).items() if name == "kept_hidden_states")
    assert cache.get_seq_length() == 30 * L
    assert cache.layers[0].stored_length() == L
    # keys and values: 2 heads of 8; S: 4 heads of 8 x 8; convolution: 3 inputs of 96 channels; all of 8 bytes.
    limits = dict(keys=L * 16 * 8, values=L * 16 * 8, kept_hidden_states=L * 32 * 8, last_hidden_state=32 * 8)
    limits |= {"recurrent_state": 256 * 8, "start of recurrent_state": 256 * 8, "conv_state": 3 * 96 * 8}
    assert {name for step in sizes for _, name in step} == limits.keys()
    for name, limit in limits.items():
        assert max(size for step in sizes for (_, key), size in step.items() if key == name) == limit
    assert {size for step in sizes for (_, key), size in step.items() if key == "recurrent_state"} == {256 * 8}


OPERATIONS = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 2])), [2, 0, 2]),
    "batch_repeat_interleave": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "batch_select_indices": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
}


@every_span
@pytest.mark.parametrize("length", [L + 3, 2 * L], ids=["in a window", "at its end"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_on_rows_carry_everything(span, length, operation):
    model, ids, more = make_model(loop_span=span), make_ids(3, length), make_ids(6, 2 * L, seed=2)
    change, rows = OPERATIONS[operation]
    mask = torch.ones(3, length)
    mask[0, L + 1] = 0  # in the window that is being kept
    _, cache = read(model, ids, attention_mask=mask)
    change(cache)
    assert cache.batch_size == len(rows)
    logits, _ = read(model, more[: len(rows)], cache)
    for i, row in enumerate(rows):
        _, alone = read(model, ids[row : row + 1], attention_mask=mask[row : row + 1])
        expected, alone = read(model, more[i : i + 1], alone)
        torch.testing.assert_close(logits[i : i + 1], expected, atol=1e-9, rtol=0)
        assert_same_memory(tensors_of_row(cache, i), tensors_of_row(alone, 0))


@every_span
def test_a_reset_cache_is_a_new_one(span):
    model, ids = make_model(loop_span=span), make_ids()
    _, cache = read(model, make_ids(3, 2 * L + 2, seed=2))
    cache.reset()
    assert tensors_of(cache) == {}
    assert cache.get_seq_length() == 0
    events = []
    output = model.generate(ids, past_key_values=cache, max_new_tokens=12, sleep_callback=events.append)
    assert output.equal(model.generate(ids, max_new_tokens=12))
    assert [event.window_index for event in events] == [0, 1, 2]


@pytest.mark.parametrize("fill", [0, L + 2])
def test_a_cache_cannot_be_cropped(model, fill):
    cache = DynamicCache(config=model.config)
    if fill:
        read(model, make_ids(length=fill), cache)
    with pytest.raises(RuntimeError, match=r"cannot be cropped. Copy it before .*deepcopy"):
        cache.crop(-1)
    assert cache.get_seq_length() == fill


@every_span
def test_a_copied_cache_is_a_fork(span):
    model, ids = make_model(loop_span=span), make_ids()
    _, cache = read(model, ids)
    fork = copy.deepcopy(cache)
    before = {key: tensor.clone() for key, tensor in tensors_of(fork).items()}
    turns = [make_ids(2, 2 * L, seed=seed) for seed in (2, 3)]
    logits, _ = read(model, turns[0], cache)
    assert {key: tensor.equal(before[key]) for key, tensor in tensors_of(fork).items()} == dict.fromkeys(before, True)
    forked, _ = read(model, turns[1], fork)
    for turn, continued in zip(turns, (logits, forked), strict=True):
        expected, _ = read(model, torch.cat([ids, turn], dim=1))
        torch.testing.assert_close(continued, expected[:, 7:], atol=1e-9, rtol=0)


# Naps and what a sleep tells.


@every_span
@pytest.mark.parametrize("fill", [1, 3, L])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_a_nap_is_the_sleep_of_a_model_with_that_window(span, fill, passes):
    model, ids, more = make_model(loop_span=span), make_ids(2, L + fill), make_ids(2, 1, seed=2)
    _, cache = read(model, ids)
    awake = fast_weights(copy.deepcopy(cache))
    expected, memory = read_after_forced_sleep(model, more, cache, passes)
    assert model.sleep(cache, sleep_passes=passes) is cache

    slept = fast_weights(cache)
    for before, after in zip(awake, slept, strict=True):
        assert after.equal(before) == (passes == 1)
    assert cache.get_seq_length() == L + fill
    assert cache.layers[0].stored_length() == 0
    left = {name for (_, name), tensor in tensors_of(cache).items() if tensor.untyped_storage().nbytes() > 0}
    coda = set() if span is None else {"start of recurrent_state"}
    assert left == {"recurrent_state", "last_hidden_state"} | coda

    events = []
    model.sleep(cache, sleep_passes=passes, sleep_callback=events.append)
    assert events == []
    assert all(again.equal(before) for again, before in zip(fast_weights(cache), slept, strict=True))

    logits, cache = read(model, more, cache)
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    assert_same_memory(tensors_of(cache), memory)


def test_text_goes_on_after_a_nap_as_after_a_window_of_that_length(model):
    narrow = make_model(window_size=3)
    ids, more = make_ids(2, 3), make_ids(2, 3, seed=2)
    _, cache = read(model, ids)
    logits, _ = read(model, more, model.sleep(cache, sleep_passes=3))
    expected, _ = read(narrow, torch.cat([ids, more], dim=1), sleep_passes=3)
    torch.testing.assert_close(logits, expected[:, 3:], atol=1e-9, rtol=0)
    plain, _ = read(model, torch.cat([ids, more], dim=1), sleep_passes=3)
    assert (logits - plain[:, 3:]).abs().max() > 0.1


def test_a_window_that_is_more_than_full_is_slept_over(model):
    """Its cache comes from a model of the same weights and longer windows."""
    wide, ids, more = make_model(window_size=2 * L), make_ids(2, L + 2), make_ids(2, L, seed=2)
    _, cache = read(wide, ids)
    expected, _ = read(model, more, model.sleep(copy.deepcopy(cache)))
    logits, cache = read(model, more, cache)
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    assert cache.layers[0].stored_length() == L


def test_generation_goes_on_after_a_nap(model):
    begun = model.generate(make_ids(), max_new_tokens=4, return_dict_in_generate=True)
    sequences, cache = begun.sequences, model.sleep(begun.past_key_values)
    output = model.generate(sequences, past_key_values=copy.deepcopy(cache), max_new_tokens=12)
    for _ in range(12):
        logits, cache = read(model, sequences[:, -1:], cache)
        sequences = torch.cat([sequences, logits[:, -1:].argmax(-1)], dim=1)
    assert output.equal(sequences)


def test_the_base_model_naps_as_well(model):
    _, cache = read(model, make_ids(length=3))
    expected = model.sleep(copy.deepcopy(cache))
    assert_same_memory(tensors_of(model.model.sleep(cache)), tensors_of(expected), atol=0)


@pytest.mark.parametrize("passes", [1, 3])
def test_every_sleep_is_told(model, passes):
    events = []
    model.generate(make_ids(), max_new_tokens=15, sleep_passes=passes, sleep_callback=events.append)
    # The last token is never read, so 21 are: four full windows, the last of which is slept over for the 21st.
    assert [event.window_index for event in events] == [0, 1, 2, 3]
    assert {event.passes for event in events} == {passes}
    assert {len(event.relative_change) for event in events} == {passes - 1}
    assert all(0 < change < 10 for event in events for change in event.relative_change)
    assert all(event.seconds > 0 and event.freed_bytes > 0 for event in events)


@every_span
@pytest.mark.parametrize("fill", [2, L])
def test_a_sleep_tells_how_much_it_changed_and_freed(span, fill):
    model = make_model(loop_span=span)
    _, cache = read(model, make_ids(2, L + fill))
    history = [fast_weights_after(model, cache, passes) for passes in (1, 2, 3, 4)]
    looped = [n for n, i in enumerate((1, 3)) if span is None or span[0] <= i < span[1]]
    expected = []
    for before, after in zip(history, history[1:], strict=False):
        before, after = (torch.cat([S[n].flatten() for n in looped]) for S in (before, after))
        expected.append(((after - before).norm() / before.norm()).item())

    size, events = nbytes(cache), []
    model.sleep(cache, sleep_passes=4, sleep_callback=events.append)
    (event,) = events
    assert (event.window_index, event.passes) == (1, 4)
    assert event.relative_change == pytest.approx(expected, abs=1e-9)
    assert event.freed_bytes == size - nbytes(cache) > 0


def test_a_span_without_memory_tells_of_no_change():
    """Its passes refine what the memory behind it is written from, once."""
    model = make_model(
        num_hidden_layers=3, layer_types=["sleep_attention"] * 2 + ["linear_attention"], loop_span=(0, 2)
    )
    events, ids = [], make_ids(2, 2 * L)
    told, _ = read(model, ids, sleep_passes=3, sleep_callback=events.append)
    assert told.equal(read(model, ids, sleep_passes=3)[0]) and not told.equal(read(model, ids, sleep_passes=2)[0])
    assert [event.relative_change for event in events] == [[]] and events[0].state_norm > 0


def test_padding_is_never_slept_over(model):
    """A window is full of tokens, whatever stands between them."""
    events, alone, ids = [], [], make_ids(2, 4 * L)
    mask = torch.ones(2, 4 * L).index_fill(1, torch.arange(L + 2), 0).index_fill(1, torch.tensor([2 * L, 3 * L]), 0)
    read(model, ids, attention_mask=mask, sleep_callback=events.append)
    read(model, ids[mask == 1].view(2, -1), sleep_callback=alone.append)
    assert len(events) == len(alone) == 2  # of 3 L - 4 tokens
    for event, expected in zip(events, alone, strict=True):
        assert event._replace(seconds=0) == expected._replace(seconds=0)
    read(model, ids, attention_mask=torch.zeros(2, 4 * L), sleep_callback=events.append)
    assert len(events) == 2


def test_rows_sleep_when_their_own_windows_are_full(model):
    events, mask = [], torch.ones(3, 2 * L + 1)
    mask[1, :2] = mask[2, : L + 1] = 0
    read(model, make_ids(3, 2 * L + 1), attention_mask=mask, sleep_callback=events.append)
    assert [(event.rows, event.window_index) for event in events] == [((0, 1), 0), ((0,), 1)]
