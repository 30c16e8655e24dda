"""The Triton kernels of `fla`: who runs them, who falls back and says why, and what they compute.

Their numbers are checked on a CPU under Triton's interpreter, if the packages are importable: `make test-fla` fetches
them. The development environment does not hold them, as transformers' own hybrid models choose their kernels when they
are imported, and with `fla` installed no longer run on a CPU. On a GPU see test_cuda.py.
"""

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CompileConfig

from modeling_sleep import SleepConfig, SleepForCausalLM, fla_sleep, gated_delta_rule
from modeling_sleep.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule


# In place of kernels: the rule in torch, closed to the compiler as `fla` closes its own, which counts its calls.
KERNELS = """
    import torch
    from modeling_sleep.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule

    calls = []

    def kernel(name, rule):
        @torch.compiler.disable
        def run(q, k, v, *, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
            assert output_final_state and use_qk_l2norm_in_kernel
            assert q.dtype == k.dtype == v.dtype == beta.dtype
            assert g.dtype == torch.float32 and (initial_state is None or initial_state.dtype == torch.float32)
            calls.append(name)
            return rule(q, k, v, g, beta, initial_state)

        return run

    fused_recurrent_gated_delta_rule = kernel("one token", recurrent_gated_delta_rule)
    chunk_gated_delta_rule = kernel("chunks", chunked_gated_delta_rule)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install an `fla` with these kernels, as pip would; it runs on a CPU."""
    if importlib.util.find_spec("fla") and (Path(torch.__file__).parents[1] / "fla").is_dir():
        pytest.skip("another `fla` is installed beside torch")

    def lay(kernels: str = KERNELS, distribution: str | None = "fla-core", version: str = "0.6.0"):
        fla_sleep.load_kernels.cache_clear()
        ops = tmp_path / "fla" / "ops"
        ops.mkdir(parents=True)
        for folder in (ops.parent, ops):
            (folder / "__init__.py").touch()
        (ops / "gated_delta_rule.py").write_text(textwrap.dedent(kernels), encoding="utf-8")
        if distribution:
            metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8")
        importlib.invalidate_caches()

    # What `make test-fla` lays over the environment is put aside.
    others = [entry for entry in sys.path if not (Path(entry) / "fla").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *others])
    monkeypatch.setattr(fla_sleep, "DEVICE_TYPE", "cpu")
    fla_sleep.load_kernels.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield lay
    for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
        del sys.modules[name]
    fla_sleep.load_kernels.cache_clear()
    torch._dynamo.reset()


def calls() -> list[str]:
    return sys.modules["fla.ops.gated_delta_rule"].calls


def make_inputs(tokens: int, key_dim: int = 8, dtype=torch.bfloat16) -> list[torch.Tensor]:
    query, key = (torch.randn(2, tokens, 2, key_dim, dtype=dtype) for _ in range(2))
    value = torch.randn(2, tokens, 4, 6, dtype=dtype)
    log_decay, beta = -torch.rand(2, tokens, 4), torch.rand(2, tokens, 4)
    return [query, key, value, log_decay, beta, torch.randn(2, 4, key_dim, 6)]


@torch.no_grad()
def run(**kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    return gated_delta_rule(*make_inputs(**{"tokens": 3, **kwargs}))


# Who runs.


def test_kernels_run_in_half_precision(install):
    install()
    for dtype in (torch.bfloat16, torch.float16):
        output, state = run(dtype=dtype)
        assert output.dtype == dtype and state.dtype == torch.float32
    run(tokens=1)
    assert calls() == ["chunks", "chunks", "one token"]
    for dtype in (torch.float32, torch.float64):
        run(dtype=dtype)
    assert len(calls()) == 3


def test_kernels_run_on_cuda_alone(install, monkeypatch):
    install()
    monkeypatch.setattr(fla_sleep, "DEVICE_TYPE", "cuda")
    with FakeTensorMode():  # shapes, dtypes and devices without numbers, and without a GPU
        for device, fits in (("cuda", True), ("cpu", False), ("meta", False)):
            assert fla_sleep.fla_fits(*(torch.empty(1, 1, 1, 8, dtype=torch.half, device=device),) * 3) == fits


def test_one_token_with_gradients_goes_through_the_kernels_that_have_a_backward(install):
    install()
    inputs = [x.requires_grad_() for x in make_inputs(1)]
    torch.autograd.grad(sum(x.sum() for x in gated_delta_rule(*inputs)), inputs)
    assert calls() == ["chunks"]


def test_nothing_is_said_where_fla_is_not_installed(install, monkeypatch, caplog):
    monkeypatch.setattr(sys, "meta_path", [])
    with caplog.at_level(logging.WARNING):
        assert fla_sleep.load_kernels() is None
    assert not caplog.records


@pytest.mark.parametrize(
    "kernels, distribution, version, reason",
    [
        (KERNELS, "fla-core", "0.4.2", "ImportError: fla-core 0.4.2 is too old"),
        (KERNELS, "flash-linear-attention", "0.1.2", "ImportError: flash-linear-attention 0.1.2 is too old"),
        (KERNELS, None, "", "ImportError: its version is unknown"),
        ("import surely_not_there", "fla-core", "0.6.0", "ModuleNotFoundError: No module named 'surely_not_there'"),
        ("raise ValueError('key contains BT')", "fla-core", "0.5.2", "ValueError: key contains BT"),
        ("raise RuntimeError('0 active drivers')", "fla-core", "0.6.0", "RuntimeError: 0 active drivers"),
        ("chunk_gated_delta_rule = print", "fla-core", "0.6.0", "has no attribute 'fused_recurrent_gated_delta_rule'"),
    ],
    ids=["old", "older", "unknown", "incomplete", "clash", "no driver", "renamed"],
)
def test_what_cannot_be_used_costs_one_warning(install, caplog, kernels, distribution, version, reason):
    install(kernels, distribution, version)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            output, state = run()
    assert output.dtype == torch.bfloat16 and state.dtype == torch.float32
    (record,) = caplog.records
    assert "`fla` is installed but cannot be used" in record.message and reason in record.message


def test_wide_keys_stay_in_torch_with_one_warning(install, caplog):
    install()
    with caplog.at_level(logging.WARNING):
        run(key_dim=256)
        assert calls() == ["chunks"] and not caplog.records
        for tokens in (1, 3, 3):
            run(key_dim=320, tokens=tokens)
        torch.compile(gated_delta_rule, backend="eager", fullgraph=True)(*make_inputs(1, key_dim=320))
    assert calls() == ["chunks"]
    (record,) = caplog.records
    assert "at most 256 dimensions, and this model's have 320" in record.message


# Compiled.


def test_a_compiled_call_is_one_graph(install):
    install()
    compiled = torch.compile(gated_delta_rule, backend="aot_eager", fullgraph=True)
    for tokens, kernel, rule in (
        (1, "one token", recurrent_gated_delta_rule),
        (3, "chunks", chunked_gated_delta_rule),
    ):
        torch._dynamo.reset()
        counters.clear()
        inputs = make_inputs(tokens)
        for read in (inputs, inputs[:-1]):  # with S, and from zeros
            with torch.no_grad():
                found, expected = compiled(*read), rule(*read[:4], read[4].bfloat16(), *read[5:])
            torch.testing.assert_close(found, expected)
            assert calls()[-1] == kernel
        assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_the_compiler_is_told_the_truth(install):
    """Shapes, dtypes and strides of the results, and that no input is written to."""
    install()
    for tokens in (1, 3):
        with torch.no_grad():
            torch.library.opcheck(
                torch.ops.modeling_sleep.fla_gated_delta_rule.default,
                tuple(make_inputs(tokens)),
                test_utils=("test_schema", "test_faketensor"),
            )


@pytest.mark.programs
def test_compiled_tokens_break_no_graph(install):
    config = SleepConfig.from_preset("tiny", num_hidden_layers=2, window_size=8)
    model, ids = SleepForCausalLM(config).bfloat16().eval(), torch.randint(1, config.vocab_size, (1, 19))
    options = dict(min_new_tokens=20, max_new_tokens=20, do_sample=False, sleep_passes=2)
    options |= dict(return_dict_in_generate=True, output_scores=True)
    full_graphs = dict(compile_config=CompileConfig(backend="eager", mode="default", fullgraph=True))
    model.generate(ids, **options, **full_graphs)
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()

    install()
    expected = model.generate(ids, **options)
    eager = calls().copy()
    calls().clear()
    found = model.generate(ids, **options, **full_graphs)
    assert calls() == eager and {*eager} == {"one token", "chunks"}
    torch.testing.assert_close(found.scores, expected.scores)
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


# Under Triton's interpreter.


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """What interpreted_fla.py has found."""
    missing = [name for name in ("triton", "fla", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"without {', '.join(missing)}: `make test-fla` fetches it and runs this")
    program = Path(__file__).with_name("interpreted_fla.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"the interpreter does not run these kernels: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_kernels_agree_with_the_definition(interpreted):
    """Outputs, states and gradients, key and value dims that differ, grouped heads, masked tokens, a whole model."""
    assert len(interpreted["errors"]) == 24
    for case, errors in interpreted["errors"].items():
        for result, error in errors.items():
            in_float32 = result == "state" and case.startswith("one token") and "gradients" not in case
            assert error < (1e-6 if in_float32 else 4e-3 if case == "whole model" else 2.5e-3), (case, result)


def test_masked_tokens_leave_the_state_bit_for_bit(interpreted):
    assert len(interpreted["state is kept"]) == 6
    assert all(interpreted["state is kept"].values()), interpreted["state is kept"]


def test_kernels_compile_into_whole_graphs(interpreted):
    assert len(interpreted["compiled whole"]) == 2
    assert all(interpreted["compiled whole"].values()), interpreted["compiled whole"]
