"""`Sleep(passes, until, least)`: a row is passed again until a pass changes its fast weights by less than `until`."""

import pytest
import torch
from algorithm_1 import algorithm_1
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from rows_alone import SPANS, assert_equals_algorithm_1, assert_row_is_as_alone, make_ids, make_model, masks

from modeling_sleep.nap_sleep import Sleep


SLEEPS = st.builds(
    Sleep,
    passes=st.integers(1, 6),
    until=st.sampled_from([None, 1e-9, 0.02, 0.1, 0.3, 1.0, 100.0]),
    least=st.integers(1, 4),
    write_dropout=st.just(0.0),
)


def passes_of(events, rows):
    """For each row, how many passes each of its sleeps took."""
    passes = [[] for _ in range(rows)]
    for event in events:
        slept = range(rows) if event.rows is None else event.rows
        of_rows = event.passes_of_rows or [event.passes] * len(slept)
        assert event.passes == max(of_rows) and len(event.relative_change) == event.passes - 1
        for row, number in zip(slept, of_rows, strict=True):
            passes[row].append(number)
    return passes


@given(sleep=SLEEPS, window_size=st.integers(1, 6), span=SPANS, length=st.integers(1, 18))
def test_equals_algorithm_1(sleep, window_size, span, length):
    model, ids, events, taken = make_model(window_size=window_size, loop_span=span), make_ids(1, length), [], []
    output = model(ids, sleep_passes=sleep, sleep_callback=events.append, use_cache=True)
    expected, S = algorithm_1(model, ids[0], sleep.passes, sleep.until, sleep.least, taken=taken)
    assert passes_of(events, 1) == [taken]
    assert_equals_algorithm_1(model, output, expected, S)


@given(sleep=SLEEPS, window_size=st.integers(1, 6), span=SPANS, mask=masks(st.integers(2, 4)))
@torch.no_grad()
def test_every_row_stops_where_it_stops_alone(sleep, window_size, span, mask):
    model, ids, events = make_model(window_size=window_size, loop_span=span), make_ids(*mask.shape), []
    output = model(ids, attention_mask=mask.long(), sleep_passes=sleep, sleep_callback=events.append, use_cache=True)
    passes = passes_of(events, len(ids))
    for row, live in enumerate(mask):
        alone = []
        if live.any():
            expected = model(ids[row, live][None], sleep_passes=sleep, sleep_callback=alone.append, use_cache=True)
            assert_close(output.logits[row, live], expected.logits[0])
            assert_row_is_as_alone(output.past_key_values, row, expected.past_key_values)
        assert passes[row] == [event.passes for event in alone]


@torch.no_grad()
def test_rows_really_stop_apart():
    model, ids, events = make_model(), make_ids(6, 16), []
    model(ids, sleep_passes=Sleep(5, 0.6), sleep_callback=events.append)
    assert len({passes for event in events for passes in event.passes_of_rows}) > 2


@torch.no_grad()
def test_the_change_is_the_one_that_is_told():
    model, ids, events = make_model(), make_ids(1, 11), []
    model(ids, sleep_passes=6, sleep_callback=events.append)
    changes = events[0].relative_change
    for number, change in enumerate(changes, 2):
        stopped, until = [], change * 1.001
        model(ids[:, :6], sleep_passes=Sleep(6, until), sleep_callback=stopped.append)
        first = next(n for n, x in enumerate(changes, 2) if x < until)
        assert stopped[0].passes == first <= number
        least = []
        model(ids[:, :6], sleep_passes=Sleep(6, until, least=number), sleep_callback=least.append)
        assert least[0].passes >= number


@torch.no_grad()
def test_extremes():
    model, ids = make_model(), make_ids(2, 17)
    assert_close(model(ids, sleep_passes=Sleep(4, 1e-12)).logits, model(ids, sleep_passes=4).logits)
    assert_close(model(ids, sleep_passes=Sleep(4, 1e9)).logits, model(ids, sleep_passes=2).logits)
    assert_close(model(ids, sleep_passes=Sleep(4, 1e9, 3)).logits, model(ids, sleep_passes=3).logits)
    assert_close(model(ids, sleep_passes=Sleep(4, 1e9, 9)).logits, model(ids, sleep_passes=4).logits)
    assert_close(model(ids, sleep_passes=Sleep(1, 1e9)).logits, model(ids, sleep_passes=1).logits)


@torch.no_grad()
def test_generate_and_naps_take_it():
    model, ids, sleep = make_model(), make_ids(2, 9), Sleep(6, 0.1)
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, sleep_passes=sleep)
    assert torch.equal(tokens[:, 9:], model(tokens[:, :-1], sleep_passes=sleep).logits[:, 8:].argmax(-1))
    events, taken = [], []
    cache = model(ids, sleep_passes=sleep, use_cache=True).past_key_values
    model.sleep(cache, sleep, sleep_callback=events.append)
    after = model(ids, past_key_values=cache, sleep_passes=sleep).logits
    for row, text in enumerate(torch.cat([ids, ids], dim=1)):
        taken.clear()
        expected, _ = algorithm_1(model, text, sleep.passes, sleep.until, sleep.least, naps=[9], taken=taken)
        assert_close(after[row], expected[9:])
        of_rows = events[0].passes_of_rows or [events[0].passes] * 2
        assert of_rows[row] == taken[1]


@pytest.mark.parametrize(
    "bad", [dict(until=0), dict(until=-1.0), dict(until="a"), dict(least=0), dict(least=1.5)], ids=str
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_model()(make_ids(1, 7), sleep_passes=Sleep(**{"passes": 3, **bad}))


@pytest.mark.parametrize(
    "options",
    [
        dict(layer_types=["sleep_attention", "recall_memory"] * 2, memory_layers=[1, 3], loop_span=(4, 4)),
        dict(loop_span=(0, 1)),
    ],
    ids=["recall memory alone", "attention alone is looped"],
)
def test_where_no_memory_is_replayed_it_is_refused(options):
    model, ids = make_model(**options), make_ids(1, 7)
    for read in (model, model.generate):
        with pytest.raises(ValueError, match="no memory of this model is replayed.*Give the number, 3, alone"):
            read(ids, sleep_passes=Sleep(3, 0.1))
    model(ids, sleep_passes=Sleep(1, 0.1))  # no pass to stop behind
