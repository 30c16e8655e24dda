"""Multi-query associative recall and its kin: `key value` pairs, then keys whose values are to be told.

    mqar            each key has one value (arXiv 2312.04927)
    forgetting      half of the keys are told again with another value, and the last one counts
    compositional   two keys, all pairs of some of either, have one value together

Parameters and places are those of zoology, https://github.com/HazyResearch/zoology, in code of our own: vocabulary of
8,192, the first half keys (or two thirds, of two kinds), the rest values; the gaps between the pairs and the questions
follow a power law with a = 0.01; all places that are left hold random tokens. The answer is no token of the text: it
is predicted where the key stands (in `compositional`, the second key).
"""

import dataclasses
import math

import torch


VOCABULARY = 8192
POWER = 0.01
KINDS = ("mqar", "forgetting", "compositional")


@dataclasses.dataclass(frozen=True)
class Segment:
    """So many examples of one length."""

    pairs: int
    length: int
    examples: int


# What zoology trains and tests on, by pairs, length and examples.
TRAIN = [Segment(4, 64, 100_000), Segment(8, 128, 20_000), *(Segment(n, 256, 20_000) for n in (16, 32, 64))]
TEST = [Segment(n, max(64, 4 * n), 1_000) for n in (4, 8, 16, 32, 64, 128, 256)]


def draw(
    kind: str, pairs: int, length: int, examples: int, generator: torch.Generator, vocabulary: int = VOCABULARY
) -> dict[str, torch.Tensor]:
    """
    Examples of one kind.

    Returns
    -------
    dict of str to torch.Tensor
        `input_ids` (examples, length) and `labels`, shifted as transformers' losses want them: the answer to what
        stands at place p is `labels[:, p + 1]`; -100 elsewhere.

    Raises
    ------
    ValueError
        If the kind is unknown, the pairs and questions do not fit, or `compositional` has no square number of pairs.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no recall of the kind {kind!r}; there are {', '.join(KINDS)}.")
    if kind == "compositional":
        side = math.isqrt(pairs)
        if side * side != pairs:
            raise ValueError(f"`compositional` asks for all pairs of two sets of keys: a square number, not {pairs}.")
        third = vocabulary // 3
        first, second = (distinct(examples, side, begin, third - 1, generator) for begin in (1, third))
        keys = torch.stack([first.repeat_interleave(side, 1), second.repeat(1, side)], dim=-1)  # (examples, pairs, 2)
        keys = keys.gather(1, order(examples, pairs, generator).unsqueeze(-1).expand(-1, -1, 2))
        values = distinct(examples, pairs, 2 * third, vocabulary - 2 * third, generator)
    else:
        half = vocabulary // 2
        keys = distinct(examples, pairs, 1, half - 1, generator).unsqueeze(-1)  # (examples, pairs, 1)
        values = distinct(examples, pairs, half, half, generator)
    told = torch.cat([keys, values.unsqueeze(-1)], dim=-1)
    if kind == "forgetting":
        changed = order(examples, pairs, generator)[:, : pairs // 2]
        # Another value than any of before: the next ones of a second draw that is disjoint by construction.
        shift = torch.randint(1, half, (examples, pairs // 2), generator=generator)
        later = half + (values.gather(1, changed) - half + shift) % half
        values = values.scatter(1, changed, later)
        again = torch.cat([keys.gather(1, changed.unsqueeze(-1)), later.unsqueeze(-1)], dim=-1)
        told = torch.cat([told, again], dim=1)
    told = told.flatten(1)
    width = keys.shape[-1]
    stride, begin = width + 1, told.shape[1]
    room = (length - begin) // stride
    if room < pairs:
        raise ValueError(f"{pairs} pairs and their questions need {begin + stride * pairs} tokens, not {length}.")
    weights = torch.arange(1, room + 1, dtype=torch.float64) ** (POWER - 1)
    gaps = torch.multinomial(weights.expand(examples, -1), pairs, generator=generator)
    input_ids = torch.randint(vocabulary, (examples, length), generator=generator)
    input_ids[:, :begin] = told
    labels = torch.full_like(input_ids, -100)
    for place in range(width):
        input_ids.scatter_(1, begin + stride * gaps + place, keys[..., place])
    labels.scatter_(1, begin + stride * gaps + width, values)
    return {"input_ids": input_ids, "labels": labels}


def order(examples: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """An order of its own for each example: (examples, count)."""
    return torch.rand(examples, count, generator=generator).argsort(1)


def distinct(examples: int, count: int, begin: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Tokens from `begin` on, of `size` many, no two of an example the same: (examples, count)."""
    if count > size:
        raise ValueError(
            f"{count} different tokens are asked for, of {size}: take a larger vocabulary or fewer pairs."
        )
    return begin + torch.rand(examples, size, generator=generator).topk(count, dim=1).indices
