"""Kept keys: after a sleep the last `window_overlap` keys stay, and the first `pinned_tokens` of a text for good.

Against Algorithm 1 as it is written out in algorithm_1.py, and every way through the model against every other.
"""

import pytest
import torch
import torch.nn.functional as F
from algorithm_1 import algorithm_1
from helpers import assert_close, assert_same_gradients, fast_weights, gradients_of, nbytes
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import (
    SPANS,
    assert_row_is_as_alone,
    cut,
    first_attention,
    make_ids,
    make_model,
)

from modeling_sleep import SleepConfig
from modeling_sleep.nap_sleep import Sleep


@st.composite
def kept(draw):
    """L, w and p."""
    window_size = draw(st.integers(1, 6))
    return dict(
        window_size=window_size,
        window_overlap=draw(st.integers(0, window_size - 1)),
        pinned_tokens=draw(st.integers(0, window_size)),
    )


@given(
    data=st.data(),
    kept=kept(),
    span=SPANS,
    attention=st.sampled_from(["eager", "sdpa"]),
    passes=st.integers(1, 3),
    length=st.integers(1, 16),
)
def test_equals_algorithm_1(data, kept, span, attention, passes, length):
    naps = data.draw(st.sets(st.integers(1, length), max_size=2)) - {length}
    model = make_model(loop_span=span, attn_implementation=attention, **kept)
    ids, points, cache, logits = make_ids(1, length), [0, *sorted(naps), length], None, []
    for begin, end in zip(points, points[1:], strict=False):
        if cache is not None:  # which cuts the gradient
            model.sleep(cache, sleep_passes=passes)
        output = model(ids[:, begin:end], past_key_values=cache, use_cache=True, sleep_passes=passes)
        cache = output.past_key_values
        logits.append(output.logits[0])
    logits = torch.cat(logits)
    expected, S = algorithm_1(model, ids[0], passes, naps=naps)
    assert_close(logits, expected)
    for ours, i in zip(fast_weights(cache), sorted(S), strict=True):
        assert_close(ours[0], torch.stack(S[i]).mT)
    if not naps:
        labels = make_ids(1, length)[0]
        assert_same_gradients(*(gradients_of(F.cross_entropy(x, labels), model) for x in (logits, expected)))


def test_kept_keys_are_looked_at():
    ids, results = make_ids(1, 20), []
    for options in ({}, dict(window_overlap=2), dict(window_overlap=4), dict(pinned_tokens=2)):
        results.append(make_model(**options)(ids, sleep_passes=2).logits)
    for i, first in enumerate(results):
        for second in results[:i]:
            assert torch.equal(first[:, :5], second[:, :5])
            assert (first - second)[:, 5:].abs().max() > 1e-3


@given(data=st.data(), kept=kept(), span=SPANS, passes=st.integers(1, 3), length=st.integers(1, 30))
@torch.no_grad()
def test_any_chunking(data, kept, span, passes, length):
    model, ids = make_model(loop_span=span, **kept), make_ids(2, length)
    whole = model(ids, sleep_passes=passes, use_cache=True)
    for lengths in (cut(data, length), [1] * length):
        cache, pieces = None, []
        for piece in ids.split(lengths, dim=1):
            output = model(piece, past_key_values=cache, sleep_passes=passes, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
            for layer in cache.layers:
                if hasattr(layer, "stored_length"):
                    keys = sum(x.shape[2] for x in (layer.state.keys, layer.state.kept_keys) if x is not None)
                    assert keys <= sum(kept.values())
        assert_close(torch.cat(pieces, dim=1), whole.logits)
        rows = model(ids[1:], sleep_passes=passes, use_cache=True)
        assert_row_is_as_alone(cache, 1, rows.past_key_values)


@given(kept=kept(), span=SPANS, passes=st.integers(1, 3), length=st.integers(1, 12))
@torch.no_grad()
def test_generates_what_one_reading_says(kept, span, passes, length):
    model, ids = make_model(loop_span=span, **kept), make_ids(2, length)
    tokens = model.generate(ids, max_new_tokens=14, do_sample=False, sleep_passes=passes)
    logits = model(tokens[:, :-1], sleep_passes=passes).logits[:, length - 1 :]
    assert torch.equal(tokens[:, length:], logits.argmax(-1))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("pinned", [0, 3, 5])
@torch.no_grad()
def test_pinned_tokens_are_chosen_by_the_call(pinned, overlap, passes):
    ids, model = make_ids(2, 19), make_model(window_overlap=overlap)
    fixed = make_model(window_overlap=overlap, pinned_tokens=pinned)
    expected = fixed(ids, sleep_passes=passes).logits
    assert_close(model(ids, sleep_passes=passes, pinned_tokens=pinned).logits, expected)
    cache = model(ids[:, :4], sleep_passes=passes, pinned_tokens=pinned, use_cache=True).past_key_values
    rest = model(ids[:, 4:], sleep_passes=passes, past_key_values=cache)  # the cache knows
    assert_close(rest.logits, expected[:, 4:])
    memory = model.read(ids, sleep_passes=passes, pinned_tokens=pinned, progress=False)
    assert_close(memory.state.last_hidden_state, fixed.model(ids, sleep_passes=passes).last_hidden_state[:, -1:])
    packed = dict(position_ids=torch.cat([torch.arange(8), torch.arange(11)])[None], sleep_passes=passes)
    assert_close(model(ids, pinned_tokens=pinned, **packed).logits, fixed(ids, **packed).logits)
    options = dict(max_new_tokens=9, do_sample=False, sleep_passes=passes)
    assert torch.equal(model.generate(ids, pinned_tokens=pinned, **options), fixed.generate(ids, **options))


def test_bad_numbers_are_refused():
    model, ids = make_model(), make_ids(1, 7)
    for pinned in (-1, 6, 1.5, "2"):
        with pytest.raises(ValueError, match="pinned_tokens"):
            model(ids, pinned_tokens=pinned)
    cache = model(ids, use_cache=True, pinned_tokens=2).past_key_values
    with pytest.raises(ValueError, match="began with 2"):
        model(ids, past_key_values=cache, pinned_tokens=3)
    model(ids, past_key_values=cache, pinned_tokens=2)
    for options in (dict(window_overlap=5), dict(window_overlap=-1), dict(pinned_tokens=6), dict(pinned_tokens=-1)):
        with pytest.raises(Exception, match=next(iter(options))):
            SleepConfig(window_size=5, **options)


@torch.no_grad()
def test_thousands_of_tokens_neither_drift_nor_grow():
    model = make_model(torch.float32, window_size=8, window_overlap=7, pinned_tokens=3)
    cache, pinned, sizes = None, [], []
    for piece in make_ids(1, 3040).split(304, dim=1):
        cache = model(piece, past_key_values=cache, use_cache=True, sleep_passes=2).past_key_values
        sizes.append(nbytes(cache))
        pinned.append(first_attention(cache).state.kept_keys[:, :, :3])
    assert len(set(sizes)) == 1
    assert first_attention(cache).state.kept_keys.shape[2] == 10
    # Turned once, and never again. In the first layer a key depends on its token alone.
    assert all(torch.equal(pinned[0], later) for later in pinned)


@given(kept=kept(), span=SPANS, until=st.sampled_from([0.02, 0.1, 0.3]), length=st.integers(1, 16))
@torch.no_grad()
def test_with_until(kept, span, until, length):
    model, ids = make_model(loop_span=span, **kept), make_ids(1, length)
    expected, _ = algorithm_1(model, ids[0], 5, until=until)
    assert_close(model(ids, sleep_passes=Sleep(5, until)).logits[0], expected)
