"""Muon for the hidden matrices and AdamW for everything else, in one optimizer that `Trainer(optimizers=...)` takes.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix. That suits matrices which map hidden states to
hidden states; embeddings, the output head, convolutions, norms, gates' biases and other vectors stay with AdamW.
Both rules are `torch.optim`'s (Muon needs torch >= 2.9), but for the step of Muon, which takes matrices of one shape
together and does not leave float32 on a CPU: there bfloat16 took up to half of the time of training.
"""

from collections import defaultdict

import torch
from torch import nn


def split_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """
    Say which trainable parameter goes to which rule.

    Parameters
    ----------
    model : nn.Module
        Any model; `get_output_embeddings` is asked for the head where there is one.

    Returns
    -------
    dict[str, dict[str, nn.Parameter]]
        Names and parameters under `"muon"` and `"adamw"`. Each parameter appears once; a head tied to the embedding
        goes by the embedding's name.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for_adamw = {
        id(parameter)
        for name, module in model.named_modules()
        if module is head
        or isinstance(module, (nn.Embedding, nn.Conv1d))
        or name.split(".")[-1] in ("embed_tokens", "lm_head")
        for parameter in module.parameters()
    }
    split = {"muon": {}, "adamw": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_hidden_matrix = parameter.ndim == 2 and id(parameter) not in for_adamw
            split["muon" if is_hidden_matrix else "adamw"][name] = parameter
    return split


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """
    Draw the singular values of matrices near to 1, by the Newton-Schulz iteration of Jordan et al., "Muon" (2024).

    Parameters
    ----------
    matrices : torch.Tensor
        `(..., rows, columns)`.
    coefficients : tuple[float, float, float]
        a, b, c of the quintic `a X + b (X X^T) X + c (X X^T)^2 X`.
    steps : int
        How many times it is applied.
    eps : float
        Least Frobenius norm to divide by.

    Returns
    -------
    torch.Tensor
        `(..., rows, columns)`; in bfloat16, as in torch's Muon, where that is fast, and in float32 on a CPU.
    """
    a, b, c = coefficients
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with its arguments and its state, whose step is that of this file."""

    @torch.no_grad()
    def step(self, closure=None):
        """Update every matrix that has a gradient; `closure`, if given, is called once and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict):
        """One step for matrices of the same shape."""
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = orthogonalize(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])

        rows, columns = parameters[0].shape
        if group["adjust_lr_fn"] == "match_rms_adamw":  # Liu et al., "Muon is Scalable for LLM Training" (2025)
            ratio = 0.2 * max(rows, columns) ** 0.5
        else:
            ratio = max(1, rows / columns) ** 0.5
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * ratio)


class MuonAdamW(torch.optim.Optimizer):
    """
    [`Muon`] and `torch.optim.AdamW` behind one optimizer.

    The two rules work on this object's own `param_groups` and `state`, not on copies. A learning-rate scheduler hence
    scales both, and one state dict holds both.

    Parameters
    ----------
    model : nn.Module
        The model to train; [`split_parameters`] says which parameter goes where.
    lr_muon, lr_adamw : float
        Learning rates of the two rules; the paper's for Rule 110 by default.
    weight_decay : float
        Decoupled weight decay of everything but vectors (norms, biases, time constants), which are not decayed.
    momentum, nesterov, ns_steps, adjust_lr_fn
        Muon's, see `torch.optim.Muon`. With `"match_rms_adamw"` its updates are as large as AdamW's typically are at
        the same learning rate, whatever the shape of the matrix; `"original"` is Keller Jordan's scaling.
    betas, eps
        AdamW's, see `torch.optim.AdamW`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr_muon: float = 2e-3,
        lr_adamw: float = 5e-5,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        split = split_parameters(model)
        matrices = list(split["muon"].values())
        tables = [p for p in split["adamw"].values() if p.ndim > 1]
        vectors = [p for p in split["adamw"].values() if p.ndim <= 1]
        muon = {
            "rule": "muon",
            "lr": lr_muon,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        adamw = {"rule": "adamw", "lr": lr_adamw, "betas": betas, "eps": eps}
        groups = [
            {"params": matrices, "weight_decay": weight_decay, **muon},
            {"params": tables, "weight_decay": weight_decay, **adamw},
            {"params": vectors, "weight_decay": 0.0, **adamw},
        ]
        super().__init__([group for group in groups if group["params"]], defaults={})
        self._bind_rules()

    def __setstate__(self, state: dict):
        # `load_state_dict` ends here too, having replaced both the groups and the state.
        super().__setstate__(state)
        self._bind_rules()

    def _bind_rules(self):
        """Hand the live groups and the live state to the two rules."""
        self._rules = []
        for name, rule_class in (("muon", Muon), ("adamw", torch.optim.AdamW)):
            groups = [group for group in self.param_groups if group["rule"] == name]
            if groups:
                rule = rule_class(groups)
                rule.state = self.state
                self._rules.append(rule)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter; `closure`, if given, is called once and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for rule in self._rules:
            rule.step()
        return loss
