"""PEFT finds its way in our models: default target modules for its methods, and the names of the memory's projections.

Our linear layers carry Llama's names, so what PEFT targets in Llama, it may target here. Attention and memories share
these names: `LoraConfig(task_type="CAUSAL_LM")` adapts queries and values of both. What belongs to memories alone is
named by `memory_target_modules`.
"""

from .configuration_sleep import SleepConfig


# Every `nn.Linear` of a Gated DeltaNet layer: ours, and those of families (`base_config`).
MEMORY_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj")
RECALL_PROJECTIONS = ("pool_q_proj", "pool_k_proj", "q_proj", "k_proj", "v_proj", "b_proj", "g_proj", "o_proj")
FAMILY_MEMORY_PROJECTIONS = {
    "olmo_hybrid": MEMORY_PROJECTIONS,
    "qwen3_5_text": ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba", "out_proj"),
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
    recall = [f"layers.{i}.{name}" for i in memories for name in RECALL_PROJECTIONS]
    if "linear_attention" not in config.layer_types:
        if recall:
            return recall
        raise ValueError("A model of attention layers alone has no memory to adapt: choose other `target_modules`.")
    names = MEMORY_PROJECTIONS
    if config.base_config is not None:
        names = FAMILY_MEMORY_PROJECTIONS[config.base_config["model_type"]]
    return [*(f"linear_attn.{name}" for name in names), *recall]


def register_target_modules() -> None:
    """Let PEFT know our models wherever it knows Llama's modules; what it knows of ours already stays as it is."""
    try:
        from peft.utils import constants
    except ImportError:  # it is optional
        return
    for name, mapping in vars(constants).items():
        # Also IA3's FEEDFORWARD_MODULES, but not prefix tuning: a sleep would drop its keys and values.
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING") and "llama" in mapping:
            mapping.setdefault(SleepConfig.model_type, mapping["llama"])
