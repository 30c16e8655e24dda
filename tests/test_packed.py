"""Packed rows: every document gets what it gets in a row of its own, outputs, loss and gradients; nothing leaks.

Packings are those that transformers and TRL make: `position_ids` that begin anew, `cu_seq_lens_q`, `seq_idx`.
"""

import pytest
import torch
import torch.nn.functional as F
from builders import tiny_model
from helpers import assert_close, assert_same_gradients
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import SPANS, VOCABULARY, make_ids, make_model
from transformers import DataCollatorWithFlattening

from modeling_sleep import SleepForSequenceClassification
from modeling_sleep.nap_sleep import Sleep


def positions_of(lengths):
    return torch.cat([torch.arange(n) for n in lengths])[None]


def packings(lengths):
    """The ways to say where documents of these lengths, which fill one row, begin."""
    ends = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return {
        "position_ids": dict(position_ids=positions_of(lengths)),
        "cu_seq_lens_q": dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=max(lengths)),
        "seq_idx": dict(seq_idx=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]),
        "all": dict(position_ids=positions_of(lengths), cu_seq_lens_q=ends, cu_seq_lens_k=ends),
    }


LENGTHS = st.lists(st.integers(1, 17), min_size=1, max_size=5)
WAYS = st.sampled_from(["position_ids", "cu_seq_lens_q", "seq_idx", "all"])


@st.composite
def options(draw):
    window_size = draw(st.integers(1, 7))
    return dict(
        window_size=window_size,
        window_overlap=draw(st.sampled_from([0, window_size // 2])),
        pinned_tokens=draw(st.sampled_from([0, 1])),
        bptt_windows=draw(st.sampled_from([None, 1, 2])),
        loop_span=draw(SPANS),
        attn_implementation=draw(st.sampled_from(["eager", "sdpa"])),
    )


def gradients(model, embeds, logits, labels):
    model.zero_grad()
    embeds.grad = None
    F.cross_entropy(logits, labels, reduction="sum").backward()
    return {"inputs_embeds": embeds.grad} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@given(
    lengths=LENGTHS,
    way=WAYS,
    options=options(),
    passes=st.integers(1, 3),
    until=st.sampled_from([None, 0.1]),
    checkpointed=st.booleans(),
)
def test_documents_in_one_row(lengths, way, options, passes, until, checkpointed):
    model, ids, sleep = make_model(**options), make_ids(1, sum(lengths)), Sleep(passes, until)
    labels = make_ids(1, sum(lengths))[0]
    embeds = model.model.embed_tokens(ids).detach().requires_grad_()
    expected = torch.cat(
        [model(inputs_embeds=text, sleep_passes=sleep).logits[0] for text in embeds.split(lengths, dim=1)]
    )
    theirs = gradients(model, embeds, expected, labels)
    if checkpointed:
        model.gradient_checkpointing_enable()
        model.train()
    logits = model(inputs_embeds=embeds, sleep_passes=sleep, **packings(lengths)[way]).logits[0]
    assert_close(logits, expected)
    assert_same_gradients(gradients(model, embeds, logits, labels), theirs)


@st.composite
def padded_packings(draw):
    """Documents of several rows: their lengths, where the first of each row begins, and columns in all."""
    rows = draw(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=3))
    begins = [draw(st.integers(0, 4)) for _ in rows]
    return rows, begins, max(1, max(sum(x) + b for x, b in zip(rows, begins, strict=True))) + draw(st.integers(0, 3))


@given(
    packing=padded_packings(),
    options=options(),
    passes=st.integers(1, 3),
    way=st.sampled_from(["position_ids", "seq_idx"]),
)
@torch.no_grad()
def test_several_rows_with_padding(packing, options, passes, way):
    rows, begins, length = packing
    model, ids = make_model(**options), make_ids(len(rows), length)
    mask, where = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    documents = []
    for row, (lengths, begin) in enumerate(zip(rows, begins, strict=True)):
        for number, n in enumerate(lengths):
            place = (row, slice(begin, begin + n))
            mask[place] = 1
            where[place] = torch.arange(n) if way == "position_ids" else number + 1
            documents.append(place)
            begin += n
    logits = model(ids, attention_mask=mask, sleep_passes=passes, **{way: where}).logits
    for place in documents:
        assert_close(logits[place], model(ids[place][None], sleep_passes=passes).logits[0])


@given(lengths=LENGTHS, options=options(), passes=st.integers(1, 3))
def test_the_loss_is_that_of_the_documents_alone(lengths, options, passes):
    """The first token of a document is not predicted from the one before, whatever its label."""
    model, ids = make_model(**options), make_ids(1, sum(lengths) + 2)
    lengths = [*lengths, 2]
    losses = [
        model(x, labels=x, sleep_passes=passes).loss * (x.shape[1] - 1)
        for x in ids.split(lengths, 1)
        if x.shape[1] > 1
    ]
    loss = model(ids, labels=ids, position_ids=positions_of(lengths), sleep_passes=passes).loss
    assert_close(loss, sum(losses) / sum(n - 1 for n in lengths), 1e-6)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("skip_logits", [False, True])
def test_the_collator_of_transformers(everything, skip_logits):
    model, lengths = make_model(sleep_passes=3), [13, 1, 6, 22]
    texts = [make_ids(1, n)[0] for n in lengths]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=everything, return_seq_idx=everything)(
        [{"input_ids": text.tolist()} for text in texts]
    )
    loss = model(**batch, skip_logits=skip_logits).loss
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    scored = [text for text in texts if len(text) > 1]
    expected = sum(model(x[None], labels=x[None]).loss * (len(x) - 1) for x in scored) / sum(
        len(x) - 1 for x in scored
    )
    expected.backward()
    assert_close(loss, expected, 1e-6)
    for name, parameter in model.named_parameters():
        assert (ours[name] - parameter.grad).norm() <= 1e-6 * (1 + parameter.grad.norm()), name


@torch.no_grad()
def test_hidden_states_are_those_of_the_documents():
    model, ids, lengths = make_model(sleep_passes=2), make_ids(1, 20), [7, 13]
    packed = model(ids, position_ids=positions_of(lengths), output_hidden_states=True).hidden_states
    alone = [model(x, output_hidden_states=True).hidden_states for x in ids.split(lengths, dim=1)]
    for ours, *theirs in zip(packed, *alone, strict=True):
        assert_close(ours, torch.cat(theirs, dim=1))


@torch.no_grad()
def test_positions_that_run_on_are_one_text():
    model, ids = make_model(sleep_passes=2), make_ids(2, 17)
    expected = model(ids).logits
    for begin in (0, 5):
        assert_close(model(ids, position_ids=torch.arange(begin, begin + 17)[None]).logits, expected)
    padded, mask = torch.cat([make_ids(2, 3), ids], dim=1), torch.ones(2, 20, dtype=torch.long)
    mask[:, :3] = 0
    for padding in (0, 1):  # what stands at padding does not matter
        positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, padding)
        assert_close(model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:], expected)


@torch.no_grad()
def test_what_cannot_be_told_is_refused():
    model, ids = make_model(), make_ids(1, 8)
    with pytest.raises(ValueError, match="neither run on by one nor begin anew"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 5, 6, 7, 8, 9]]))
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 3, 7]))
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 5, 3, 8]))
    with pytest.raises(ValueError, match="shape"):
        model(ids, seq_idx=torch.zeros(1, 7, dtype=torch.long))
    for mask in (torch.ones(1, 7), torch.ones(2, 8), torch.ones(1, 9), torch.ones(1, 1, 8, 8)):
        for packed in ({}, dict(position_ids=positions_of([3, 5]))):
            with pytest.raises(ValueError, match="`attention_mask` must have shape"):
                model(ids, attention_mask=mask, labels=ids, **packed)
    with pytest.raises(ValueError, match="classified as one text"):
        tiny_model(SleepForSequenceClassification)(ids, position_ids=positions_of([3, 5]))
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, position_ids=positions_of([3, 5]), output_attentions=True)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot go on from"):
        model(ids, past_key_values=cache, position_ids=positions_of([3, 5]))


@torch.no_grad()
def test_a_packed_call_leaves_no_cache():
    model, ids = make_model(), make_ids(1, 8)
    assert model(ids, position_ids=positions_of([3, 5]), use_cache=True).past_key_values is None
    assert model(ids, position_ids=positions_of([8]), use_cache=True).past_key_values.get_seq_length() == 8
    assert model(ids, position_ids=positions_of([3, 5])).logits.shape == (1, 8, VOCABULARY)
