"""Rows of a batch sleep each at their own boundary: whatever stands beside a row, it gets what it gets alone.

Padding stands anywhere: on the left, on the right, in holes, in whole rows, between calls. Alone means without it.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, Float64
from families import make_model as make_family_model
from helpers import assert_close, fast_weights, nbytes
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_alone import (
    SPANS,
    VOCABULARY,
    assert_row_is_as_alone,
    cut,
    first_attention,
    make_ids,
    make_model,
    masks,
)

from modeling_sleep import SleepForSequenceClassification, SleepForTokenClassification
from modeling_sleep.nap_sleep import Sleep


WINDOWS, PASSES = st.integers(1, 7), st.integers(1, 4)
ATTENTION = st.sampled_from(["eager", "sdpa"])
FEWER = settings(max_examples=settings.default.max_examples // 3)  # of what takes long


@st.composite
def options(draw, **more):
    """A window, a looped span, and which keys outlive a sleep."""
    window_size, span = draw(WINDOWS), draw(SPANS)
    return dict(
        window_size=window_size,
        window_overlap=draw(st.sampled_from([0, 0, window_size // 2, window_size - 1])),
        pinned_tokens=draw(st.sampled_from([0, 0, 1, window_size])),
        loop_span=span,
        input_injection=span in (None, (0, 2)) and draw(st.booleans()),
        attn_implementation=draw(ATTENTION),
        **{name: draw(strategy) for name, strategy in more.items()},
    )


def read_alone(model, ids, mask, **kwargs):
    """For each row what the model gives for its tokens alone; None for a row of none."""
    return [
        model(row[live][None], use_cache=True, **kwargs) if live.any() else None
        for row, live in zip(ids, mask, strict=True)
    ]


def assert_rows_are_as_alone(logits, mask, cache, alone, atol=1e-9):
    for row, (live, expected) in enumerate(zip(mask, alone, strict=True)):
        assert_row_is_as_alone(cache, row, expected and expected.past_key_values, atol)
        if expected is not None:
            assert_close(logits[row, live], expected.logits[0], atol)


def read_in_pieces(model, ids, mask, lengths, whole_mask, **kwargs):
    """`whole_mask`: for each piece, whether its mask tells of the past as well."""
    cache, pieces, begin = None, [], 0
    for length, tells in zip(lengths, whole_mask, strict=True):
        end = begin + length
        output = model(
            ids[:, begin:end],
            attention_mask=mask[:, 0 if tells else begin : end].long(),
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )
        cache, begin = output.past_key_values, end
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1), cache


@given(data=st.data(), mask=masks(), options=options(), passes=PASSES, until=st.sampled_from([None, 0.1, 1.0]))
@torch.no_grad()
def test_any_padding_in_any_pieces(data, mask, options, passes, until):
    model, ids, sleep = make_model(**options), make_ids(*mask.shape), Sleep(passes, until)
    alone = read_alone(model, ids, mask, sleep_passes=sleep)
    length = mask.shape[1]
    for lengths in ([length], cut(data, length), [1] * length):
        tells = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
        logits, cache = read_in_pieces(model, ids, mask, lengths, tells, sleep_passes=sleep)
        assert_rows_are_as_alone(logits, mask, cache, alone)
        assert cache.get_seq_length() == length
        for row, live in zip(logits, mask, strict=True):  # padding repeats the last token before it
            for column in range(1, length):
                if not live[column]:
                    assert_close(row[column], row[column - 1])


@given(
    mask=masks(st.integers(2, 4), st.integers(2, 24)),
    options=options(bptt_windows=st.sampled_from([None, 1, 2])),
    passes=PASSES,
    until=st.sampled_from([None, 0.1]),
    checkpointed=st.booleans(),
)
def test_gradients_are_those_of_the_rows_alone(mask, options, passes, until, checkpointed):
    model, ids, sleep = make_model(**options), make_ids(*mask.shape), Sleep(passes, until)
    labels = make_ids(*mask.shape)

    def gradients(read):
        model.zero_grad()
        embeds = model.model.embed_tokens(ids).detach().requires_grad_()
        (F.cross_entropy(read(embeds), labels[mask], reduction="sum") + 0 * embeds.sum()).backward()
        return {"inputs_embeds": embeds.grad} | {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    def read_rows(embeds):
        rows = [model(inputs_embeds=row[live][None], sleep_passes=sleep).logits[0] for row, live in present(embeds)]
        return torch.cat(rows) if rows else embeds.new_zeros(0, VOCABULARY)

    def present(embeds):
        return [(row, live) for row, live in zip(embeds, mask, strict=True) if live.any()]

    def read_batch(embeds):
        return model(inputs_embeds=embeds, attention_mask=mask.long(), sleep_passes=sleep).logits[mask]

    expected = gradients(read_rows)
    if checkpointed:
        model.gradient_checkpointing_enable()
        model.train()
    ours = gradients(read_batch)
    assert ours.keys() >= expected.keys()
    for name, gradient in ours.items():
        wanted = expected.get(name, torch.zeros_like(gradient))
        assert (gradient - wanted).norm() <= 1e-9 + 1e-8 * wanted.norm(), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_the_rows_alone(side):
    model, ids, lengths = make_model(sleep_passes=3), make_ids(3, 17), [17, 9, 4]
    column = torch.arange(17)
    mask = torch.stack([column < n if side == "right" else column >= 17 - n for n in lengths])
    losses = [
        model(row[live][None], labels=row[live][None]).loss * (n - 1) for row, live, n in zip(ids, mask, lengths)
    ]
    loss = model(ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
    assert_close(loss, sum(losses) / sum(n - 1 for n in lengths), 1e-6)


@given(mask=masks(st.integers(2, 3), st.integers(1, 40)), options=options(), passes=PASSES)
@torch.no_grad()
def test_in_float32(mask, options, passes):
    model, ids = make_model(torch.float32, **{**options, "initializer_range": 0.05}), make_ids(*mask.shape)
    alone = read_alone(model, ids, mask, sleep_passes=passes)
    output = model(ids, attention_mask=mask.long(), use_cache=True, sleep_passes=passes)
    assert_rows_are_as_alone(output.logits, mask, output.past_key_values, alone, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@FEWER
@given(data=st.data(), mask=masks(st.integers(2, 3), st.integers(1, 20)), options=options(), passes=PASSES)
@torch.no_grad()
def test_families(family, data, mask, options, passes):
    attention = options.pop("attn_implementation")
    model = make_family_model(family, **options)
    model.set_attn_implementation(attention)
    ids, lengths = make_ids(*mask.shape), cut(data, mask.shape[1], 2)
    with Float64():
        alone = read_alone(model, ids, mask, sleep_passes=passes)
        logits, cache = read_in_pieces(model, ids, mask, lengths, [True] * len(lengths), sleep_passes=passes)
        assert_rows_are_as_alone(logits, mask, cache, alone)


# Generation


@st.composite
def prompts(draw):
    """A mask without empty rows."""
    mask = draw(masks(st.integers(2, 3), st.integers(1, 14)))
    mask[:, draw(st.integers(0, mask.shape[1] - 1))] = True
    return mask


SEARCHES = {
    "greedy": {},
    "beams": dict(num_beams=3, num_return_sequences=2),
    "long beams": dict(num_beams=2, length_penalty=2.0, early_stopping=True),
    "in chunks": dict(prefill_chunk_size=3),
    "without a cache": dict(use_cache=False),
}


def generated(model, ids, mask, **kwargs):
    """(batch, sequences of each, new tokens), padded with -1."""
    output = model.generate(ids, attention_mask=mask.long(), do_sample=False, pad_token_id=0, **kwargs)
    new = output[:, ids.shape[1] :].view(len(ids), -1, output.shape[1] - ids.shape[1])
    ended = torch.isin(new, torch.tensor(kwargs["eos_token_id"])).cumsum(-1)
    behind = (ended - torch.isin(new, torch.tensor(kwargs["eos_token_id"])).long()) > 0
    return new.masked_fill(behind, -1)


@pytest.mark.parametrize("search", SEARCHES)
@FEWER
@given(mask=prompts(), options=options(), passes=PASSES)
@torch.no_grad()
def test_generates_what_rows_alone_generate(search, mask, options, passes):
    model, ids = make_model(**options), make_ids(*mask.shape)
    arguments = dict(max_new_tokens=11, sleep_passes=passes, eos_token_id=[1, 2, 3], **SEARCHES[search])
    ours = generated(model, ids, mask, **arguments)
    for row, live, new in zip(ids, mask, ours, strict=True):
        alone = generated(model, row[live][None], live[live][None], **arguments)[0]
        assert torch.equal(new[:, : alone.shape[1]], alone) and (new[:, alone.shape[1] :] == -1).all()


@given(mask=prompts(), options=options(), passes=PASSES, turn=masks(st.just(3), st.integers(1, 6)))
@torch.no_grad()
def test_rows_that_end_early_leave_later_turns_exact(mask, options, passes, turn):
    """What `generate` feeds to a row that has ended reaches neither its neighbours nor its own next turn."""
    model, ids, turn = make_model(**options), make_ids(*mask.shape), turn[: len(mask)]
    arguments = dict(do_sample=False, sleep_passes=passes, pad_token_id=0, eos_token_id=list(range(1, 8)))
    first = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=9, return_dict_in_generate=True, **arguments
    )
    new = first.sequences[:, ids.shape[1] :]
    is_end = (new > 0) & (new < 8)
    said = is_end.cumsum(1) - is_end.long() == 0  # up to the first end, which is read
    text = torch.cat([first.sequences, make_ids(*turn.shape)], dim=1)
    whole = torch.cat([mask, said, turn], dim=1)
    second = model.generate(
        text, attention_mask=whole.long(), past_key_values=first.past_key_values, max_new_tokens=6, **arguments
    )
    for row, live, answer in zip(text, whole, second[:, text.shape[1] :], strict=True):
        alone = model.generate(row[live][None], attention_mask=live[live][None].long(), max_new_tokens=6, **arguments)
        alone = alone[0, int(live.sum()) :]
        assert torch.equal(answer[: len(alone)], alone) and not answer[len(alone) :].any()


# The cache of a ragged batch


def ragged(passes=3, **overrides):
    """A model, ids and mask of three rows, and the cache after the first 13 columns."""
    model, ids = make_model(sleep_passes=passes, **overrides), make_ids(3, 24)
    mask = torch.ones(3, 24, dtype=torch.bool)
    mask[0, :6] = mask[1, 9:] = mask[2, 3:8] = mask[0, 15:17] = False
    mask[1, 18:] = True
    with torch.no_grad():
        cache = model(ids[:, :13], attention_mask=mask[:, :13].long(), use_cache=True).past_key_values
    return model, ids, mask, cache


KEPT = pytest.mark.parametrize("kept", [{}, dict(window_overlap=3, pinned_tokens=2)], ids=["evicted", "kept"])


@KEPT
@pytest.mark.parametrize("change", ["reorder", "select", "repeat", "copy"])
@torch.no_grad()
def test_rows_of_a_cache_can_be_chosen(change, kept):
    model, ids, mask, cache = ragged(**kept)
    rows = {"reorder": [2, 2, 0], "select": [1], "repeat": [0, 0, 1, 1, 2, 2], "copy": [0, 1, 2]}[change]
    fork = copy.deepcopy(cache)
    if change == "reorder":
        cache.reorder_cache(torch.tensor(rows))
    elif change == "select":
        cache.batch_select_indices(torch.tensor(rows))
    elif change == "repeat":
        cache.batch_repeat_interleave(2)
    else:
        model(ids[:, 13:].flip(1), attention_mask=mask[:, 13:].long(), past_key_values=fork)
    output = model(ids[rows, 13:], attention_mask=mask[rows].long(), past_key_values=cache)
    alone = read_alone(model, ids[rows], mask[rows])
    logits = torch.cat([output.logits.new_zeros(len(rows), 13, VOCABULARY), output.logits], dim=1)
    for row, expected in enumerate(alone):
        live, new = mask[rows[row]], int(mask[rows[row], 13:].sum())
        assert_close(logits[row, live][-new:], expected.logits[0, -new:])
        assert_row_is_as_alone(cache, row, expected.past_key_values)


@KEPT
@torch.no_grad()
def test_naps_of_rows(kept):
    model, ids, mask, cache = ragged(**kept)
    events = []
    model.sleep(cache, sleep_callback=events.append)
    assert [event.passes for event in events] == [3]
    assert first_attention(cache).common.stored == 0
    output = model(ids[:, 13:], attention_mask=mask.long(), past_key_values=cache)
    for row, live in enumerate(mask):
        alone = model(ids[row, :13][live[:13]][None], use_cache=True).past_key_values
        model.sleep(alone)
        expected = model(ids[row, 13:][live[13:]][None], past_key_values=alone).logits[0]
        assert_close(output.logits[row, live[13:]], expected)
        assert_row_is_as_alone(cache, row, alone)


@torch.no_grad()
def test_a_nap_leaves_rows_with_empty_windows_alone():
    model, ids = make_model(sleep_passes=2), make_ids(2, 3)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    cache, events = model(ids, attention_mask=mask, use_cache=True).past_key_values, []
    model.sleep(cache, sleep_callback=events.append)
    assert [event.rows for event in events] == [(0,)]
    assert first_attention(cache).common.sleeps == (1, 0)
    assert all(S[0].any() and not S[1].any() for S in fast_weights(cache))


@torch.no_grad()
def test_events_tell_which_rows_slept():
    model, ids = make_model(window_size=4), make_ids(3, 12)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 5:] = mask[2, :9] = False
    events = []
    model(ids, attention_mask=mask.long(), sleep_passes=2, sleep_callback=events.append)
    slept = [range(3) if event.rows is None else event.rows for event in events]
    assert [sum(row in rows for rows in slept) for row in range(3)] == [2, 1, 0]
    for event, rows in zip(events, slept, strict=True):
        assert event.passes == 2 and len(event.relative_change) == 1
        alone = []
        for row in rows:
            model(ids[row, mask[row]][None], sleep_passes=2, sleep_callback=alone.append)
        of_window = [x for x in alone if x.window_index == event.window_index]
        assert event.state_norm == pytest.approx(sum(x.state_norm for x in of_window) / len(of_window), abs=1e-9)


def test_detached_rows_are_truncated_where_they_are_cut():
    model, ids, mask, _ = ragged()
    embeds = model.model.embed_tokens(ids).detach().requires_grad_()
    cache = model(inputs_embeds=embeds[:, :13], attention_mask=mask[:, :13].long(), use_cache=True).past_key_values
    whole = copy.copy(model(inputs_embeds=embeds, attention_mask=mask.long()).logits.detach())
    output = model(inputs_embeds=embeds[:, 13:], attention_mask=mask.long(), past_key_values=cache.detach())
    assert_close(output.logits.detach()[mask[:, 13:]], whole[:, 13:][mask[:, 13:]])
    output.logits[mask[:, 13:]].sum().backward()
    assert not embeds.grad[:, :13].any() and (embeds.grad[:, 13:].abs().sum(-1) > 0).equal(mask[:, 13:])


@torch.no_grad()
def test_memory_of_ragged_rows_is_flat():
    model, sizes = make_model(torch.float32, window_overlap=2, pinned_tokens=1, sleep_passes=2), []
    cache, generator = None, torch.Generator().manual_seed(0)
    for _ in range(120):
        mask = torch.rand(3, 7, generator=generator) < torch.tensor([[0.9], [0.5], [0.1]])
        cache = model(
            make_ids(3, 7), attention_mask=mask.long(), past_key_values=cache, use_cache=True
        ).past_key_values
        sizes.append(nbytes(cache))
        keys = first_attention(cache).state
        assert keys.keys is None or keys.keys.shape[2] <= 5
        assert keys.kept_keys is None or keys.kept_keys.shape[2] <= 3
    assert max(sizes[60:]) == max(sizes[10:60])


# Heads


@given(mask=prompts(), options=options(), passes=PASSES)
@torch.no_grad()
def test_labels_of_texts_and_tokens(mask, options, passes):
    ids = make_ids(*mask.shape) % (VOCABULARY - 1)
    text = make_model(model_class=SleepForSequenceClassification, num_labels=3, **{**options, "pad_token_id": 22})
    tokens = make_model(model_class=SleepForTokenClassification, num_labels=3, **options)
    ours = text(ids, attention_mask=mask.long(), sleep_passes=passes).logits
    of_tokens = tokens(ids, attention_mask=mask.long(), sleep_passes=passes).logits
    for row, live in enumerate(mask):
        assert_close(ours[row], text(ids[row, live][None], sleep_passes=passes).logits[0])
        assert_close(of_tokens[row, live], tokens(ids[row, live][None], sleep_passes=passes).logits[0])


# Masks that contradict what was read


@pytest.mark.parametrize("change", ["one token less", "another token", "one token more"])
def test_a_mask_that_contradicts_the_cache_is_refused(change):
    model, ids, mask, cache = ragged()
    wrong = mask.clone()
    if change == "one token less":
        wrong[2, 1] = False
    elif change == "one token more":
        wrong[2, 4] = True
    else:
        wrong[2, 2], wrong[2, 3] = False, True
    before = [S.clone() for S in fast_weights(cache)]
    with pytest.raises(ValueError, match="of row 2 are no padding"):
        model(ids[:, 13:], attention_mask=wrong.long(), past_key_values=cache)
    assert all(torch.equal(x, y) for x, y in zip(before, fast_weights(cache), strict=True))
    assert_close(
        model(ids[:, 13:], attention_mask=mask.long(), past_key_values=cache).logits[mask[:, 13:]],
        model(ids, attention_mask=mask.long()).logits[:, 13:][mask[:, 13:]],
    )
