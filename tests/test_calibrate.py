"""What a recall memory begins with."""

import pytest
import torch
import torch.nn.functional as F
from test_recall_memory import make_config

from modeling_sleep import SleepForCausalLM, calibrate_sleep
from modeling_sleep.calibrate_sleep import calibrate


def test_values_of_words_differ_though_embeddings_are_alike():
    """What all embeddings share, and what most of them do, is no more of a value than what tells two words apart."""
    torch.manual_seed(0)
    model = SleepForCausalLM(make_config(vocab_size=200, recall_value_dim=16)).eval()
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings.add_(1.5 * embeddings.std())
    calibrate(model.model, torch.randint(200, (16, 6)))
    with torch.no_grad():
        values = model.model.layers[2].v_proj(embeddings)
        alike = [F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).T for x in (embeddings, values)]
    assert alike[0].mean() > 0.6 and alike[1].mean() < 0.3
    assert values.std().item() == pytest.approx(1, rel=0.01)


def test_values_are_no_larger_than_embeddings():
    model = SleepForCausalLM(make_config(recall_value_dim=17)).eval()
    with pytest.raises(ValueError, match="`recall_value_dim` is 17, but embeddings have only 16 directions"):
        calibrate(model.model, torch.randint(40, (16, 6)))


@pytest.mark.parametrize("key_layer", [None, 1])
def test_keys_begin_with_what_they_are_made_of(monkeypatch, key_layer):
    seen = []
    monkeypatch.setattr(calibrate_sleep, "calibrate_memory", lambda memory, states, _: seen.append(torch.cat(states)))
    model, windows = SleepForCausalLM(make_config(recall_key_layer=key_layer)).eval(), torch.randint(40, (16, 6))
    calibrate(model.model, windows)
    hidden_states = model(windows, output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen, [hidden_states[2 if key_layer is None else key_layer]])


def test_keys_of_low_rank():
    """What the maps give spreads in as many directions as the rank allows."""
    torch.manual_seed(0)
    model = SleepForCausalLM(make_config(recall_key_rank=6, recall_key_dim=24)).eval()
    windows = torch.randint(40, (64, 6))
    calibrate(model.model, windows)
    memory = model.model.layers[2]
    contexts = []
    handle = memory.q_proj.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[0]))
    model(torch.cat([windows, windows], dim=1))  # the second window reads
    handle.remove()
    given = memory.q_proj(torch.cat(contexts)).flatten(0, 1)
    variance = torch.linalg.eigvalsh(given.T.cov())
    assert (variance > 1e-5).sum() == 6 and 0.1 < variance[-5:].median() < 3
    torch.testing.assert_close(memory.q_proj.up.weight.T @ memory.q_proj.up.weight, torch.eye(6))


def test_more_poolings_are_left_to_teaching():
    """They hardly differ yet, so that queries and keys begin as they do with two."""
    torch.manual_seed(0)
    two = SleepForCausalLM(make_config(recall_poolings=2, recall_hindsight=2)).eval()
    four = SleepForCausalLM(make_config(recall_poolings=4, recall_hindsight=4)).eval()
    memories = [model.model.layers[2] for model in (two, four)]
    given = {name: x for name, x in two.state_dict().items() if not name.startswith("model.layers.2.")}
    four.load_state_dict(given, strict=False)
    windows = torch.randint(40, (64, 6))
    for model in (two, four):
        calibrate(model.model, windows)
    for name in ("q_proj", "k_proj"):
        few, many = (getattr(memory, name) for memory in memories)
        size = memories[0].q_proj.in_features
        torch.testing.assert_close(many.weight[:, :size], few.weight[:, :size])
        torch.testing.assert_close(many.bias, few.bias)
        assert few.weight[:, :size].any() and not many.weight[:, size:].any() and not few.weight[:, size:].any()
