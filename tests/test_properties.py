"""Properties that hold for any length, L, N, batch, span and chunking: hypothesis looks for counter-examples."""

import functools

import torch
from builders import tiny_model
from helpers import assert_same_memory, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import SPANS, cut

from modeling_sleep import gated_delta_rule
from modeling_sleep.gated_delta_rule import recurrent_gated_delta_rule


make_model = functools.partial(tiny_model, dtype=torch.float64, initializer_range=0.1)


def close(first, second):
    return torch.allclose(first, second, atol=1e-9, rtol=0)


@given(
    data=st.data(),
    length=st.integers(1, 40),
    window_size=st.integers(1, 12),
    passes=st.integers(1, 4),
    batch=st.integers(1, 3),
    span=SPANS,
)
@torch.no_grad()
def test_any_chunking_of_any_text_gives_the_same(data, length, window_size, passes, batch, span):
    model = make_model(window_size=window_size, sleep_passes=passes, loop_span=span)
    ids = torch.randint(0, 64, (batch, length))
    whole = model(ids, use_cache=True)
    cache, pieces = None, []
    for piece in ids.split(cut(data, length), dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
        assert cache.layers[0].stored_length() <= window_size
    assert close(torch.cat(pieces, dim=1), whole.logits)
    assert cache.get_seq_length() == length
    assert cache.layers[0].sleeps == (length - 1) // window_size
    assert_same_memory(tensors_of(cache), tensors_of(whole.past_key_values))


@given(length=st.integers(1, 30), window_size=st.integers(1, 9), passes=st.integers(1, 3), rows=st.integers(2, 4))
@torch.no_grad()
def test_rows_of_a_batch_do_not_touch_each_other(length, window_size, passes, rows):
    model = make_model(window_size=window_size, sleep_passes=passes)
    ids = torch.randint(0, 64, (rows, length))
    alone = torch.cat([model(row[None]).logits for row in ids])
    assert close(model(ids).logits, alone)


@given(length=st.integers(1, 30), window_size=st.integers(1, 9), passes=st.integers(1, 3), span=SPANS)
@torch.no_grad()
def test_no_token_knows_the_future(length, window_size, passes, span):
    model = make_model(window_size=window_size, sleep_passes=passes, loop_span=span)
    ids = torch.randint(0, 64, (1, length + 5))
    assert close(model(ids[:, :length]).logits, model(ids).logits[:, :length])


@given(
    length=st.integers(1, 20),
    window_size=st.integers(1, 8),
    padding=st.integers(1, 20),
    passes=st.integers(1, 3),
    span=SPANS,
)
@torch.no_grad()
def test_left_padding_changes_nothing(length, window_size, padding, passes, span):
    model = make_model(window_size=window_size, sleep_passes=passes, loop_span=span)
    ids = torch.randint(0, 64, (2, length))
    mask = torch.ones(2, padding + length)
    mask[:, :padding] = 0
    padded = torch.cat([torch.randint(0, 64, (2, padding)), ids], dim=1)
    assert close(model(padded, attention_mask=mask).logits[:, padding:], model(ids).logits)


@given(data=st.data(), length=st.integers(1, 25), window_size=st.integers(1, 9), passes=st.integers(1, 3), span=SPANS)
@torch.no_grad()
def test_what_is_masked_cannot_be_told_from_the_rest(data, length, window_size, passes, span):
    """Whatever stands where the mask is 0, and if nothing does, logits elsewhere and the memory are the same."""
    model = make_model(window_size=window_size, sleep_passes=passes, loop_span=span)
    mask = torch.tensor([data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))])
    ids, noise = torch.randint(0, 64, (2, 1, length))
    outputs = [
        model(torch.where(mask == 1, ids, other), attention_mask=mask, use_cache=True) for other in (ids, noise)
    ]
    first, second = (output.logits[mask == 1] for output in outputs)
    assert close(first, second)
    alone = model(ids[mask == 1].unsqueeze(0), use_cache=True) if mask.any() else outputs[0]
    assert close(first, alone.logits[0] if mask.any() else first)
    for memory in (tensors_of(output.past_key_values) for output in outputs):
        assert_same_memory(memory, tensors_of(alone.past_key_values))


@given(
    seq_len=st.integers(1, 140),
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 2),
    groups=st.integers(1, 2),
    key_dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    decay=st.floats(0, 3),
)
def test_any_shape_of_the_rule(seq_len, batch, key_heads, groups, key_dim, value_dim, decay):
    def random(*shape):
        return torch.randn(batch, seq_len, *shape, dtype=torch.float64)

    heads = key_heads * groups
    inputs = (
        random(key_heads, key_dim),
        random(key_heads, key_dim),
        random(heads, value_dim),
        -random(heads).abs() * decay,
        2 * random(heads).sigmoid(),
        torch.randn(batch, heads, key_dim, value_dim, dtype=torch.float64),
    )
    for ours, expected in zip(gated_delta_rule(*inputs), recurrent_gated_delta_rule(*inputs), strict=True):
        assert close(ours, expected)
