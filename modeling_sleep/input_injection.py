"""What a pass asleep is fed besides what the pass before it gave: the window itself, once more.

A looped network that sees nothing but its own features may forget what it was asked, and its residual stream grows
with every pass, so that late passes change little. Fed with its input in every pass, looped networks went on
beyond the passes of their training elsewhere ("recall", arXiv 2202.05826; arXiv 2502.05171 injects the embedded
input likewise). On our paths nothing is gained in the mean of three seeds (docs/results/paths-mini.md), so that it
is off by default.
"""

import torch
from torch import nn


class InputInjection(nn.Module):
    """
    e + g h |e| / |h|: the embeddings, and features of the pass before, which are drawn to the same length.

    Our own choice beyond arXiv 2605.26099, whose passes are fed by features alone.

    Parameters
    ----------
    hidden_size : int
    eps : float
        Added to mean squares.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))  # g

    def forward(self, hidden_states: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """What a pass begins with, (batch, length, hidden_size), of h and e of the same shape."""
        scale = self._rms(inputs_embeds) / self._rms(hidden_states)
        return inputs_embeds + self.weight * hidden_states * scale.to(hidden_states.dtype)

    def _rms(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
