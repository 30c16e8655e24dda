"""Queries and keys of low rank: the map itself, how a taught memory is cut to it, and what is saved of it."""

import pytest
import torch
from test_recall_memory import make_config
from torch import nn

from modeling_sleep.low_rank_linear import LowRankLinear
from modeling_sleep.recall_memory_sleep import RecallMemoryLayer
from modeling_sleep.teach.key_rank import set_rank
from modeling_sleep.teach.teaching import rank_to_cut_to


def make_memory(**fields):
    torch.manual_seed(0)
    memory = RecallMemoryLayer(make_config(recall_key_dim=24, **fields), 2)
    for parameter in (*memory.q_proj.parameters(), *memory.k_proj.parameters()):
        nn.init.normal_(parameter)
    return memory


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_map_of_this_rank_is_nearer(rank):
    """Against the best approximation of what the map gives about its mean, by singular values (Eckart and Young)."""
    torch.manual_seed(0)
    linear, inputs = nn.Linear(12, 8), torch.randn(4, 25, 12) @ torch.randn(12, 12) + 1
    low = LowRankLinear.of(linear, inputs, rank)
    expected = linear(inputs).flatten(0, 1).double()
    missed = (low(inputs).flatten(0, 1).double() - expected).square().sum()
    left_out = torch.linalg.svdvals(expected - expected.mean(0))[rank:].square().sum()
    torch.testing.assert_close(missed, left_out, atol=1e-4, rtol=1e-3)
    assert (low.in_features, low.out_features, low.rank) == (12, 8, rank)


@pytest.mark.parametrize("rank, same", [(24, True), (4, False)])
def test_a_cut_memory_asks_as_before_if_nothing_is_lost(rank, same):
    memory = make_memory().requires_grad_(False)
    memory.q_proj.requires_grad_(True)
    context, known = torch.randn(2, 40, memory.q_proj.in_features), torch.randn(50, memory.k_proj.in_features)
    before = memory.query(context), memory.key(known)
    set_rank(memory, rank, context, known)
    assert memory.config.recall_key_rank == rank
    assert memory.q_proj.up.weight.requires_grad and not memory.k_proj.down.weight.requires_grad
    for ours, theirs in zip((memory.query(context), memory.key(known)), before):
        cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert (cosine > 1 - 1e-5) == same and cosine > 0.2


def test_what_may_be_cut():
    memory = make_memory()
    assert [rank_to_cut_to(memory, rank) for rank in (None, 0, 7)] == [6, 0, 7]
    with pytest.raises(ValueError, match=r"from 1 to `recall_key_dim` \(24\), or 0 to cut nothing, got 25"):
        rank_to_cut_to(memory, 25)
    memory = make_memory(recall_key_rank=5)
    assert [rank_to_cut_to(memory, rank) for rank in (None, 0, 5)] == [0, 0, 0]
    with pytest.raises(ValueError, match="`key_rank` is 7, and the maps of this memory are of rank 5 already"):
        rank_to_cut_to(memory, 7)
