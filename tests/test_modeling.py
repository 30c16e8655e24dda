"""The model against a naive transcription of Algorithm 1, and every way through it against every other."""

import functools

import pytest
import torch
import torch.nn.functional as F
from algorithm_1 import algorithm_1
from builders import UNEVEN, random_ids, uneven_model
from helpers import assert_same_memory, fast_weights, gradients, largest_difference, tensors_of, tensors_of_row
from transformers import DynamicCache

from modeling_sleep import SleepConfig, SleepForCausalLM, modeling_sleep
from modeling_sleep.rotary_sleep import rotary_embedding


L = 5
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
SPANS = {"all layers": None, "prelude and coda": [1, 4], "coda": [0, 2]}


def make_model(dtype=torch.float64, **overrides):
    """A small model of all kinds of layers, its parameters large enough that nothing is lost in rounding."""
    options = dict(num_hidden_layers=6, layer_types=["sleep_attention", "linear_attention"] * 3, initializer_range=0.1)
    return uneven_model(dtype=dtype, **{**options, **overrides})


make_ids = functools.partial(random_ids, low=0, high=UNEVEN["vocab_size"])


def cross_entropy(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("length", [3 * L + 1, 2 * L, 2 * L + 3])
@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_equals_algorithm_1(span, passes, length):
    model = make_model(loop_span=span)
    ids = make_ids(2, length)
    labels = ids.masked_fill(torch.arange(length) < L, -100)

    output = model(ids, labels=labels, sleep_passes=passes, use_cache=True)
    cross_entropy(output.logits, labels).backward()
    ours = gradients(model)
    model.zero_grad()

    expected, memories = zip(*(algorithm_1(model, row, passes) for row in ids), strict=True)
    expected = torch.stack(expected)
    loss = cross_entropy(expected, labels)
    loss.backward()

    torch.testing.assert_close(output.logits, expected, atol=1e-9, rtol=0)
    # transformers' loss is float32 whatever the logits are.
    torch.testing.assert_close(output.loss.double(), loss, atol=1e-6, rtol=0)
    for i, layer in enumerate(output.past_key_values.layers):
        if model.config.layer_types[i] == "linear_attention":
            paper = torch.stack([torch.stack(S[i]) for S in memories]).mT
            torch.testing.assert_close(layer.recurrent_states[0], paper, atol=1e-9, rtol=0)
    assert largest_difference(ours, gradients(model)) < 1e-9
    assert all(grad.abs().max() > 0 for grad in ours.values())


def test_equals_algorithm_1_in_float32():
    model = make_model(torch.float32)
    ids = make_ids(1, 3 * L + 2)
    expected, _ = algorithm_1(model, ids[0], 3)
    torch.testing.assert_close(model(ids, sleep_passes=3).logits[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind", ["memory layers", "biases and tied embeddings", "normalised queries", "beta below 1", "wide convolution"]
)
def test_equals_algorithm_1_for_every_option(kind):
    options = {
        "memory layers": dict(memory_layers=[1, 5]),
        "biases and tied embeddings": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "normalised queries": dict(qk_norm=True, attention_bias=True, attention_output_bias=False),
        "beta below 1": dict(linear_allow_neg_eigval=False),
        "wide convolution": dict(linear_conv_kernel_dim=L + 2, rope_parameters={"rope_theta": 100.0}),
    }[kind]
    model = make_model(**options)
    with torch.no_grad():  # what starts at zero or one would hide a mistake
        for name, parameter in model.named_parameters():
            if "bias" in name or "norm" in name or "o_proj" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids = make_ids(1, 2 * L + 3)
    expected, _ = algorithm_1(model, ids[0], 3)
    torch.testing.assert_close(model(ids, sleep_passes=3).logits[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[1] * 18, [L] * 3 + [3], [7, 1, 10], [17, 1], [2, 2, 14]], ids=str)
def test_every_chunking_gives_the_same(chunks, attention, dtype):
    # Each pass multiplies the rounding of the one before by about 3, in whatever form the rule is computed.
    model = make_model(dtype, loop_span=[1, 4], sleep_passes=2 if dtype == torch.float32 else 4).eval()
    model.set_attn_implementation(attention)
    ids = make_ids(2, 18)
    with torch.no_grad():
        whole = model(ids, use_cache=True)
        cache, pieces = None, []
        for piece in ids.split(chunks, dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
    assert cache.get_seq_length() == 18
    ours = [torch.cat(pieces, dim=1), *fast_weights(cache)]
    for result, expected in zip(ours, [whole.logits, *fast_weights(whole.past_key_values)], strict=True):
        assert (result - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()


def test_gradients_flow_from_call_to_call():
    model = make_model(sleep_passes=2)
    ids = make_ids(2, 3 * L)
    F.cross_entropy(model(ids).logits[:, -1], ids[:, 0]).backward()
    expected = gradients(model)
    model.zero_grad()
    cache = None
    for piece in ids.split([4, 7, 4], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
    F.cross_entropy(output.logits[:, -1], ids[:, 0]).backward()
    assert largest_difference(gradients(model), expected) < 1e-9


@pytest.mark.parametrize("why", ["argument", "config", "checkpointing"])
def test_a_cache_that_is_given_goes_on_whatever_use_cache_says(why):
    """As in any model of transformers: `use_cache` decides what is made and returned."""
    model, ids = make_model(sleep_passes=2), make_ids(2, 3 * L)
    expected, options = model(ids).logits, {}
    if why == "argument":
        options["use_cache"] = False
    elif why == "config":
        model.config.use_cache = False
    else:
        model.gradient_checkpointing_enable()
        model.train()
    cache, pieces = DynamicCache(config=model.config), []
    for piece in ids.split([4, 7, 4], dim=1):
        output = model(piece, past_key_values=cache, **options)
        assert output.past_key_values is None
        pieces.append(output.logits)
    assert cache.get_seq_length() == 3 * L
    assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-9


def test_one_pass_in_a_window_longer_than_the_text_is_a_plain_hybrid():
    ids = make_ids(2, 17)
    long_window, short_window = make_model(window_size=100), make_model(window_size=17)
    expected = short_window(ids, sleep_passes=1).logits
    torch.testing.assert_close(long_window(ids, sleep_passes=4).logits, expected, atol=0, rtol=0)
    evicted = make_model(window_size=L)(ids, sleep_passes=1).logits
    torch.testing.assert_close(evicted[:, :L], expected[:, :L], atol=1e-9, rtol=0)
    assert (evicted[:, L:] - expected[:, L:]).abs().max() > 1e-2


def test_more_passes_change_what_comes_after_a_sleep_and_nothing_before():
    model, ids = make_model(), make_ids(1, 2 * L)
    once, twice = (model(ids, sleep_passes=n).logits for n in (1, 2))
    assert torch.equal(once[:, :L], twice[:, :L])
    assert (once[:, L:] - twice[:, L:]).abs().max() > 1e-3


def test_attention_sees_its_own_window_alone():
    model = make_model(sleep_passes=1).eval()
    model.set_attn_implementation("eager")
    output = model(make_ids(2, 2 * L + 2), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 3 and len(output.hidden_states) == 7
    assert all(hidden.shape == (2, 2 * L + 2, 16) for hidden in output.hidden_states)
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    torch.testing.assert_close(output.hidden_states[0], model.model.embed_tokens(make_ids(2, 2 * L + 2)))
    window = torch.arange(2 * L + 2) // L
    outside = window[:, None] != window[None]
    for weights in output.attentions:
        assert weights.shape == (2, 4, 2 * L + 2, 2 * L + 2)
        assert weights[:, :, outside].abs().max() == 0
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_recorded_outputs_do_not_depend_on_the_number_of_passes():
    model, ids = make_model(), make_ids(1, 2 * L)
    lengths = {len(model(ids, sleep_passes=n, output_hidden_states=True).hidden_states) for n in (1, 3)}
    assert lengths == {7}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [1, L - 1, L, L + 3, 2 * L])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, padding, attention):
    """A row is read as it is alone, and so is its neighbour, a text of its own."""
    model = make_model(sleep_passes=3, loop_span=[1, 4]).eval()
    model.set_attn_implementation(attention)
    ids, other = make_ids(1, 2 * L + 3), make_ids(1, 2 * L + 3 + padding, seed=2)
    parts, masks = [ids, make_ids(1, padding, seed=3)], [torch.ones_like(ids), torch.zeros(1, padding).long()]
    if side == "left":
        parts, masks = parts[::-1], masks[::-1]
    mask = torch.cat([torch.cat(masks, dim=1), torch.ones_like(other)])
    output = model(torch.cat([torch.cat(parts, dim=1), other]), attention_mask=mask, use_cache=True)
    for row, alone in enumerate((ids, other)):
        expected = model(alone, use_cache=True)
        torch.testing.assert_close(output.logits[row][mask[row] == 1], expected.logits[0], atol=1e-9, rtol=0)
        assert_same_memory(tensors_of_row(output.past_key_values, row), tensors_of_row(expected.past_key_values, 0))
    if side == "right":  # it repeats what its row's last token gave
        last = output.logits[0, len(ids[0]) - 1]
        assert output.logits[0, len(ids[0]) :].equal(last.expand(padding, -1))


def test_padding_within_a_row_changes_nothing():
    model, ids = make_model(sleep_passes=3, loop_span=[1, 4]).eval(), make_ids(2, 2 * L + 3)
    mask = torch.ones(2, 3 * L + 3)
    mask[0, [0, 3, L, L + 1, 2 * L]] = 0
    mask[1, [2, 3, 4, 5, 3 * L]] = 0
    padded = make_ids(2, 3 * L + 3, seed=2).masked_scatter(mask == 1, ids)
    expected, cache, pieces = model(ids, use_cache=True), None, []
    for piece in range(0, 3 * L + 3, 4):  # its mask goes with the past, or with what is new alone
        piece = slice(piece, piece + 4)
        given = mask[:, : piece.stop] if len(pieces) % 2 else mask[:, piece]
        output = model(padded[:, piece], attention_mask=given, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    whole = model(padded, attention_mask=mask, use_cache=True)
    for logits, remembered in ((torch.cat(pieces, dim=1), cache), (whole.logits, whole.past_key_values)):
        torch.testing.assert_close(logits[mask == 1], expected.logits.flatten(0, 1), atol=1e-9, rtol=0)
        assert_same_memory(tensors_of(remembered), tensors_of(expected.past_key_values))


PACKED = [3, 2 * L + 2, L, 1]  # the lengths of documents in one row


@pytest.mark.parametrize("told_by", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_packed_documents_are_read_as_rows_of_their_own(told_by):
    model = make_model(sleep_passes=3, loop_span=[1, 4])
    documents = [make_ids(1, length, seed=length) for length in PACKED]
    lengths = torch.tensor(PACKED)
    options = {
        "position_ids": torch.cat([torch.arange(length) for length in PACKED]).unsqueeze(0),
        "cu_seq_lens_q": torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]),
        "seq_idx": torch.arange(len(PACKED)).repeat_interleave(lengths).unsqueeze(0),
    }
    logits = model(torch.cat(documents, dim=1), **{told_by: options[told_by]}).logits
    weight = torch.randn_like(logits)
    (logits * weight).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    expected = torch.cat([model(document).logits for document in documents], dim=1)
    (expected * weight).sum().backward()
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=0)
    assert largest_difference(ours, gradients(model)) < 1e-8
    assert (logits - model(torch.cat(documents, dim=1)).logits).abs().max() > 1e-2  # which would leak


def test_masked_tokens_leave_everything_exactly_as_it_was():
    model = make_model(sleep_passes=3).eval()
    cache = model(make_ids(2, L - 2), use_cache=True).past_key_values
    before = {key: tensor.clone() for key, tensor in tensors_of(cache).items()}
    with_past = torch.cat([torch.ones(2, L - 2), torch.zeros(2, 3 * L)], dim=1)
    for length, mask in ((2 * L, torch.zeros(2, 2 * L)), (L, with_past)):
        model(make_ids(2, length, seed=3), attention_mask=mask, past_key_values=cache)
        assert_same_memory(tensors_of(cache), before, atol=0)
    assert cache.get_seq_length() == L - 2 + 3 * L

    nothing = model(make_ids(2, 2 * L), attention_mask=torch.zeros(2, 2 * L), use_cache=True).past_key_values
    assert not any(tensor.any() for tensor in tensors_of(nothing).values()) and nothing.get_seq_length() == 2 * L


def test_right_padding_changes_nothing_that_is_remembered_asleep():
    model, ids = make_model(sleep_passes=3).eval(), make_ids(1, L - 2)
    expected = model(ids, use_cache=True)
    padded = torch.cat([ids, make_ids(1, 2, seed=5)], dim=1)
    mask = torch.tensor([[1] * (L - 2) + [0] * 2])
    output = model(padded, attention_mask=mask, use_cache=True)
    torch.testing.assert_close(output.logits[:, : L - 2], expected.logits, atol=1e-9, rtol=0)
    for result in (expected, output):
        model.sleep(result.past_key_values)
    assert_same_memory(tensors_of(output.past_key_values), tensors_of(expected.past_key_values))


def test_padding_holds_no_number_that_is_not_finite():
    for attention in ("eager", "sdpa"):
        model = make_model(torch.float32, sleep_passes=2)
        model.set_attn_implementation(attention)
        ids = make_ids(2, 3 * L)
        mask = torch.ones_like(ids)
        mask[0, : L + 2] = 0
        output = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
        output.loss.backward()
        assert output.logits.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
def test_gradient_checkpointing_changes_nothing(span, use_reentrant):
    model = make_model(loop_span=span, sleep_passes=3).train()
    ids = make_ids(2, 2 * L + 2)
    model(ids, labels=ids).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    output = model(ids, labels=ids)
    output.loss.backward()
    assert output.past_key_values is None
    assert largest_difference(gradients(model), expected) < 1e-9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_training_steps_give_every_parameter_a_gradient(checkpointing):
    model = make_model(torch.float32, sleep_passes=3, loop_span=[1, 4], memory_layers=[3]).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = make_ids(2, 4 * L)
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_loss_is_divided_by_the_number_of_items_of_the_whole_batch():
    model, ids = make_model(), make_ids(4, 2 * L)
    whole = model(ids, labels=ids).loss
    items = 4 * (2 * L - 1)
    parts = [model(half, labels=half, num_items_in_batch=items).loss for half in ids.split(2)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 7])], ids=str)
def test_logits_to_keep(kept):
    model, ids = make_model(), make_ids(2, 2 * L)
    everything = model(ids).logits
    expected = everything[:, kept] if isinstance(kept, torch.Tensor) else everything[:, -kept:]
    torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected)


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_bptt_windows_counts_from_the_end(windows):
    """Gradients at the embeddings show how far back the loss of the last token reaches."""
    model = make_model(sleep_passes=2, bptt_windows=windows)
    embeds = model.model.embed_tokens(make_ids(1, 5 * L)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[:, -1].sum().backward()
    reached = embeds.grad.abs().amax(dim=(0, 2)).view(5, L).amax(dim=1) > 0
    assert reached.tolist() == [window >= 5 - windows for window in range(5)]


def test_bptt_windows_keeps_the_loss():
    ids = make_ids(2, 4 * L)
    losses = [make_model(sleep_passes=2, bptt_windows=n)(ids, labels=ids).loss for n in (None, 1, 2)]
    assert losses[0] == losses[1] == losses[2]


def test_fast_weights_live_through_several_windows_from_the_start():
    """A fresh model's loss on the last window must reach back to the first: design, section 4."""
    torch.manual_seed(0)
    model = SleepForCausalLM(SleepConfig.from_preset("rule110-mini", window_size=8)).double()
    embeds = model.model.embed_tokens(torch.randint(2, 36, (4, 40))).detach().requires_grad_()
    model(inputs_embeds=embeds, sleep_passes=4).logits[:, -8:].logsumexp(-1).sum().backward()
    reach = embeds.grad.norm(dim=-1).view(4, 5, 8).mean(dim=(0, 2))
    assert (reach[:4] > 1e-3 * reach[4]).all(), reach


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_follows_float32(dtype):
    model, ids = make_model(torch.float32, sleep_passes=3).eval(), make_ids(2, 3 * L)
    with torch.no_grad():
        expected = model(ids, use_cache=True)
        output = model.to(dtype)(ids, use_cache=True)
    assert output.logits.dtype == dtype
    assert all(state.dtype == torch.float32 for state in fast_weights(output.past_key_values))
    # Loose, as 3 windows of 3 passes amplify the rounding of the weights; what matters is that they agree in kind.
    agreement = F.cosine_similarity(output.logits.float().flatten(), expected.logits.flatten(), dim=0)
    assert agreement > (0.999 if dtype == torch.float16 else 0.98)


def test_dynamic_cache_from_the_config_is_ours_and_bounded():
    model = make_model(sleep_passes=2, loop_span=[1, 4]).eval()
    cache = DynamicCache(config=model.config)
    sizes = set()
    with torch.no_grad():
        for _ in range(12):
            model(make_ids(2, L), past_key_values=cache)
            sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(cache).values()))
            assert all(layer.keys.shape[2] <= L for layer in cache.layers if hasattr(layer, "keys"))
    assert cache.get_seq_length() == 12 * L
    assert len(sizes) <= 2, sizes  # the first window has nothing to rewind the coda to


@pytest.mark.programs  # flex attention is compiled, by a C++ compiler
def test_flex_attention_gives_the_same():
    model, ids = make_model(torch.float32, head_dim=16, sleep_passes=2).eval(), make_ids(2, 2 * L + 1)
    mask = torch.ones_like(ids)
    mask[0, :L] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("flex_attention")
        output = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(output[0, L:], expected[0, L:], atol=1e-5, rtol=0)
    torch.testing.assert_close(output[1], expected[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [0, 2 * L, 3])
@pytest.mark.parametrize("windows_at_once", [2, 3, 100])
def test_windows_read_side_by_side_give_what_one_after_the_other_does(
    windows_at_once, padding, attention, dtype, monkeypatch
):
    """With N = 1; logits, gradients and what is remembered, from a new cache and going on from one."""
    model = make_model(dtype, loop_span=[1, 4])
    model.set_attn_implementation(attention)
    ids = make_ids(2, 6 * L + 2)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    labels = ids.masked_fill(mask == 0, -100)
    calls = []
    wake = model.model._wake
    monkeypatch.setattr(model.model, "_wake", lambda *args, **kwargs: calls.append(1) or wake(*args, **kwargs))

    def read(tokens_at_once):
        calls.clear()
        monkeypatch.setattr(modeling_sleep, "TOKENS_AT_ONCE", tokens_at_once)
        model.zero_grad()
        whole = model(ids, attention_mask=mask, labels=labels, use_cache=True)
        whole.loss.backward()
        number = len(calls)
        with torch.no_grad():
            cache = model(ids[:, : L + 2], attention_mask=mask[:, : L + 2], use_cache=True).past_key_values
            rest = model(ids[:, L + 2 :], attention_mask=mask, past_key_values=cache)
        memory = [*fast_weights(whole.past_key_values), *fast_weights(cache)]
        sleeps = (6, (6 * L + 1 - padding) // L) if padding else 6
        assert whole.past_key_values.layers[0].sleeps == cache.layers[0].sleeps == sleeps
        assert whole.past_key_values.get_seq_length() == cache.get_seq_length() == 6 * L + 2
        kept = mask.bool()
        return number, [whole.logits[kept], rest.logits[kept[:, L + 2 :]], *memory], gradients(model)

    one_by_one, expected, expected_gradients = read(0)
    side_by_side, found, found_gradients = read(windows_at_once * L)
    together = {0: 6, 3: 5, 2 * L: 4}[padding]  # whole windows that both rows have, and more behind them
    assert one_by_one == 7 and side_by_side == -(-together // windows_at_once) + 7 - together
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=0)
    assert largest_difference(found_gradients, expected_gradients) < TOLERANCE[dtype]


@pytest.mark.parametrize("rest", [0, 2])
def test_without_a_cache_the_last_window_is_read_beside_the_others_if_it_is_full(rest, monkeypatch):
    model = make_model(torch.float64)
    ids = make_ids(2, 3 * L + rest)
    calls = []
    wake = model.model._wake
    monkeypatch.setattr(model.model, "_wake", lambda *args, **kwargs: calls.append(1) or wake(*args, **kwargs))

    def read(use_cache):
        calls.clear()
        model.zero_grad()
        output = model(ids, labels=ids, use_cache=use_cache)
        output.loss.backward()
        return len(calls), output.logits, gradients(model)

    one_by_one, expected, expected_gradients = read(use_cache=True)
    side_by_side, found, found_gradients = read(use_cache=False)
    assert one_by_one == 2 and side_by_side == 1 + (rest > 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert largest_difference(found_gradients, expected_gradients) < 1e-12


@pytest.mark.parametrize("option", ["callback", "passes", "hidden states", "cut", "checkpointing"])
def test_windows_are_read_one_after_the_other_where_it_matters(option, monkeypatch):
    model = make_model(bptt_windows=2 if option == "cut" else None)
    kwargs = {
        "callback": dict(sleep_callback=lambda event: None),
        "passes": dict(sleep_passes=2),
        "hidden states": dict(output_hidden_states=True),
    }.get(option, {})
    if option == "checkpointing":
        model.train().gradient_checkpointing_enable()
    calls = []
    wake = model.model._wake
    monkeypatch.setattr(model.model, "_wake", lambda *args, **kwargs: calls.append(1) or wake(*args, **kwargs))
    model(make_ids(1, 3 * L), use_cache=False, **kwargs)
    assert len(calls) == 3


def test_linear_rope_stretches_positions():
    """Keys twice as far apart with factor 2 turn like neighbours without."""
    plain = SleepConfig.from_preset("tiny")
    stretched = SleepConfig.from_preset(
        "tiny", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    )
    tables = [rotary_embedding(config, torch.arange(16), torch.float64) for config in (plain, stretched)]
    for expected, found in zip(*tables, strict=True):
        torch.testing.assert_close(found[::2], expected[:8], atol=1e-6, rtol=0)  # transformers rounds to float32
    ids = torch.randint(1, 64, (1, 20))
    torch.manual_seed(0)
    logits = [SleepForCausalLM(config).eval()(ids).logits for config in (plain, stretched)]
    assert all(each.isfinite().all() for each in logits)


RECALL = dict(layer_types=["sleep_attention"] * 5 + ["recall_memory"], memory_layers=[5])


@pytest.mark.parametrize("memory", [{}, RECALL], ids=["gated delta rule", "recall"])
@torch.no_grad()
def test_a_buffer_of_embeddings_can_be_filled_again(memory):
    """A window keeps what it was given, whatever the caller then writes where it stood."""
    model, ids = make_model(**memory, loop_span=[0, 4]), make_ids(1, 9)
    buffer = model.get_input_embeddings()(ids[:, :4]).clone()
    cache = model(inputs_embeds=buffer, use_cache=True, sleep_passes=2).past_key_values
    buffer.zero_()
    rest = model(ids[:, 4:], past_key_values=cache, sleep_passes=2).logits
    torch.testing.assert_close(rest, model(ids, sleep_passes=2).logits[:, 4:], atol=1e-9, rtol=0)
