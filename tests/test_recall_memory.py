"""The recall memory by itself: against a naive reference, by its contract, and inside a model."""

import pytest
import recall_reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache

from modeling_sleep import SleepConfig, SleepForCausalLM, memory_target_modules
from modeling_sleep.gated_delta_rule import l2_normalise
from modeling_sleep.recall_memory_sleep import RecallMemoryLayer, RecallState
from modeling_sleep.window_sleep import Keep, Window


L = 6
TEXT = 21  # tokens: three windows and a half
KEPT = pytest.mark.parametrize(
    "kept",
    [
        {},
        dict(window_overlap=3),
        dict(window_overlap=5, pinned_tokens=2),
        dict(pinned_tokens=2),
        dict(recall_threshold=0.5),
        dict(recall_hindsight=0, recall_products=False),
        dict(recall_key_rank=5),
        dict(recall_key_layer=1, window_overlap=3),
    ],
    ids=["evicted", "overlap", "pinned", "pinned alone", "threshold", "as at first", "low rank", "earlier keys"],
)


def make_config(**fields):
    return SleepConfig(
        **{
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "layer_types": ["sleep_attention", "sleep_attention", "recall_memory", "sleep_attention"],
            "memory_layers": [2],
            "window_size": L,
            "loop_span": (0, 0),
            "recall_span": 2,
            "recall_pooling_dim": 4,
            "recall_hindsight": 2,
            "recall_products": True,
            **fields,
        }
    )


def stir(layer):
    """Weights that all matter: nothing stays zero, and S decays within the text."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
        for norm in {layer.input_layernorm, layer.feature_norm}:
            norm.weight.add_(1)
        layer.A_log.fill_(-2)
    return layer


def before(x):
    """Of each token, what belongs to the one before it; zeros before the first."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def make_layer(**fields):
    return stir(RecallMemoryLayer(make_config(**fields), 2)).double()


def make_model(**fields):
    model = SleepForCausalLM(make_config(**fields)).double().eval()
    stir(model.model.layers[2])
    return model


def make_window(embeds, stored=0, counts=None, past=None, passes=1, keep=None):
    """A [`Window`] of rows that hold `stored` tokens each and read `counts` (default: all) of the new ones."""
    batch, length = embeds.shape[:2]
    stored = torch.as_tensor(stored).expand(batch).reshape(-1, 1)
    counts = torch.as_tensor(length if counts is None else counts).expand(batch).reshape(-1, 1)
    columns = int((stored + counts).max())
    column = torch.arange(columns)
    past = int(stored.max()) if past is None else past
    return Window(
        inputs_embeds=embeds,
        positions=stored + torch.arange(length),
        padding_mask=torch.arange(length) < counts,
        live=column < stored + counts,
        order=torch.where(column < stored, column, past + (column - stored).clamp(max=length - 1)),
        passes=passes,
        keep=keep,
    )


@pytest.mark.parametrize("passes", [1, 3])
@KEPT
@torch.no_grad()
def test_window_after_window_equals_the_reference(kept, passes):
    layer, batch = make_layer(**kept), 2
    h, e, keyed = torch.randn(3, batch, 3, L, 16, dtype=torch.float64)
    keyed = h if layer.key_layernorm is None else keyed
    state, S = None, torch.zeros(batch, layer.k_proj.out_features, layer.v_proj.out_features, dtype=torch.float64)
    overlap, pinned = kept.get("window_overlap", 0), kept.get("pinned_tokens", 0)
    keep = Keep(torch.arange(L, L + pinned + overlap).unsqueeze(0), None) if overlap else None
    for n in range(3):
        window = make_window(e[:, n], passes=passes, keep=keep)._replace(key_hidden_states=keyed[:, n])
        output, state = layer(h[:, n], state, window)
        state = layer.forget(state, window)
        for row in range(batch):
            before = keyed[row, n - 1, L - overlap :] if n else ()
            expected = recall_reference.read(layer, h[row, n], S[row], before, keyed[row, n])
            torch.testing.assert_close(output[row], expected)
            for write in range(passes):
                S[row] = recall_reference.write(layer, keyed[row, n], e[row, n], S[row], write == 0, before)
        torch.testing.assert_close(state.recurrent_state[:, 0], S, atol=1e-9, rtol=1e-9)
    assert state.features is None


@given(first=st.integers(0, L), second=st.integers(0, L))
@torch.no_grad()
def test_rows_that_hold_different_numbers_of_tokens_do_not_meet(first, second):
    """Each row reads some tokens, then more; padding stands behind. A row by itself gives the same."""
    layer = make_layer()
    h, e = torch.randn(2, 2, 2 * L, 16, dtype=torch.float64)
    S = torch.randn(2, 1, layer.k_proj.out_features, layer.v_proj.out_features, dtype=torch.float64)
    stored, counts = torch.tensor([first, second]), L - torch.tensor([first, second])
    state, outputs = RecallState(S), []
    for begin, have, new in ((0, 0, stored), (L, stored, counts)):
        window = make_window(e[:, begin : begin + L], have, new, past=None if begin else 0)
        output, state = layer(h[:, begin : begin + L], state, window)
        outputs.append(output)
    state = layer.forget(state, window)

    for row in range(2):
        index = [*range(int(stored[row])), *range(L, L + int(counts[row]))]
        window = make_window(e[row : row + 1, index])
        alone, after = layer(h[row : row + 1, index], RecallState(S[row : row + 1]), window)
        together = torch.cat([outputs[0][row, : stored[row]], outputs[1][row, : counts[row]]])
        torch.testing.assert_close(together, alone[0], atol=1e-9, rtol=1e-9)
        after = layer.forget(after, window)
        torch.testing.assert_close(state.recurrent_state[row], after.recurrent_state[0], atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_keys_come_from_an_earlier_layer_and_what_is_recalled_goes_to_the_memorys_own():
    """Two windows of a model by hand: layers, the naive memory, layers."""
    model = make_model(recall_key_layer=1)
    memory, ids = model.model.layers[2], torch.randint(40, (1, 2 * L))
    seen = []
    hooks = [
        model.model.layers[i].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
        for i in (1, 2, 3)
    ]
    model(ids, sleep_passes=2)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 6  # nothing is replayed
    S = torch.zeros(S_shape(memory), dtype=torch.float64)
    for number, (keyed, before, after) in enumerate((seen[:3], seen[3:])):
        torch.testing.assert_close(after, recall_reference.read(memory, before, S, key_hidden_states=keyed))
        embeddings = model.model.embed_tokens(ids[0, number * L :][:L])
        for write in range(2):
            S = recall_reference.write(memory, keyed, embeddings, S, write == 0)


@torch.no_grad()
def test_keys_look_ahead_in_their_window_and_queries_do_not():
    layer = make_layer()
    h, e = torch.randn(2, 1, L, 16, dtype=torch.float64)
    other = h.clone()
    other[:, 3] += 1
    S, keys, outputs = torch.randn(1, 1, *S_shape(layer), dtype=torch.float64), [], []
    for hidden_states in (h, other):
        output, state = layer(hidden_states, RecallState(S), make_window(e))
        outputs.append(output)
        keys.append(layer.key(layer.gates(state, None)[0]))
    assert torch.equal(outputs[0][:, :3], outputs[1][:, :3])
    assert ((keys[0] - keys[1]).abs().amax((0, 2))[1:] > 1e-6).all()


@torch.no_grad()
def test_products_tell_apart_what_half_of_a_sum_would_find():
    layer = make_layer(recall_key_dim=4)
    person, kind, other = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    asked, same_kind = (l2_normalise(layer.features_of(torch.cat([kind, x]))) for x in (person, other))
    assert torch.equal(layer.features_of(torch.cat([kind, other])), torch.tensor([2.0, 0.0, 0.0, 0.0]))
    plain = F.cosine_similarity(torch.cat([kind, person]), torch.cat([kind, other]), dim=0)
    assert asked @ same_kind < plain


@torch.no_grad()
def test_below_the_threshold_a_token_is_not_written_at_all():
    layer = make_layer(recall_threshold=0.5)
    h, e = torch.randn(2, 1, L, 16, dtype=torch.float64)
    window = make_window(e)
    _, state = layer(h, None, window)
    x = state.features[0]
    gate = torch.cat([x, before(x)], dim=-1) @ layer.b_proj.weight[0] + layer.b_proj.bias
    beta = layer.gates(state, None)[2][0]
    assert torch.equal(beta[1:] > 0, gate[1:] > 0) and 0 < (beta > 0).sum() < L - 1
    layer.b_proj.bias.detach().sub_(100)
    S = torch.randn(1, 1, layer.k_proj.out_features, layer.v_proj.out_features, dtype=torch.float64)
    layer.A_log.detach().fill_(-torch.inf)
    assert torch.equal(layer.forget(state._replace(recurrent_state=S), window).recurrent_state, S)


@torch.no_grad()
def test_at_first_half_of_every_token_is_written():
    for threshold in (0.0, 0.5, 0.9):
        layer = RecallMemoryLayer(make_config(recall_threshold=threshold), 2)
        h, e = torch.randn(2, 1, L, 16)
        _, state = layer(h, None, make_window(e))
        torch.testing.assert_close(layer.gates(state, None)[2][0, 1:], torch.full((L - 1,), 0.5))


@torch.no_grad()
def test_a_row_without_tokens_keeps_its_fast_weights():
    layer = make_layer()
    h, e = torch.randn(2, 2, L, 16, dtype=torch.float64)
    S = torch.randn(2, 1, layer.k_proj.out_features, layer.v_proj.out_features, dtype=torch.float64)
    window = make_window(e, counts=[0, 3], passes=2)
    _, state = layer(h, RecallState(S), window._replace(live=torch.arange(L) < torch.tensor([[0], [3]]), order=None))
    after = layer.forget(state, window._replace(live=torch.arange(L) < torch.tensor([[0], [3]])))
    assert torch.equal(after.recurrent_state[0], S[0]) and not torch.equal(after.recurrent_state[1], S[1])


@torch.no_grad()
def test_what_it_is_given_is_not_written_to():
    layer = make_layer()
    h, e = torch.randn(2, 2, L, 16, dtype=torch.float64)
    _, state = layer(h, RecallState(torch.randn(2, 1, *S_shape(layer), dtype=torch.float64)), make_window(e))
    given_to_it = [x for x in (h, e, *state) if x is not None]
    copies = [x.clone() for x in given_to_it]
    window = make_window(e[:, :1], stored=L - 1, past=L)
    layer(h[:, :1], state, window)
    layer.forget(state, make_window(e, passes=2))
    assert all(torch.equal(x, y) for x, y in zip(given_to_it, copies, strict=True))


def S_shape(layer):
    return layer.k_proj.out_features, layer.v_proj.out_features


def test_gradients_reach_every_weight_and_are_right():
    layer = make_layer()
    h, e = torch.randn(2, 1, 2, 3, 16, dtype=torch.float64, requires_grad=True)

    def two_windows(h, e, *parameters):
        state = None
        for n in range(2):
            window = make_window(e[:, n], passes=2)
            output, state = layer(h[:, n], state, window)
            state = layer.forget(state, window)
        return output

    assert torch.autograd.gradcheck(two_windows, (h, e, *layer.parameters()), fast_mode=True)


@torch.no_grad()
def test_a_replayed_span_reads_what_the_pass_before_has_written():
    """Pass j reads S_{j-1}; N passes are N writes, of which the last one decays."""
    layer = make_layer()
    h, refined, e = torch.randn(3, 1, L, 16, dtype=torch.float64)
    S = torch.randn(1, *S_shape(layer), dtype=torch.float64)
    window = make_window(e)
    _, state = layer(h, RecallState(S.unsqueeze(1)), window)
    output, state = layer(refined, layer.begin(state, window), window)
    S = recall_reference.write(layer, h[0], e[0], S[0], decays=False)
    torch.testing.assert_close(output[0], recall_reference.read(layer, refined[0], S))
    S = recall_reference.write(layer, refined[0], e[0], S)
    torch.testing.assert_close(layer.forget(state, window).recurrent_state[0, 0], S)


@torch.no_grad()
def test_a_token_that_is_not_written_leaves_no_trace_in_a_pass():
    layer = make_layer()
    h, refined, e = torch.randn(3, 1, L, 16, dtype=torch.float64)
    S = torch.randn(1, *S_shape(layer), dtype=torch.float64)
    written = torch.arange(L) % 3 != 1
    window = make_window(e)
    _, state = layer(h, RecallState(S.unsqueeze(1)), window)
    state = layer.begin(state, window._replace(written=written[None]))
    expected = recall_reference.write(layer, h[0], e[0], S[0], decays=False, written=written)
    torch.testing.assert_close(state.recurrent_state[0, 0], expected)
    assert not torch.allclose(expected, recall_reference.write(layer, h[0], e[0], S[0], decays=False))
    _, state = layer(refined, state, window)  # the last write is whole
    expected = recall_reference.write(layer, refined[0], e[0], expected)
    torch.testing.assert_close(layer.forget(state, window).recurrent_state[0, 0], expected)


# Inside a model.


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("loop_span", [(0, 0), None, (0, 2), (3, 4)], ids=str)
@KEPT
@torch.no_grad()
def test_token_by_token_equals_chunks_equals_the_whole(kept, loop_span, passes):
    if "recall_key_layer" in kept and loop_span in ((0, 2), (3, 4)):
        loop_span = (0, 1) if loop_span == (0, 2) else (1, 4)  # both behind the span, or both in it
    if loop_span == (3, 4):  # the memory lies before the span
        model = make_model(loop_span=(2, 4), **kept)
    else:
        model = make_model(loop_span=loop_span, **kept)
    ids = torch.randint(40, (2, TEXT))
    whole = model(ids, sleep_passes=passes).logits
    for size in (1, 4, 9):
        cache, pieces = DynamicCache(config=model.config), []
        for chunk in ids.split(size, dim=1):
            pieces.append(model(chunk, past_key_values=cache, sleep_passes=passes).logits)
        torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-9, rtol=1e-9)


@KEPT
@torch.no_grad()
def test_padding_anywhere_changes_nothing(kept):
    model = make_model(**kept)
    ids, mask = torch.randint(40, (3, TEXT)), torch.ones(3, TEXT, dtype=torch.long)
    mask[0, :5] = mask[1, 9:] = mask[2, 4:8] = 0
    logits = model(ids, attention_mask=mask, sleep_passes=2).logits
    for row in range(3):
        live = mask[row].bool()
        alone = model(ids[row : row + 1, live], sleep_passes=2).logits[0]
        torch.testing.assert_close(logits[row, live], alone, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_naps_of_rows_that_hold_little_keep_what_there_is():
    """A row that has read less than the overlap beside one that has read more, then both go on."""
    model, ids = make_model(window_overlap=4), torch.randint(40, (2, 11))
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, :3] = 0
    cache = model.sleep(model(ids[:, :5], attention_mask=mask).past_key_values)
    together = model(ids[:, 5:], past_key_values=cache).logits
    for row in range(2):
        alone = model.sleep(model(ids[row : row + 1, :5][:, mask[row].bool()]).past_key_values)
        alone = model(ids[row : row + 1, 5:], past_key_values=alone).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_a_fact_that_a_window_cuts_in_two_is_written_with_an_overlap():
    """The first token of a window is written, by what the one before it was known by."""
    layer = make_layer(window_overlap=3)
    h, e = torch.randn(2, 1, 2, L, 16, dtype=torch.float64)
    keep = Keep(torch.arange(L, L + 3).unsqueeze(0), None)
    window = make_window(e[:, 0], keep=keep)
    state = layer.forget(layer(h[:, 0], None, window)[1], window)
    betas = []
    for kept in (state, RecallState(state.recurrent_state)):
        _, after = layer(h[:, 1], kept, make_window(e[:, 1]))
        betas.append(layer.gates(after, None)[2][0])
    assert betas[0][0] > 0 and betas[1][0] == 0


@torch.no_grad()
def test_the_first_window_is_the_model_without_memory_bit_for_bit():
    model = make_model().float()
    ids = torch.randint(40, (2, 2 * L))
    layers = [layer for i, layer in enumerate(model.model.layers) if i != 2]
    config = make_config(num_hidden_layers=3, layer_types=["sleep_attention"] * 3, memory_layers=[], loop_span=None)
    without = SleepForCausalLM(config).eval()
    weights = {f"model.layers.{i}.{name}": x for i, y in enumerate(layers) for name, x in y.state_dict().items()}
    without.load_state_dict({**model.state_dict(), **weights}, strict=False)
    logits, original = model(ids).logits, without(ids).logits
    assert torch.equal(logits[:, :L], original[:, :L])
    assert not torch.isclose(logits[:, L:], original[:, L:]).any(-1).all()
    # A row in its first window beside one that is behind a sleep.
    mask = torch.ones_like(ids)
    mask[0, : L + 2] = 0
    assert torch.equal(model(ids, attention_mask=mask).logits[0, L + 2 :], without(ids[:1, L + 2 :]).logits[0])


@KEPT
@torch.no_grad()
def test_cached_rows_can_be_chosen_and_repeated(kept):
    model = make_model(**kept)
    ids = torch.randint(40, (2, TEXT))
    cache = model(ids[:, :-3]).past_key_values
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    logits = model(ids[[1, 1, 0], -3:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids).logits[[1, 1, 0], -3:], atol=1e-9, rtol=1e-9)


@KEPT
def test_gradient_checkpointing_gives_the_same_gradients(kept):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = make_model(loop_span=None, **kept).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        ids = torch.randint(40, (2, TEXT))
        model(ids, labels=ids, sleep_passes=2).loss.backward()
        gradients.append([parameter.grad for parameter in model.model.layers[2].parameters()])
    for x, y in zip(*gradients, strict=True):
        assert x.abs().max() > 0
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


def test_a_text_of_one_window_gives_the_memory_gradients_of_zero():
    """Where all else is frozen a step has nothing to go back through otherwise, and DDP ends with an error."""
    model = make_model().train()
    model.requires_grad_(False)
    memory = model.model.layers[2].requires_grad_(True)
    ids = torch.randint(40, (2, L - 1))
    output = model(ids, labels=ids)
    assert torch.equal(output.logits, model.eval()(ids).logits)
    output.loss.backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    again, info = SleepForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(40, (1, TEXT))
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_half_precision_computes_the_rule_in_float32():
    model = make_model().bfloat16()
    output = model(torch.randint(40, (1, TEXT)))
    assert output.past_key_values.layers[2].recurrent_states[0].dtype == torch.float32
    assert output.logits.isfinite().all()


def test_peft_adapts_the_memory_and_nothing_else():
    model = make_model().float()
    names = memory_target_modules(model.config)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=names, init_lora_weights=False, r=2)
    ids = torch.randint(40, (1, TEXT))
    before = model(ids).logits.detach()
    adapted = get_peft_model(model, config)
    assert {name.split(".lora_")[0] for name, p in adapted.named_parameters() if p.requires_grad} == {
        f"base_model.model.model.{name}" for name in names
    }
    logits = adapted(ids).logits
    assert torch.equal(logits[:, :L], before[:, :L]) and not torch.allclose(logits[:, L:], before[:, L:])
    logits.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("key_layer", [None, 1])
@torch.no_grad()
def test_compiled_layers_run_few_graphs_whatever_the_text(fresh_dynamo, key_layer):
    """Of attention; of the memory without S, and with it."""
    model = make_model(recall_key_layer=key_layer)
    ids = torch.randint(40, (2, 4 * L))
    expected = model(ids, sleep_passes=2).logits
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(model(ids, sleep_passes=2).logits, expected)
    assert counters["stats"]["unique_graphs"] == 3
    model(ids[:, : 2 * L], sleep_passes=3)
    assert counters["stats"]["unique_graphs"] == 3


def test_generation_compiles_single_tokens(fresh_dynamo):
    model = make_model()
    prompt = torch.randint(3, 40, (1, 2 * L + 1))
    options = dict(min_new_tokens=2 * L, max_new_tokens=2 * L, do_sample=False, sleep_passes=2)
    compiled = dict(compile_config=CompileConfig(backend="eager", mode="default", fullgraph=True))
    expected = model.generate(prompt, **options)
    torch.testing.assert_close(model.generate(prompt, **options, **compiled), expected)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(memory_layers=[]), "always inserted"),
        (dict(memory_layers=[1, 2]), "must be indices of"),
        (dict(recall_span=0), "`recall_span` must be at least 1"),
        (dict(recall_hindsight=-1), "`recall_hindsight` must be at least 0, got -1"),
        (dict(recall_products=True, recall_key_dim=7), "`recall_key_dim` must be even, got 7"),
        (dict(recall_key_rank=0), "`recall_key_rank` must be from 1 to `recall_key_dim` .22., or None"),
        (
            dict(recall_key_rank=33, recall_key_dim=32),
            "to `recall_key_dim` .32., or None for maps of any rank",
        ),
        (dict(recall_threshold=1.0), "0 <= `recall_threshold` < 1, got 1.0"),
        (dict(recall_key_layer=2), "a layer before the recall memories, which are .2.: got 2"),
        (dict(recall_key_layer=-1), "a layer before the recall memories, which are .2.: got -1"),
        (dict(recall_key_layer=1, loop_span=(2, 4)), "on one side of the ends of `loop_span` .2, 4."),
        (
            dict(
                recall_key_layer=0,
                layer_types=["sleep_attention", "linear_attention"] * 2,
                memory_layers=[],
                loop_span=None,
            ),
            "which are none: got 0",
        ),
        (dict(loop_span=(3, 2)), "0 <= start <= end"),
        (dict(loop_span=(3, 4)), "leaves no memory"),
        (dict(layer_types=["sleep_attention", "linear_attention"] * 2, memory_layers=[]), "is empty"),
    ],
)
def test_what_cannot_be_is_said(fields, message):
    with pytest.raises(Exception, match=message):
        make_config(**fields)
