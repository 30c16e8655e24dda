"""PEFT finds its way in our models: default target modules, the memory's projections, and adapters row by row.

Our linear layers carry Llama's names, so what PEFT targets in Llama, it may target here. Attention and memories share
these names: `LoraConfig(task_type="CAUSAL_LM")` adapts queries and values of both. What belongs to memories alone is
named by `memory_target_modules`.

PEFT also tells its layers, by hooks, what it knows of the whole batch: an adapter for each row, a number for each
token. A layer here reads a window of some rows. What is told row by row is cut to these (`adapters_of`); what is told
token by token would adapt the wrong ones, and is refused (`check_adapters`).
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from .configuration_sleep import SleepConfig
from .plan_sleep import Tokens, Wave


# Every `nn.Linear` of a Gated DeltaNet layer: ours, and those of families (`base_config`).
MEMORY_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj")
RECALL_PROJECTIONS = ("pool_q_proj", "pool_k_proj", "q_proj", "k_proj", "v_proj", "b_proj", "g_proj", "o_proj")
HINDSIGHT_PROJECTIONS = ("hindsight_q_proj", "hindsight_k_proj")
FAMILY_MEMORY_PROJECTIONS = {
    "olmo_hybrid": MEMORY_PROJECTIONS,
    "qwen3_5_text": ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba", "out_proj"),
}

# What hooks of PEFT tell a layer: something for each row of the batch (LoRA, RoAd, GLoRA; Poly), or for each token.
TOLD_BY_ROW = ("adapter_names", "task_ids")
TOLD_BY_TOKEN = {
    "alora_offsets": "aLoRA counts tokens from a text's end. Leave out `alora_invocation_tokens`, which gives LoRA.",
    "scalings": "X-LoRA weighs its adapters for every token of a text. Choose one of them, or one for each row by "
    "`adapter_names`.",
}


def memory_target_modules(config: SleepConfig) -> list[str]:
    """
    Name the linear projections of Gated DeltaNet layers and recall memories, which write and read the fast weights.

    Parameters
    ----------
    config : SleepConfig
        Of the model to adapt, with or without a head.

    Returns
    -------
    list[str]
        For `LoraConfig(target_modules=...)`: ends of the modules' names that no attention layer has.

    Raises
    ------
    ValueError
        If the model has no such layer.
    """
    memories = [i for i, layer_type in enumerate(config.layer_types) if layer_type == "recall_memory"]
    projections = RECALL_PROJECTIONS + (HINDSIGHT_PROJECTIONS if config.recall_hindsight else ())
    recall = [f"layers.{i}.{name}" for i in memories for name in projections]
    if "linear_attention" not in config.layer_types:
        if recall:
            return recall
        raise ValueError("A model of attention layers alone has no memory to adapt: choose other `target_modules`.")
    names = MEMORY_PROJECTIONS
    if config.base_config is not None:
        names = FAMILY_MEMORY_PROJECTIONS[config.base_config["model_type"]]
    return [*(f"linear_attn.{name}" for name in names), *recall]


def register_target_modules() -> None:
    """
    Let PEFT know our models wherever it knows Llama's modules; what it knows of ours already stays as it is.

    Its tables are the only place where PEFT looks for the modules of a model type, so it has to be done at import.
    """
    try:
        from peft.utils import constants
    except ImportError:  # it is optional
        return
    for name, mapping in vars(constants).items():
        # Also IA3's FEEDFORWARD_MODULES, but not prefix tuning: a sleep would drop its keys and values.
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING") and "llama" in mapping:
            mapping.setdefault(SleepConfig.model_type, mapping["llama"])


def check_adapters(model: nn.Module, is_first: bool, waves: list[Wave], tokens: Tokens) -> None:
    """
    Refuse what counts the tokens of a text in what a layer sees: with the first tokens of a text, and wherever a call
    sleeps. Of a token in between it takes no time.

    Parameters
    ----------
    model : SleepModel
    is_first : bool
        Whether the call's tokens are the first of their texts.
    waves : list[Wave]
        The call's.
    tokens : Tokens
        The call's.

    Raises
    ------
    ValueError
        If aLoRA, X-LoRA or, unless a layer sees the call's columns as they are, EVA's own choice of tokens is at work.
    """
    if not (is_first or len(waves) > 1 or any(wave.sleepers != () for wave in waves)):
        return
    if (module := _first_of_peft(model)) is None:
        return
    for hook in module._forward_pre_hooks.values():
        for name in getattr(hook, "keywords", {}):  # PEFT's are partial functions
            if name in TOLD_BY_TOKEN:
                raise ValueError(f"A layer here sees a window instead of a text: {TOLD_BY_TOKEN[name]}")
    eva, in_pieces = sys.modules["peft.tuners.lora.eva"], len(waves) > 1 or tokens.columns is not None
    for hook in module._forward_hooks.values() if in_pieces else ():
        if getattr(hook, "_prepare_layer_inputs_fn", None) is eva.prepare_layer_inputs_fn_language_modeling:
            raise ValueError(
                "A layer here sees a window instead of a text, in which EVA would look for the text's tokens. Build "
                "the model anew, as EVA's hooks stay in this one, and call `initialize_lora_eva_weights` or "
                "`get_eva_state_dict` with `prepare_model_inputs_fn=None` and `prepare_layer_inputs_fn=None`, and "
                "with batches whose texts are equally long, so that all that a layer sees is tokens."
            )


def adapters_of(model: nn.Module, rows: tuple[int, ...] | None) -> AbstractContextManager:
    """
    Within it, `model` reads these rows of the batch alone, None for all, each with the adapter that PEFT has for it.

    May be nested: `rows` then are rows of what the outer one leaves.
    """
    module = None if rows is None else _first_of_peft(model)
    return _only(model, rows) if module is not None and module._forward_pre_hooks else nullcontext()


@contextmanager
def _only(model: nn.Module, rows: tuple[int, ...]) -> Iterator[None]:
    def choose(module, args, kwargs):
        told = {name: kwargs[name] for name in TOLD_BY_ROW if kwargs.get(name) is not None}
        chosen = {
            name: values[list(rows)] if isinstance(values, torch.Tensor) else [values[i] for i in rows]
            for name, values in told.items()
        }
        return args, {**kwargs, **chosen}

    # Behind PEFT's hooks, as torch calls them in the order in which they came.
    hooked = [module for module in model.modules() if module._forward_pre_hooks]
    handles = [module.register_forward_pre_hook(choose, with_kwargs=True) for module in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_of_peft(model: nn.Module) -> nn.Module | None:
    """The first module that PEFT has adapted or listens to: it tells and asks all of them the same."""
    if torch.compiler.is_compiling() or "peft" not in sys.modules:
        return None
    tuners, eva = sys.modules["peft.tuners.tuners_utils"], sys.modules["peft.tuners.lora.eva"]
    for module in model.layers.modules():
        if isinstance(module, tuners.BaseTunerLayer):
            return module
        hooks = module._forward_hooks
        if hooks and any(isinstance(hook, eva.HashHook | eva.SVDHook) for hook in hooks.values()):
            return module
    return None
