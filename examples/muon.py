"""Muon for the hidden matrices and AdamW for everything else, in one optimizer that `Trainer(optimizers=...)` takes.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix. That suits matrices which map hidden states to
hidden states; embeddings, the output head, convolutions, norms, gates' biases and other vectors stay with AdamW.
Both rules are `torch.optim`'s own (Muon needs torch >= 2.9).
"""

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


class MuonAdamW(torch.optim.Optimizer):
    """
    `torch.optim.Muon` and `torch.optim.AdamW` behind one optimizer.

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
        for name, rule_class in (("muon", torch.optim.Muon), ("adamw", torch.optim.AdamW)):
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
