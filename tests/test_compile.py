"""torch.compile: no graph is broken, and every full window and pass runs the same few."""

import pytest
import torch
from torch._dynamo.utils import counters

from modeling_sleep import SleepConfig, SleepForCausalLM


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def losses_and_gradients(model, call, ids, passes: int = 3) -> list[torch.Tensor]:
    model.zero_grad()
    loss = call(ids, labels=ids, sleep_passes=passes, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def build(num_layers: int = 4) -> tuple[SleepForCausalLM, torch.Tensor]:
    torch.manual_seed(0)
    config = SleepConfig.from_preset("tiny", num_hidden_layers=num_layers, window_size=8)
    return SleepForCausalLM(config).double().train(), torch.randint(1, config.vocab_size, (2, 40))


def test_the_whole_model_is_one_graph():
    model, ids = build(num_layers=2)
    ids = ids[:, :16]
    expected = losses_and_gradients(model, model, ids, passes=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    for result, wanted in zip(losses_and_gradients(model, compiled, ids, passes=2), expected, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("train", [True, False])
def test_compiled_layers_run_four_graphs_whatever_the_text(train):
    """Attention; Gated DeltaNet without S, with S, and as the end of the last pass asleep. Layers share them."""
    model, ids = build()
    model.train(train)
    with torch.set_grad_enabled(train):
        expected = model(ids, sleep_passes=3).logits
        for layer in model.model.layers:
            layer.compile(backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(model(ids, sleep_passes=3).logits, expected)
        assert counters["stats"]["unique_graphs"] == 4
        model(ids[:, :24], sleep_passes=2)
        assert counters["stats"]["unique_graphs"] == 4
    if train:
        compiled = losses_and_gradients(model, model, ids)
        model, ids = build()
        for result, wanted in zip(compiled, losses_and_gradients(model, model, ids), strict=True):
            torch.testing.assert_close(result, wanted)


def test_generation_through_compiled_layers_stops_compiling():
    """Lengths that differ, of prompts and of keys, become dynamic: later texts and tokens need no more graphs."""
    model, ids = build()
    model.eval()
    options = dict(min_new_tokens=20, max_new_tokens=20, do_sample=False, sleep_passes=3)
    prompts = [ids[:1, :length] for length in (19, 29, 22)]
    expected = [model.generate(prompt, **options) for prompt in prompts]
    for layer in model.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=16):  # the default 8 are not enough
        for prompt, wanted in zip(prompts, expected, strict=True):
            torch.testing.assert_close(model.generate(prompt, **options), wanted)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2] <= 16
