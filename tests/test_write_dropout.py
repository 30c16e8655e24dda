"""`Sleep(passes, write_dropout=...)`: in training, each pass asleep leaves a share of the tokens unwritten."""

import pytest
import torch
from algorithm_1 import algorithm_1
from helpers import assert_close, gradients, largest_difference
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import SPANS, assert_equals_algorithm_1, make_ids, make_model

from modeling_sleep import Sleep, SleepModel


SLEEP = Sleep(4, write_dropout=0.4)


def keep_draws(patch):
    """A list that hears which tokens each pass asleep writes, (batch, columns) of bool."""
    draws, draw = [], SleepModel._drop_writes
    patch.setattr(SleepModel, "_drop_writes", lambda *args: draws.append(draw(*args)) or draws[-1])
    return draws


@given(
    passes=st.integers(1, 5),
    dropout=st.sampled_from([0.01, 0.3, 0.9]),
    window_size=st.integers(1, 6),
    span=SPANS,
    length=st.integers(1, 18),
    until=st.sampled_from([None, 0.3]),
)
def test_equals_algorithm_1(passes, dropout, window_size, span, length, until):
    model, ids = make_model(window_size=window_size, loop_span=span).train(), make_ids(1, length)
    with pytest.MonkeyPatch.context() as patch:
        draws = keep_draws(patch)
        output = model(ids, sleep_passes=Sleep(passes, until, write_dropout=dropout), use_cache=True)
    expected, S = algorithm_1(model, ids[0], passes, until, written=[written[0] for written in draws])
    assert_equals_algorithm_1(model, output, expected, S)


@torch.no_grad()
def test_every_pass_and_row_draws_its_own_and_as_many_as_asked(monkeypatch):
    model, draws = make_model(window_size=64).train(), keep_draws(monkeypatch)
    model(make_ids(16, 193), sleep_passes=SLEEP)
    assert [written.shape for written in draws] == [(16, 64)] * 9  # three windows, three passes asleep
    assert all(0.5 < written.double().mean() < 0.7 for written in draws)
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows)


@torch.no_grad()
def test_evaluation_writes_all():
    model, ids = make_model(), make_ids(2, 17)
    expected = model(ids, sleep_passes=4).logits
    assert torch.equal(model(ids, sleep_passes=SLEEP).logits, expected)
    assert torch.equal(model.train()(ids, sleep_passes=4).logits, expected)  # nothing is left out unless asked for
    assert not torch.allclose(model(ids, sleep_passes=SLEEP).logits, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("until", [None, 0.3])
def test_gradient_checkpointing_draws_the_same_again(use_reentrant, until):
    model, ids = make_model().train(), make_ids(3, 20)

    def train():
        model.zero_grad()
        torch.manual_seed(5)
        loss = model(ids, labels=ids, sleep_passes=SLEEP._replace(until=until)).loss
        loss.backward()
        return loss, gradients(model)

    loss, expected = train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    again, ours = train()
    assert torch.equal(loss, again) and largest_difference(ours, expected) < 1e-9


@pytest.mark.parametrize("bad", [1, 1.5, -0.1, "0.1", True, float("nan")], ids=str)
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="`write_dropout` is a probability: 0 <= `write_dropout` < 1, got"):
        make_model()(make_ids(1, 7), sleep_passes=Sleep(3, write_dropout=bad))


def test_a_list_names_it_as_a_saved_generation_config_does():
    model, ids = make_model(), make_ids(1, 17)
    assert_close(model(ids, sleep_passes=list(SLEEP)).logits, model(ids, sleep_passes=SLEEP).logits)


@pytest.mark.parametrize("training", [False, True])
def test_where_no_memory_is_replayed_it_is_refused(training):
    model, ids = make_model(loop_span=(0, 1)).train(training), make_ids(1, 7)
    with pytest.raises(ValueError, match="`write_dropout` is 0.4, but no memory of this model is replayed.*alone"):
        model(ids, sleep_passes=SLEEP)
    model(ids, sleep_passes=SLEEP._replace(passes=1))  # no pass asleep
