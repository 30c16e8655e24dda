"""What only a GPU shows. `make gpu` runs these first; without a GPU they are skipped.

TRANSFORMERS_TEST_DEVICE=cpu, as in transformers' own tests, tries on a CPU what does not need the kernels of CUDA.
"""

import os

import pytest
import torch
from transformers import CompileConfig, DynamicCache
from transformers.utils import is_flash_attn_2_available

from modeling_sleep import SleepConfig, SleepForCausalLM, fla_sleep, gated_delta_rule
from modeling_sleep.gated_delta_rule import recurrent_gated_delta_rule


DEVICE = os.environ.get("TRANSFORMERS_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU is visible"),
]
L = 16


@pytest.fixture
def kernels():
    if DEVICE != "cuda" or fla_sleep.load_kernels() is None:
        pytest.skip('the kernels of `fla` do not run here: pip install ".[fla]" beside a GPU')


def make_inputs(tokens, heads=(2, 4), dims=(64, 64), dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    query, key = (torch.randn(2, tokens, heads[0], dims[0], device=DEVICE, dtype=dtype) for _ in range(2))
    return {
        "query": query,
        "key": key,
        "value": torch.randn(2, tokens, heads[1], dims[1], device=DEVICE, dtype=dtype),
        "log_decay": -0.2 * torch.rand(2, tokens, heads[1], device=DEVICE),
        "beta": (2 * torch.rand(2, tokens, heads[1], device=DEVICE)).to(dtype).float(),  # as the kernels round it
        "initial_state": torch.randn(2, heads[1], *dims, device=DEVICE),
    }


def results(rule, inputs, gradients: bool) -> dict[str, torch.Tensor]:
    """Output and S, and the gradients of a loss that depends on both."""
    inputs = {name: x.detach().clone().requires_grad_(gradients) for name, x in inputs.items()}
    with torch.set_grad_enabled(gradients):
        output, state = rule(**inputs)
    found = {"output": output.detach(), "state": state.detach()}
    if gradients:
        torch.manual_seed(1)
        loss = sum((x.double() * torch.randn(x.shape).to(x.device).double()).sum() for x in (output, state))
        found |= dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
    return found


def make_model(dtype=torch.bfloat16, **overrides) -> SleepForCausalLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, window_size=L)
    config = SleepConfig(**{**sizes, "sleep_passes": 2, "initializer_range": 0.1, "pad_token_id": 0, **overrides})
    return SleepForCausalLM(config).to(DEVICE, dtype).eval()


def make_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, 97, (batch, length), device=DEVICE)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


# The kernels of fla.


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)], ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (64, 128), (256, 64)], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (2, 4)], ids=["even heads", "grouped heads"])
@pytest.mark.parametrize("tokens", [1, 13, 64, 200])
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
def test_kernels_agree_with_the_definition(kernels, gradients, tokens, heads, dims, dtype, tolerance):
    inputs = make_inputs(tokens, heads, dims, dtype)
    found = results(gated_delta_rule, inputs, gradients)
    expected = results(recurrent_gated_delta_rule, {name: x.double() for name, x in inputs.items()}, gradients)
    assert found["output"].dtype == dtype and found["state"].dtype == torch.float32
    for name, x in expected.items():
        assert relative(found[name], x) < tolerance, name


def test_steps_of_full_strength_along_one_key_stay_finite(kernels):
    """The inverse within a chunk at its worst: one key over and over, written with beta near 2, nothing decays."""
    inputs = make_inputs(200)
    inputs["key"] = torch.ones_like(inputs["key"])
    inputs["beta"] = torch.full_like(inputs["beta"], 1.9).bfloat16().float()
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    found = results(gated_delta_rule, inputs, gradients=True)
    expected = results(recurrent_gated_delta_rule, {name: x.double() for name, x in inputs.items()}, gradients=True)
    for name in ("output", "state", "value", "initial_state"):
        assert relative(found[name], expected[name]) < 5e-2, name
    assert all(x.isfinite().all() for x in found.values())


def test_a_model_gives_the_same_in_kernels_and_in_torch(kernels, monkeypatch):
    model, ids = make_model(linear_num_value_heads=4).train(), make_ids(2, 3 * L + 5)

    def logits_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        output = model(ids, labels=ids, use_cache=False)
        output.loss.backward()
        return [output.logits.detach(), torch.cat([x.grad.flatten() for x in model.parameters()])]

    found = logits_and_gradients()
    monkeypatch.setattr(fla_sleep, "DEVICE_TYPE", "none")
    expected = logits_and_gradients()
    assert not torch.equal(found[0], expected[0])  # the kernels have run
    assert relative(found[0], expected[0]) < 3e-2 and relative(found[1], expected[1]) < 1e-1


# With the kernels where they are installed, else in plain torch.


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("tokens", [1, 20, 200])
def test_masked_tokens_leave_the_state_bit_for_bit(tokens, gradients):
    inputs = make_inputs(tokens)
    for gate in ("log_decay", "beta"):
        inputs[gate] = torch.zeros_like(inputs[gate])
    assert torch.equal(results(gated_delta_rule, inputs, gradients)["state"], inputs["initial_state"])


def test_token_by_token_gives_what_chunks_give():
    inputs = make_inputs(100)
    with torch.no_grad():
        expected, expected_state = gated_delta_rule(**inputs)
        state, outputs = inputs.pop("initial_state"), []
        for token in zip(*(x.split(1, dim=1) for x in inputs.values()), strict=True):
            output, state = gated_delta_rule(*token, state)
            outputs.append(output)
    assert relative(torch.cat(outputs, dim=1), expected) < 2e-2
    assert relative(state, expected_state) < 2e-2


def test_the_device_gives_what_a_cpu_gives():
    model, ids = make_model(torch.float32).train(), make_ids(2, 3 * L + 5)
    sides = []
    for device in (DEVICE, "cpu"):
        model.to(device).zero_grad()
        output = model(ids.to(device), labels=ids.to(device), use_cache=False)
        output.loss.backward()
        sides.append([output.logits.detach().cpu(), torch.cat([x.grad.flatten() for x in model.parameters()]).cpu()])
    for found, expected in zip(*sides, strict=True):
        assert relative(found, expected) < 1e-3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)], ids=str)
def test_compiled_tokens_give_what_eager_ones_do(dtype, tolerance):
    model, ids = make_model(dtype), make_ids(2, L + 3)
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = dict(compile_config=CompileConfig(backend=backend, mode="default", fullgraph=True))
    options = dict(min_new_tokens=2 * L, max_new_tokens=2 * L, do_sample=False)
    options |= dict(return_dict_in_generate=True, output_scores=True)
    torch._dynamo.reset()
    expected, found = (model.generate(ids, **options, **extra) for extra in ({}, compiled))
    torch._dynamo.reset()
    if dtype == torch.float32:
        assert torch.equal(found.sequences, expected.sequences)
    for x, y in zip(found.scores[: L // 2], expected.scores):  # in halves, later tokens may differ, and all after them
        assert relative(x, y) < tolerance


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("padding", [0, L], ids=["no padding", "a window of padding"])
def test_other_attention_gives_what_sdpa_gives(attention, padding):
    if attention == "flash_attention_2" and not (DEVICE == "cuda" and is_flash_attn_2_available()):
        pytest.skip("flash-attn is not installed beside a GPU")
    model, ids = make_model(torch.bfloat16 if DEVICE == "cuda" else torch.float32), make_ids(2, 2 * L + 3)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation(attention)
        found = model(ids, attention_mask=mask).logits
    assert relative(found[mask.bool()], expected[mask.bool()]) < 3e-2


def test_a_step_under_autocast_learns():
    model, ids = make_model(torch.float32).train(), make_ids(2, 3 * L)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    for _ in range(10):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.skipif(DEVICE != "cuda", reason="other devices have no such mode")
def test_neither_a_prompt_nor_a_token_waits_for_the_device():
    """Within a window; a sleep reads once whether S is finite."""
    model, ids = make_model(), make_ids(2, L)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :-2], past_key_values=DynamicCache(config=model.config))  # kernels are compiled, tables made
        model(ids[:, :1], past_key_values=DynamicCache(config=model.config))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(ids[:, :-2], past_key_values=cache)
            model(ids[:, -2:-1], past_key_values=cache)
            logits = model(ids[:, -1:], past_key_values=cache).logits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert logits.isfinite().all()
