"""A linear map of low rank: two thin matrices instead of a large one."""

from collections import OrderedDict

import torch
from torch import nn


class LowRankLinear(nn.Sequential):
    """
    up(down(x)) with `rank` numbers in between, and a bias behind.

    Parameters
    ----------
    in_features, out_features, rank : int
    """

    def __init__(self, in_features: int, out_features: int, rank: int):
        down, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features)
        super().__init__(OrderedDict(down=down, up=up))
        self.in_features, self.out_features, self.rank = in_features, out_features, rank

    @property
    def bias(self) -> nn.Parameter:
        """(out_features,)."""
        return self.up.bias

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, inputs: torch.Tensor, rank: int) -> "LowRankLinear":
        """
        The map of this rank that is nearest to `linear` in the mean square over some inputs: what it gives, projected
        onto its first principal components.

        Parameters
        ----------
        linear : nn.Linear
            With a bias.
        inputs : torch.Tensor
            (..., in_features).
        rank : int
        """
        weight, bias = linear.weight.double(), linear.bias.double()
        given = inputs.flatten(0, -2).double() @ weight.T
        mean = given.mean(0)
        directions = torch.linalg.eigh((given - mean).T @ (given - mean)).eigenvectors[:, -rank:]
        low = cls(linear.in_features, linear.out_features, rank).to(linear.weight)
        low.down.weight.copy_(directions.T @ weight)
        low.up.weight.copy_(directions)
        low.up.bias.copy_(bias + mean - directions @ (directions.T @ mean))
        return low
