"""A taught memory made small: its maps of queries and keys, which are most of it, are cut to a low rank.

What they give of lessons is projected onto its first principal components. A memory that is of low rank from the start
learns to find less; one that is cut once its keys are learned loses next to nothing, and a few steps bring it back.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..low_rank_linear import LowRankLinear
from ..recall_memory_sleep import RecallMemoryLayer
from .lessons import Lesson, story_tensors
from .reading import context_at, gates_of


def cut_keys(memory: RecallMemoryLayer, learned: Sequence[Lesson], embeddings: torch.Tensor, rank: int) -> None:
    """
    Cut the maps of queries and keys, in place, to what matters in these lessons: where they ask, and where the memory
    writes.

    Parameters
    ----------
    memory : RecallMemoryLayer
        With maps of any rank.
    learned : Sequence[Lesson]
    embeddings : torch.Tensor
        (vocab_size, hidden_size).
    rank : int
    """
    contexts, knowns = [], []
    with torch.no_grad():
        for lesson in learned:
            own = [(lesson, i) for i in range(len(lesson.story))]
            known, _, beta = gates_of(memory, story_tensors([own], embeddings, memory.v_proj.weight.dtype))
            knowns.append(known[beta > 0])
            if lesson.asked:
                columns = [[sought.column for sought in x.sought()] for x in lesson.asked]
                context, is_any = context_at(memory, [x.read for x in lesson.asked], columns)
                contexts.append(context[is_any])
    set_rank(memory, rank, torch.cat(contexts), torch.cat(knowns))


def set_rank(
    memory: RecallMemoryLayer, rank: int, contexts: torch.Tensor | None = None, knowns: torch.Tensor | None = None
) -> None:
    """Maps of this rank, in place: cut by what they are given, (tokens, ...), or to be loaded."""
    for name, inputs in (("q_proj", contexts), ("k_proj", knowns)):
        whole: nn.Linear = getattr(memory, name)
        if inputs is None:
            low = LowRankLinear(whole.in_features, whole.out_features, rank).to(whole.weight)
        else:
            low = LowRankLinear.of(whole, inputs, rank)
        setattr(memory, name, low.requires_grad_(whole.weight.requires_grad))
    memory.config.recall_key_rank = rank
