"""`input_injection`: passes asleep are fed by the window's embeddings, beside the features of the pass before.

That rows, however padded, get what they get alone with it, is in test_rows.py.
"""

import pytest
import torch
from algorithm_1 import algorithm_1
from helpers import assert_close, fast_weights, gradients, largest_difference
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import assert_equals_algorithm_1, cut, make_ids, make_model
from test_adopt import make_original

from modeling_sleep import Sleep, SleepConfig, SleepForCausalLM, SleepModel


@given(
    passes=st.integers(1, 4),
    window_size=st.integers(1, 6),
    span=st.sampled_from([None, (0, 2), (0, 3)]),
    overlap=st.integers(0, 2),
    length=st.integers(1, 18),
    until=st.sampled_from([None, 0.3]),
)
def test_equals_algorithm_1(passes, window_size, span, overlap, length, until):
    overlap = min(overlap, window_size - 1)
    model = make_model(window_size=window_size, window_overlap=overlap, loop_span=span, input_injection=True)
    ids = make_ids(1, length)
    output = model(ids, sleep_passes=Sleep(passes, until), use_cache=True)
    assert_equals_algorithm_1(model, output, *algorithm_1(model, ids[0], passes, until))


@given(data=st.data(), length=st.integers(2, 20))
def test_in_pieces_as_at_once(data, length):
    model, ids = make_model(window_size=4, input_injection=True), make_ids(2, length)
    whole = model(ids, sleep_passes=3, use_cache=True)
    cache, begin, logits = None, 0, []
    for piece in cut(data, length):
        output = model(ids[:, begin : begin + piece], past_key_values=cache, use_cache=True, sleep_passes=3)
        begin, cache = begin + piece, output.past_key_values
        logits.append(output.logits)
    assert_close(torch.cat(logits, 1), whole.logits)
    for ours, theirs in zip(fast_weights(cache), fast_weights(whole.past_key_values), strict=True):
        assert_close(ours, theirs)


def test_embeddings_that_are_given_are_what_is_fed():
    model, ids = make_model(window_size=4, input_injection=True), make_ids(2, 14)
    embeds = model.model.embed_tokens(ids)
    assert_close(model(inputs_embeds=embeds, sleep_passes=3).logits, model(ids, sleep_passes=3).logits)


@torch.no_grad()
def test_it_is_of_passes_asleep_and_off_unless_asked_for():
    model, ids = make_model(window_size=8, input_injection=True), make_ids(2, 20)
    plain = make_model(window_size=8)
    assert plain.model.injection is None and not SleepConfig().input_injection
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(ids, sleep_passes=1).logits, plain(ids, sleep_passes=1).logits)
    ours, theirs = (x(ids, sleep_passes=2).logits for x in (model, plain))
    assert torch.equal(ours[:, :8], theirs[:, :8]) and not torch.allclose(ours[:, 8:], theirs[:, 8:])


@pytest.mark.parametrize("length, passes", [(20, 1), (6, 3)])
def test_its_weight_has_a_gradient_in_steps_without_a_pass_asleep(length, passes):
    """DDP ends with an error where a parameter has none, as Accelerate and `torchrun` set it up."""
    model, ids = make_model(window_size=8, input_injection=True).train(), make_ids(2, length)
    plain = make_model(window_size=8).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    output = model(ids, labels=ids, sleep_passes=passes)
    assert torch.equal(output.logits, plain(ids, sleep_passes=passes).logits)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.model.injection.weight.grad.any()


def test_features_are_fed_at_the_length_of_the_embeddings():
    injection = make_model(input_injection=True, dtype=torch.float32).model.injection
    with torch.no_grad():
        injection.weight.fill_(1)
    size = len(injection.weight)
    hidden_states, embeds = 100 * torch.randn(2, 3, size), torch.randn(2, 3, size)
    fed = injection(hidden_states, embeds) - embeds
    torch.testing.assert_close(fed.norm(dim=-1), embeds.norm(dim=-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(injection(0.01 * hidden_states, embeds) - embeds, fed, rtol=1e-4, atol=1e-4)
    assert injection.to(torch.bfloat16)(hidden_states.bfloat16(), embeds.bfloat16()).dtype == torch.bfloat16
    assert injection(torch.zeros_like(fed).bfloat16(), torch.zeros_like(fed).bfloat16()).isfinite().all()


def test_gradient_checkpointing_gives_the_same_gradients():
    model, ids = make_model(window_size=5, input_injection=True).train(), make_ids(3, 18)

    def train():
        model.zero_grad()
        model(ids, labels=ids, sleep_passes=3).loss.backward()
        return gradients(model)

    expected = train()
    assert expected["model.injection.weight"].abs().max() > 0
    model.gradient_checkpointing_enable()
    assert largest_difference(train(), expected) < 1e-9


def test_it_is_saved_loaded_and_begins_with_ones(tmp_path):
    torch.manual_seed(0)
    model = SleepModel(make_model(input_injection=True).config)
    assert torch.equal(model.injection.weight, torch.ones_like(model.injection.weight))
    with torch.no_grad():
        model.injection.weight.mul_(3)
    model.save_pretrained(tmp_path)
    again = SleepModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.input_injection and torch.equal(again.injection.weight, model.injection.weight.float())


def test_an_adopted_model_takes_it():
    options = dict(memory="gated_delta", input_injection=True)
    model = SleepForCausalLM.from_causal_lm(make_original("llama"), 8, **options)
    assert torch.equal(model.model.injection.weight, torch.ones_like(model.model.injection.weight))
    with pytest.raises(StrictDataclassError, match="only a loop from the first layer on begins with"):
        SleepForCausalLM.from_causal_lm(make_original("llama"), 8, memory="recall", input_injection=True)


@pytest.mark.parametrize("span", [(1, 3), (2, 4)])
def test_loops_that_begin_later_are_refused(span):
    with pytest.raises(StrictDataclassError, match=r"set `loop_span` to \(0, end\), got"):
        make_model(loop_span=span, input_injection=True)


def test_a_span_that_is_no_pair_is_said_to_be_none():
    with pytest.raises(StrictDataclassError, match=r"`loop_span` is a pair \(start, end\) or None"):
        make_model(loop_span=[0], input_injection=True)
