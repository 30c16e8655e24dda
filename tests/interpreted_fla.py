"""
The kernels of `fla` on a CPU, under Triton's interpreter, against our torch code. test_fla.py runs this in a process
of its own, as Triton chooses the interpreter when it is imported:

    TRITON_INTERPRET=1 python interpreted_fla.py    # prints JSON

Errors are relative to the largest entry of what the definition gives in float64. Halves are float16, as the
interpreter keeps bfloat16 as integers.
"""

import contextlib
import importlib
import json
import sys
from types import SimpleNamespace

import torch
import triton

from modeling_sleep import SleepConfig, SleepForCausalLM, fla_sleep
from modeling_sleep.fla_sleep import fla_gated_delta_rule
from modeling_sleep.gated_delta_rule import recurrent_gated_delta_rule


CANNOT_INTERPRET = 77  # exit code: these releases of Triton and `fla` do not come as far as a kernel


class CpuDriver:
    """What Triton and `fla` ask of the driver of a device."""

    utils = SimpleNamespace(get_device_properties=lambda device: dict(multiprocessor_count=1, max_shared_mem=2**18))
    get_current_target = staticmethod(lambda: SimpleNamespace(backend="cpu", arch="none", warp_size=32))
    get_current_device = staticmethod(lambda: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))
    get_benchmarker = staticmethod(lambda: None)


class Index(int):
    """A loop's number, which is a tensor in a compiled kernel."""

    def to(self, dtype) -> "Index":
        return self


def run_first_configuration(self, *args, **kwargs):
    """Instead of an autotuner's search for the fastest one."""
    return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())


def prepare():
    """Let `fla` be imported and run without a device."""
    triton.runtime.driver.set_active(CpuDriver())
    triton.runtime.autotuner.Autotuner.run = run_first_configuration
    torch.cpu.device = lambda index: contextlib.nullcontext()
    loops = importlib.import_module("fla.ops.common.chunk_delta_h")
    loops.range = lambda *bounds: map(Index, range(*bounds))


# Tokens, key heads, value heads, key dim, value dim; the batch is of two rows.
SHAPES = {
    "one token": (1, 2, 2, 16, 16),
    "one token, grouped": (1, 2, 4, 16, 24),
    "few tokens": (3, 4, 4, 16, 16),
    "two chunks": (70, 1, 1, 16, 16),
    "two chunks, grouped": (70, 1, 2, 16, 16),
    "other dims": (20, 1, 1, 24, 40),
    "other dims, grouped": (20, 2, 4, 16, 32),
}


def make_inputs(tokens, key_heads, value_heads, key_dim, value_dim, state=True) -> list[torch.Tensor | None]:
    torch.manual_seed(0)
    query, key = (torch.randn(2, tokens, key_heads, key_dim).half() for _ in range(2))
    value = torch.randn(2, tokens, value_heads, value_dim).half()
    log_decay = -0.2 * torch.rand(2, tokens, value_heads)
    beta = (2 * torch.rand(2, tokens, value_heads)).half()
    return [query, key, value, log_decay, beta, torch.randn(2, value_heads, key_dim, value_dim) if state else None]


def results(rule, inputs, gradients: bool) -> dict[str, torch.Tensor]:
    """Output and S, and the gradients of a loss that depends on both."""
    names = ("query", "key", "value", "log_decay", "beta", "initial_state")
    inputs = {name: x.requires_grad_(gradients) for name, x in zip(names, inputs) if x is not None}
    with torch.set_grad_enabled(gradients):
        output, state = rule(**inputs)
    found = {"output": output.detach(), "state": state.detach()}
    if gradients:
        torch.manual_seed(1)
        loss = sum((x.double() * torch.randn(x.shape, dtype=torch.float64)).sum() for x in (output, state))
        found |= dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
    return found


def errors(inputs, gradients: bool = False) -> dict[str, float]:
    """How far the kernels are off."""
    found = results(fla_gated_delta_rule, [None if x is None else x.detach() for x in inputs], gradients)
    exact = [None if x is None else x.detach().double() for x in inputs]
    expected = results(recurrent_gated_delta_rule, exact, gradients)
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}
    assert found["output"].dtype == torch.half and found["state"].dtype == torch.float32
    return {name: ((x - found[name]).abs().max() / x.abs().max()).item() for name, x in expected.items()}


def masked(inputs) -> list[torch.Tensor]:
    """The same, with the middle third of the tokens masked."""
    tokens = inputs[0].shape[1]
    for gate in inputs[3:5]:
        gate[:, tokens // 3 : 2 * tokens // 3] = 0
    return inputs


def state_is_kept(tokens: int, gradients: bool) -> bool:
    """Whether S is bit for bit what it was, after a text of masked tokens."""
    *inputs, log_decay, beta, state = make_inputs(tokens, 1, 2, 16, 16)
    with torch.set_grad_enabled(gradients):
        _, after = fla_gated_delta_rule(*inputs, torch.zeros_like(log_decay), torch.zeros_like(beta), state)
    return torch.equal(after, state)


def views(inputs) -> list[torch.Tensor]:
    """The same, with queries, keys and values as a layer gives them: parts of one tensor."""
    parts = inputs[:3]
    mixed = torch.cat([x.flatten(2) for x in parts], dim=-1).split([x[0, 0].numel() for x in parts], dim=-1)
    return [part.unflatten(-1, x.shape[2:]) for part, x in zip(mixed, parts)] + inputs[3:]


def compiled(inputs) -> bool:
    """Whether a compiled call is one whole graph, and gives what the kernels give by themselves."""
    with torch.no_grad():
        expected = fla_gated_delta_rule(*inputs)
        found = torch.compile(fla_gated_delta_rule, backend="aot_eager", fullgraph=True)(*inputs)
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def whole_model() -> dict[str, float]:
    """How far logits and gradients of a model that sleeps twice are off those of plain torch."""
    torch.manual_seed(0)
    heads = dict(linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
    sizes = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, pad_token_id=None)
    config = SleepConfig(**sizes, **heads, window_size=6, sleep_passes=2, initializer_range=0.3)
    model, ids = SleepForCausalLM(config).half(), torch.randint(0, 32, (1, 15))
    sides = []
    for device_type in ("cuda", "cpu"):  # on which the kernels run
        fla_sleep.DEVICE_TYPE = device_type
        model.zero_grad()
        output = model(ids, labels=ids, use_cache=False)
        output.loss.backward()
        gradients = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])
        sides.append({"logits": output.logits.detach().double(), "gradients": gradients})
    assert not torch.equal(sides[0]["logits"], sides[1]["logits"]), "the kernels have not run"
    return {name: ((sides[1][name] - x).norm() / x.norm()).item() for name, x in sides[0].items()}


def main():
    try:
        prepare()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(CANNOT_INTERPRET)
    found = {}
    for name, shape in SHAPES.items():
        found[name] = errors(make_inputs(*shape))
        found[f"{name}, gradients"] = errors(make_inputs(*shape), gradients=True)
        found[f"{name}, from zeros"] = errors(make_inputs(*shape, state=False))
    found["masked tokens, gradients"] = errors(masked(make_inputs(*SHAPES["two chunks, grouped"])), gradients=True)
    found["views"] = errors(views(make_inputs(*SHAPES["other dims, grouped"])))
    kept = {f"{n} tokens, gradients {on}": state_is_kept(n, on) for n in (1, 20, 70) for on in (False, True)}
    found["whole model"] = whole_model()
    whole_graphs = {
        name: compiled(make_inputs(*SHAPES[name])) for name in ("one token, grouped", "two chunks, grouped")
    }
    json.dump({"errors": found, "state is kept": kept, "compiled whole": whole_graphs}, sys.stdout)


if __name__ == "__main__":
    main()
