"""The gated delta rule: its fast form against its definition."""

import logging
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from modeling_sleep import gated_delta_rule as dispatched
from modeling_sleep.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule


def make_inputs(seq_len, batch=2, key_heads=2, value_heads=4, key_dim=8, value_dim=6, dtype=torch.float64, state=True):
    tensors = dict(
        query=torch.randn(batch, seq_len, key_heads, key_dim),
        key=torch.randn(batch, seq_len, key_heads, key_dim),
        value=torch.randn(batch, seq_len, value_heads, value_dim),
        log_decay=-torch.rand(batch, seq_len, value_heads) * 0.3,
        beta=2 * torch.rand(batch, seq_len, value_heads),
    )
    if state:
        tensors["initial_state"] = torch.randn(batch, value_heads, key_dim, value_dim)
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}


def run(rule, inputs, **kwargs):
    """Outputs and gradients of a loss that depends on all of them."""
    output, state = rule(**inputs, **kwargs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    loss = (output * weights).sum() + state.square().sum().to(output.dtype)
    return [output, state, *torch.autograd.grad(loss, list(inputs.values()))]


def test_definition():
    """One head by hand: S = alpha S (I - beta k k^T) + beta v k^T, o = S q, with S transposed."""
    inputs = make_inputs(3, batch=1, key_heads=1, value_heads=1)
    query, key, value, log_decay, beta = (inputs[n][0, :, 0] for n in ("query", "key", "value", "log_decay", "beta"))
    S = inputs["initial_state"][0, 0].T
    for t in range(3):
        k = key[t] / (key[t] @ key[t] + 1e-6).sqrt()
        q = query[t] / (query[t] @ query[t] + 1e-6).sqrt() / 8**0.5
        S = log_decay[t].exp() * S @ (torch.eye(8) - beta[t] * torch.outer(k, k)) + beta[t] * torch.outer(value[t], k)
        output = S @ q
    ours, state = recurrent_gated_delta_rule(**inputs)
    torch.testing.assert_close(ours[0, -1, 0], output)
    torch.testing.assert_close(state[0, 0], S.T)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=str)
@pytest.mark.parametrize("state", [True, False], ids=["with state", "from zeros"])
@pytest.mark.parametrize("seq_len", [1, 2, 13, 64, 65, 150])
def test_chunked_equals_recurrent(seq_len, state, dtype, atol):
    inputs = make_inputs(seq_len, dtype=dtype, state=state)
    expected = run(recurrent_gated_delta_rule, inputs)
    for result, reference in zip(run(chunked_gated_delta_rule, inputs), expected, strict=True):
        torch.testing.assert_close(result, reference, atol=atol, rtol=atol)


@pytest.mark.parametrize("state", [True, False], ids=["with state", "from zeros"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 29, 32, 64])
def test_chunk_size_does_not_matter(chunk_size, key_heads, state):
    for seq_len in (29, 70):  # both are padded by some sizes
        inputs = make_inputs(seq_len, key_heads=key_heads, state=state)
        expected = run(recurrent_gated_delta_rule, inputs)
        for result, reference in zip(run(chunked_gated_delta_rule, inputs, chunk_size=chunk_size), expected):
            torch.testing.assert_close(result, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seq_len", [40, 120])
def test_the_inverse_of_a_chunk_is_stable(seq_len):
    """The same key over and over, written twice as strongly as would be enough: powers of A grow beyond 1e15."""
    inputs = make_inputs(seq_len, dtype=torch.float32)
    inputs["key"] = torch.ones_like(inputs["key"]).requires_grad_()
    inputs["beta"] = torch.full_like(inputs["beta"], 1.9).requires_grad_()
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"]).requires_grad_()
    precise = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    results = run(chunked_gated_delta_rule, inputs, chunk_size=64)
    for result, reference in zip(results, run(recurrent_gated_delta_rule, precise), strict=True):
        assert (result - reference).abs().max() < 2e-4 * max(1, reference.abs().max())


def test_state_carries_over_a_split():
    inputs = make_inputs(20)
    initial_state = inputs.pop("initial_state")
    whole, final = chunked_gated_delta_rule(**inputs, initial_state=initial_state)
    pieces, state = [], initial_state
    for begin, end in ((0, 7), (7, 8), (8, 20)):
        output, state = dispatched(**{n: x[:, begin:end] for n, x in inputs.items()}, initial_state=state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("rule", [chunked_gated_delta_rule, recurrent_gated_delta_rule])
def test_gradients_are_right(rule):
    inputs = make_inputs(5, batch=1, key_heads=1, value_heads=2, key_dim=3, value_dim=2)
    options = {"chunk_size": 2} if rule is chunked_gated_delta_rule else {}
    assert torch.autograd.gradcheck(lambda *args: rule(*args, **options), list(inputs.values()))


@pytest.mark.parametrize("seq_len", [9, 70])
@pytest.mark.parametrize("wanted", ["output", "state"])
def test_gradients_of_one_result_alone(wanted, seq_len):
    inputs = make_inputs(seq_len)
    gradients = []
    for rule in (chunked_gated_delta_rule, recurrent_gated_delta_rule):
        output, state = rule(**inputs)
        loss = (output if wanted == "output" else state).square().sum()
        gradients.append(torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("only", ["query", "key", "value", "log_decay", "beta", "initial_state"])
def test_gradient_of_one_input_alone(only):
    inputs = make_inputs(70)
    expected = dict(zip(inputs, run(chunked_gated_delta_rule, inputs)[2:], strict=True))[only]
    inputs = {name: x.detach().requires_grad_(name == only) for name, x in inputs.items()}
    output, state = chunked_gated_delta_rule(**inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    ((output * weights).sum() + state.square().sum()).backward()
    torch.testing.assert_close(inputs.pop(only).grad, expected)
    assert all(x.grad is None for x in inputs.values())


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointed(use_reentrant):
    def checkpointed(**inputs):
        return checkpoint(chunked_gated_delta_rule, *inputs.values(), use_reentrant=use_reentrant)

    inputs = make_inputs(70)
    expected = run(chunked_gated_delta_rule, inputs)[2:]
    output, state = checkpointed(**inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    ((output * weights).sum() + state.square().sum()).backward()  # reentrant, nothing else may ask for gradients
    for x, gradient in zip(inputs.values(), expected, strict=True):
        assert torch.equal(x.grad, gradient)


def test_the_graph_can_be_kept_and_inputs_stay_as_they_are():
    inputs = make_inputs(13, batch=1, key_heads=1, value_heads=1)  # small enough for views of the inputs all along
    before = {name: x.detach().clone() for name, x in inputs.items()}
    loss = sum(result.square().sum() for result in chunked_gated_delta_rule(**inputs))
    first, second = (torch.autograd.grad(loss, list(inputs.values()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())


def test_second_derivatives_raise_an_error():
    inputs = make_inputs(5)
    output, _ = chunked_gated_delta_rule(**inputs)
    with pytest.raises(RuntimeError, match="Second derivatives"):
        torch.autograd.grad(output.sum(), inputs["value"], create_graph=True)


@pytest.mark.parametrize("rule", [chunked_gated_delta_rule, recurrent_gated_delta_rule])
def test_autocast_leaves_the_precision(rule):
    """On what it has made half as precise, and on gates that it has not."""
    inputs = make_inputs(40, dtype=torch.float32)
    inputs.update({n: inputs[n].detach().bfloat16().requires_grad_() for n in ("query", "key", "value")})
    expected = run(rule, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        # The backward of the chunked form is ours, so that it keeps its precision here too.
        results = run(rule, inputs) if rule is chunked_gated_delta_rule else rule(**inputs)
    assert all(torch.equal(result, reference) for result, reference in zip(results, expected))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_large_state_is_read_by_products(autocast, monkeypatch):
    """And a small one by sums: the same outputs, in the same precision, and the same gradients."""
    inputs = make_inputs(5, dtype=torch.float32)
    expected = run(recurrent_gated_delta_rule, inputs)
    monkeypatch.setattr(sys.modules[recurrent_gated_delta_rule.__module__], "SMALL_STATE", 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = recurrent_gated_delta_rule(**inputs) if autocast else run(recurrent_gated_delta_rule, inputs)
    for result, reference in zip(results, expected):
        torch.testing.assert_close(result, reference)


def test_without_gradients_the_given_state_is_left_alone():
    """What is written in place is the rule's own."""
    inputs = make_inputs(3)
    expected, given = recurrent_gated_delta_rule(**inputs), inputs["initial_state"].detach().clone()
    with torch.no_grad():
        torch.testing.assert_close(recurrent_gated_delta_rule(**inputs), expected)
    assert torch.equal(inputs["initial_state"], given)


def test_compiles_into_one_graph():
    inputs = make_inputs(70)
    compiled = torch.compile(chunked_gated_delta_rule, backend="aot_eager", fullgraph=True)
    results = run(compiled, inputs)
    for result, reference in zip(results, run(chunked_gated_delta_rule, inputs), strict=True):
        torch.testing.assert_close(result, reference, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rule", [chunked_gated_delta_rule, recurrent_gated_delta_rule])
def test_no_step_and_no_decay_leave_the_state_exactly(rule):
    inputs = make_inputs(9, dtype=torch.float32)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    inputs["beta"] = torch.zeros_like(inputs["beta"])
    assert torch.equal(rule(**inputs)[1], inputs["initial_state"])


def test_strong_decay_neither_overflows_nor_loses_gradients():
    inputs = make_inputs(64, dtype=torch.float32)
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -20.0).requires_grad_()
    assert all(result.isfinite().all() for result in run(chunked_gated_delta_rule, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_computes_in_float32_or_better(dtype):
    inputs = {name: tensor.detach() for name, tensor in make_inputs(33, dtype=dtype).items()}
    output, state = dispatched(**inputs)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    assert output.dtype == dtype and state.dtype == precise
    expected, expected_state = recurrent_gated_delta_rule(**{n: x.double() for n, x in inputs.items()})
    # The inputs are rounded already, the computation adds nothing to that.
    atol = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(state.double(), expected_state, atol=atol, rtol=atol)
    torch.testing.assert_close(output, expected.to(dtype), atol=atol, rtol=2e-2 if output.itemsize == 2 else atol)


def test_in_tree_rule_agrees():
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as in_tree

    rule = in_tree.torch_chunk_gated_delta_rule
    inputs = {name: tensor.detach() for name, tensor in make_inputs(70, dtype=torch.float32).items()}
    ours, state = chunked_gated_delta_rule(**inputs)
    # In-tree code of some releases does not repeat the key heads itself.
    query, key = (inputs[name].repeat_interleave(2, dim=2) for name in ("query", "key"))
    theirs, their_state = rule(
        query,
        key,
        inputs["value"],
        g=inputs["log_decay"],
        beta=inputs["beta"],
        initial_state=inputs["initial_state"],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, their_state, atol=1e-4, rtol=1e-4)


def test_says_once_which_kernel_runs(caplog):
    from transformers.utils import logging as transformers_logging

    from modeling_sleep.gated_delta_rule import logger

    logger.info_once.cache_clear()
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.INFO, logger=logger.name):
        for _ in range(3):
            dispatched(**make_inputs(4))
    transformers_logging.disable_propagation()
    assert [record.message for record in caplog.records] == ["The gated delta rule on cpu runs in plain torch."]
