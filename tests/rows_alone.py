"""A batch and its rows alone: what the tests of ragged, packed and overlapping rows share.

A row is to get what its text gets alone, so each test reads a batch once, and its rows one after the other.
"""

import torch
import torch.nn.functional as F
from builders import UNEVEN, uneven_model
from helpers import assert_close, assert_same_gradients, fast_weights, gradients_of
from hypothesis import strategies as st

from modeling_sleep import SleepForCausalLM


SPANS = st.sampled_from([None, (0, 2), (1, 3), (1, 4), (2, 4)])
VOCABULARY = UNEVEN["vocab_size"]


def make_model(dtype=torch.float64, model_class=SleepForCausalLM, **overrides):
    """Two layers of each kind, no parameter left where a mistake would not show."""
    options = dict(initializer_range=0.2, rope_parameters={"rope_theta": 100.0}, pad_token_id=None, eos_token_id=None)
    model = uneven_model(model_class, dtype, **{**options, **overrides}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "injection" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def cut(data, length, pieces=6):
    """Lengths of at least 1 that add up to `length`."""
    cuts = data.draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=pieces))
    points = [0, *sorted(c for c in cuts if c < length), length]
    return [b - a for a, b in zip(points, points[1:], strict=False)]


@st.composite
def masks(draw, batch=None, length=None):
    """(batch, length) of bool, False at padding: on the left, on the right, in holes, everywhere, anywhere."""
    batch = draw(st.integers(1, 4) if batch is None else batch)
    length = draw(st.integers(1, 32) if length is None else length)
    mask = torch.ones(batch, length, dtype=torch.bool)
    for row in mask:
        kind = draw(st.sampled_from(["none", "left", "right", "both", "hole", "all", "any"]))
        first, last = sorted(draw(st.tuples(*[st.integers(0, length)] * 2)))
        if kind in ("left", "both"):
            row[:first] = False
        if kind in ("right", "both"):
            row[last:] = False
        if kind == "hole":
            row[first:last] = False
        if kind == "all":
            row[:] = False
        if kind == "any":
            row[:] = torch.tensor(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    return mask


def make_ids(batch, length):
    return torch.randint(0, VOCABULARY, (batch, length))


def assert_equals_algorithm_1(model, output, logits, S):
    """One text's logits, S and gradients are those that `algorithm_1` gave: its `logits` and its `S`."""
    assert_close(output.logits[0], logits)
    for ours, i in zip(fast_weights(output.past_key_values), sorted(S), strict=True):
        assert_close(ours[0], torch.stack(S[i]).mT)
    labels = make_ids(1, len(logits))[0]
    assert_same_gradients(*(gradients_of(F.cross_entropy(x, labels), model) for x in (output.logits[0], logits)))


def first_attention(cache):
    return next(layer for layer in cache.layers if hasattr(layer, "stored_length"))


def live_keys(cache, row):
    """Keys and values that a row's next token sees, without what stands for nothing, layer by layer."""
    common, live = first_attention(cache).common, []
    numbers = [n[row] if isinstance(n, tuple) else n for n in (common.stored, common.kept, common.pinned)]
    stored, kept, pinned = numbers
    for layer in cache.layers:
        if not hasattr(layer, "keys") or layer.state is None:
            continue
        keys, values, kept_keys, kept_values = (x if x is None else x[row] for x in layer.state)
        for new, old in ((keys, kept_keys), (values, kept_values)):
            if old is not None:
                end = old.shape[1]
                live += [old[:, :pinned], old[:, end - kept :]]
            live.append(new[:, :stored] if new is not None else None)
    return [x for x in live if x is not None and x.numel()]


def assert_row_is_as_alone(cache, row, alone, atol=1e-9):
    """What a row of a cache holds is what the cache of its text alone holds; None for no text at all."""
    for i, S in enumerate(fast_weights(cache)):
        expected = None if alone is None else fast_weights(alone)[i]
        if expected is None:
            assert S is None or not S[row].any()
        else:
            assert_close(S[row], expected[0], atol)
    if alone is not None:
        assert_close(live_keys(cache, row), live_keys(alone, 0), atol)
        ours, theirs = first_attention(cache).common, first_attention(alone).common
        for name in ("stored", "sleeps", "kept", "pinned", "read"):
            number = getattr(ours, name)
            assert (number[row] if isinstance(number, tuple) else number) == getattr(theirs, name), name
