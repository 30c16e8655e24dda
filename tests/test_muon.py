"""One optimizer for two rules: who gets what, and that it is the two rules, saved, restored and scheduled as one."""

import copy
import io
import pickle

import pytest
import torch
from builders import tiny_model
from torch import nn

from examples.experiments.muon import Muon, MuonAdamW, orthogonalize, split_parameters


class Plain(nn.Module):
    """A model without any of our names, its head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        hidden = self.mix(self.table(ids).mT).mT
        return self.head(hidden + self.down(self.up(hidden).tanh()))


def loss_of(model, step):
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def assert_same_weights(first, second):
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert a.equal(b), name


@pytest.mark.parametrize("tied", [False, True])
def test_split_of_a_model_that_sleeps(tied):
    model = tiny_model(tie_word_embeddings=tied)
    split = split_parameters(model)
    ids = [id(p) for part in split.values() for p in part.values()]
    assert sorted(ids) == sorted({id(p) for p in model.parameters()})
    assert "model.embed_tokens.weight" in split["adamw"]
    assert ("lm_head.weight" in split["adamw"]) is not tied
    assert all(p.ndim == 2 for p in split["muon"].values())
    assert not any(word in name for name in split["muon"] for word in ("embed", "lm_head", "norm", "conv", "bias"))
    assert {"q_proj", "o_proj", "down_proj"} <= {name.split(".")[-2] for name in split["muon"]}


def test_split_of_a_model_with_other_names():
    split = split_parameters(Plain())
    assert split["muon"].keys() == {"up.weight", "down.weight"}
    assert split["adamw"].keys() == {"table.weight", "mix.weight", "mix.bias", "up.bias", "down.bias"}


def test_each_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = tiny_model()
    model.model.layers[0].requires_grad_(False)
    optimizer = MuonAdamW(model, weight_decay=0.3)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)


def test_it_is_the_two_rules():
    torch.manual_seed(0)
    model = Plain()
    twin = copy.deepcopy(model)
    train(model, MuonAdamW(model, lr_muon=0.02, lr_adamw=0.01, weight_decay=0.1), range(5))

    split = split_parameters(twin)
    muon = Muon(split["muon"].values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in split["adamw"].values() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in split["adamw"].values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(5):
        twin.zero_grad()
        loss_of(twin, step).backward()
        muon.step()
        adamw.step()
    assert_same_weights(model, twin)


@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(6, 6), (4, 16), (16, 4)])
def test_a_step_of_muon_is_torchs(monkeypatch, shape, nesterov, adjust_lr_fn):
    # Their iteration rounds to bfloat16 on every device; exactly the same matrices orthogonalised alike, one by one.
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz",
        lambda update, coefficients, steps, eps: orthogonalize(update, coefficients, steps, eps),
    )
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    optimizer, reference = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        for i, (mine, other) in enumerate(zip(ours, theirs)):
            mine.grad = None if i == step % 3 else torch.randn(shape)  # not every matrix has a gradient every time
            other.grad = mine.grad
        optimizer.step()
        reference.step()
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


def test_muon_is_torchs_but_for_rounding():
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.zeros(24, 48))
    twin = copy.deepcopy(matrix)
    matrix.grad = twin.grad = torch.randn(24, 48)
    Muon([matrix], lr=1.0).step()
    torch.optim.Muon([twin], lr=1.0).step()
    assert (matrix - twin).norm() < 0.02 * twin.norm()


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 20), (3, 20, 5), (7, 9)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrices = 100 * torch.randn(shape)
    settings = {"coefficients": (3.4445, -4.7750, 2.0315), "steps": 5, "eps": 1e-7}
    result = orthogonalize(matrices, **settings)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3, values
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ result @ vh.mT  # diagonal, as the singular vectors stay
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1)), atol=1e-4, rtol=0)
    zero = orthogonalize(torch.zeros(shape), **settings)
    assert not zero.any()


def through_state_dict(optimizer, twin):
    """As a checkpoint does it: through a file, into a new optimizer with other settings."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    restored = MuonAdamW(twin, lr_muon=7.0, lr_adamw=7.0, momentum=0.1)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    return restored


def through_deepcopy(optimizer, twin):
    copied = copy.deepcopy(optimizer)
    old = [p for group in copied.param_groups for p in group["params"]]
    new = [p for group in MuonAdamW(twin).param_groups for p in group["params"]]
    for group in copied.param_groups:
        group["params"] = [new[[o is p for o in old].index(True)] for p in group["params"]]
    for before, after in zip(old, new):
        copied.state[after] = copied.state.pop(before)
    return copied


@pytest.mark.parametrize("way", [through_state_dict, through_deepcopy])
def test_a_restored_optimizer_goes_on_bit_for_bit(way):
    torch.manual_seed(0)
    model = Plain()
    optimizer = MuonAdamW(model, lr_muon=0.02, lr_adamw=0.01)
    train(model, optimizer, range(3))
    twin = copy.deepcopy(model)
    restored = way(optimizer, twin)
    train(model, optimizer, range(3, 6))
    train(twin, restored, range(3, 6))
    assert_same_weights(model, twin)
    saved, again = optimizer.state_dict(), restored.state_dict()
    assert saved["param_groups"] == again["param_groups"]
    torch.testing.assert_close(saved["state"], again["state"], rtol=0, atol=0)


def test_it_can_be_pickled():
    model = Plain()
    optimizer = MuonAdamW(model)
    train(model, optimizer, range(2))
    unpickled = pickle.loads(pickle.dumps(optimizer))
    unpickled.step()
    assert unpickled.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_scheduler_scales_both_rules():
    model = Plain()
    optimizer = MuonAdamW(model, lr_muon=0.02, lr_adamw=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0][step])
    train(model, optimizer, [0])
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005, 0.005]
    train(model, optimizer, [1])
    scheduler.step()
    before = copy.deepcopy(model)
    train(model, optimizer, [2])
    assert_same_weights(model, before)  # a learning rate of zero moves nothing, in either rule


def test_closure_and_zero_grad():
    model = Plain()
    optimizer = MuonAdamW(model)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    assert optimizer.step(closure).item() == loss_of(before, 0).item()
    assert calls == [True]
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_hidden_matrices():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4))
    optimizer = MuonAdamW(model)
    model(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    assert {group["rule"] for group in optimizer.param_groups} == {"adamw"}
