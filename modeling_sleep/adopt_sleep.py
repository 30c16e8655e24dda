"""Sleep for the model you already have: a pretrained causal LM becomes one that sleeps.

A model of attention layers alone is mapped onto ours, parameter by parameter, and a memory is inserted between its
layers. Within the first window nothing changes: not a logit.

    "recall"        one recall memory at 0.8 of the depth (recall_memory_sleep.py), calibrated so that it recalls
                    before any training (calibrate_sleep.py); `python -m modeling_sleep.teach` makes it good at that
    a folder        one that was taught before: the name of a memory saved by itself (adapter_sleep.py)
    "gated_delta"   Gated DeltaNet layers without an MLP, spread over the stack, as the paper did with Ouro (arXiv
                    2605.26099, section 4). Their output projections are zero: what a sleep writes is read by nobody
                    until they have been trained

A hybrid has a memory already, as Jet-Nemotron in the paper. It keeps its own decoder layers, which sleep as ours do
(see family_layers_sleep.py): families differ in their gates, norms and projections too much for one class with flags.
"""

import copy
import math
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .adapter_sleep import FIELDS, MemoryAdapter
from .calibrate_sleep import calibrate, calibration_windows, weight_of
from .configuration_sleep import SleepConfig
from .family_layers_sleep import MODULES, family_base_config, family_state_dict
from .layers_sleep import SleepDecoderLayer


logger = logging.get_logger(__name__)

# What a family has beside the fields that all of them share.
ATTENTION_FAMILIES = {
    "llama": lambda config: dict(attention_bias=config.attention_bias, mlp_bias=config.mlp_bias),
    "mistral": lambda config: {},
    "qwen2": lambda config: dict(attention_bias=True, attention_output_bias=False),
    "qwen3": lambda config: dict(attention_bias=config.attention_bias, qk_norm=True),
}
HYBRIDS = (*MODULES, "qwen3_5")  # of the last the text model, its vision left out
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "attention_dropout",
    "hidden_act",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
MEMORIES = ("recall", "gated_delta")
DEFAULTS = {"window_size": 512, "sleep_passes": 2}
# With keys that stay, a window's first token no longer sees itself alone. That is where heads with nothing to look at
# rest their attention ("attention sink", arXiv 2309.17453), so the text's first token stays for good.
ATTENTION_SINK = 1
# Where a recall memory is inserted: late enough that little is left to be run through in teaching, early enough that
# the layers behind it can use what it recalls.
RECALL_DEPTH = 0.8
# Whose input keys are made of: early enough that names and things are not merged yet into what they predict.
RECALL_KEY_DEPTH = 0.27
# What new recall memories have and those saved before had not, see recall_memory_sleep.py.
RECALL_FIELDS = {"recall_hindsight": 2, "recall_products": True, "recall_threshold": 0.5}
# Of all parameters, what the inserted layers take at most by default. The paper stays under it, too.
MEMORY_SHARE = 0.1


def adopt(
    model_class: type[PreTrainedModel],
    model_or_path: PreTrainedModel | str,
    window_size: int | None,
    sleep_passes: int | None,
    memory_layers: int | list[int] | None,
    loop_span: tuple[int, int] | None,
    memory: str | None = None,
    calibration: list[str] | list[list[int]] | None = None,
    read_out: float = 0.0,
    **kwargs,
) -> PreTrainedModel:
    """What [`SleepForCausalLM.from_causal_lm`] does and documents, for the class `model_class`."""
    adapter = None
    if memory is not None and memory not in MEMORIES:
        hub = ("token", "cache_dir", "local_files_only")
        adapter = MemoryAdapter.from_pretrained(memory, **{k: kwargs[k] for k in hub if k in kwargs})
    fields = {name: kwargs.pop(name) for name in list(kwargs) if name in SleepConfig.__annotations__}
    if isinstance(model_or_path, PreTrainedModel):
        if kwargs:
            raise TypeError(
                f"{sorted(kwargs)}: only a path takes arguments of `from_pretrained`, and this is a model."
            )
        original = model_or_path
        check_model(original)
    else:
        if "gguf_file" not in kwargs:  # say what is wrong before gigabytes are read
            names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
            check_family(AutoConfig.from_pretrained(model_or_path, **{k: kwargs[k] for k in names if k in kwargs}))
        original = AutoModelForCausalLM.from_pretrained(model_or_path, **kwargs)
        check_model(original)
        if not os.path.exists(model_or_path):
            fields.setdefault("adopted_from", str(model_or_path))

    chosen = {
        "window_size": window_size,
        "sleep_passes": sleep_passes,
        "memory_layers": memory_layers,
        "loop_span": loop_span,
    }
    chosen = fields | {name: value for name, value in chosen.items() if value is not None}
    if adapter is not None:
        adapter.check_config(original.config)
        if fixed := [name for name in chosen if name == "memory_layers" or name.startswith("recall_")]:
            raise ValueError(f"The memory {memory!r} says what {fixed} are: leave them out.")
        own = {name: adapter.config[name] for name in FIELDS}
        if chosen.get("window_overlap"):
            own["pinned_tokens"] = max(own["pinned_tokens"], ATTENTION_SINK)
        chosen = own | chosen
        memory = "recall"
    config = adopted_config(original.config, memory=memory, **{**DEFAULTS, **chosen})
    windows = None
    if adapter is None and "recall_memory" in config.layer_types:  # say what is wrong before anything is built
        tokenizer = tokenizer_of(original, kwargs)
        windows = calibration_windows(calibration, tokenizer, config.window_size, config.vocab_size)
    elif calibration is not None:
        raise ValueError("`calibration` is what a new recall memory begins with, and there is none: leave it out.")
    with torch.device("meta"):
        model = model_class(config)
    parameters = adopted_state_dict(original, config)
    if original is model_or_path:  # the caller goes on with its model, and neither is to change the other
        parameters = {name: parameter.clone() for name, parameter in parameters.items()}
    _, unexpected = model.load_state_dict(parameters, strict=False, assign=True)
    model.tie_weights()
    new = [model.model.layers[i] for i in config.memory_layers]
    if config.input_injection:
        new.append(model.model.injection)
    for module in new:
        module.to(original.dtype).to_empty(device=original.device).apply(model._init_weights)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        raise ValueError(
            f"The pretrained model is no plain {original.config.model_type!r}: it has no {missing}, but {unexpected}."
        )
    model.requires_grad_(True)
    model.generation_config = copy.deepcopy(original.generation_config)
    model.set_attn_implementation(original.config._attn_implementation)
    model.eval()
    if adapter is not None:
        adapter.put_on(model)
    elif windows is not None:
        for i in config.memory_layers:
            memory = model.model.layers[i]
            copy_norm(memory.input_layernorm, model.model.layers[i + 1 :])
            if memory.key_layernorm is not None:
                copy_norm(memory.key_layernorm, model.model.layers[config.recall_key_layer :])
        calibrate(model.model, windows, read_out)
    elif config.memory_layers:
        logger.warning_once(
            f"Layers {config.memory_layers} are new, and what they remember is not read yet: train them before "
            f"expecting anything from a text of more than {config.window_size} tokens."
        )
    return model


def adopted_config(
    original: PreTrainedConfig,
    window_size: int,
    sleep_passes: int,
    memory_layers: int | list[int] | None = None,
    loop_span: tuple[int, int] | None = None,
    memory: str | None = None,
    **fields,
) -> SleepConfig:
    """
    The configuration of a pretrained model: one of attention layers with a memory inserted, a hybrid with or without.

    Parameters
    ----------
    original : PreTrainedConfig
    window_size, sleep_passes, memory_layers, loop_span, memory :
        As of [`SleepForCausalLM.from_causal_lm`].
    **fields :
        Other fields of [`SleepConfig`].

    Returns
    -------
    SleepConfig

    Raises
    ------
    ValueError
        If our layers cannot be what the model's are; the message says what is missing.
    """
    check_family(original)
    fields = {"window_size": window_size, "sleep_passes": sleep_passes, "loop_span": loop_span, **fields}
    is_hybrid = original.model_type not in ATTENTION_FAMILIES
    recalls = memory == "recall" or (memory is None and not is_hybrid)
    if recalls and not is_hybrid:
        fields.setdefault("window_overlap", default_overlap(original, window_size))
    if fields.get("window_overlap"):
        fields.setdefault("pinned_tokens", ATTENTION_SINK)
    if is_hybrid:
        base_config = family_base_config(original)
        num_layers, fields = base_config["num_hidden_layers"], {"base_config": base_config, **fields}
        if not recalls:
            if memory_layers is not None or memory is not None:
                raise ValueError(
                    f"A {original.model_type!r} has Gated DeltaNet layers of its own: leave `memory` and "
                    '`memory_layers` out, or insert a recall memory beside them with `memory="recall"`.'
                )
            return SleepConfig(**fields)
    else:
        kept = fields.get("window_overlap", 0) + fields.get("pinned_tokens", 0)
        check_attention(original, window_size, kept)
        num_layers = original.num_hidden_layers
        fields = {
            **{name: copy.deepcopy(getattr(original, name)) for name in SHARED_FIELDS},
            **ATTENTION_FAMILIES[original.model_type](original),
            "head_dim": getattr(original, "head_dim", None),
            **fields,
            "rope_parameters": adopted_rope(original, window_size + kept),
        }
    if recalls:
        fields = RECALL_FIELDS | fields
    if memory_layers is None and recalls:
        memory_layers = [round(RECALL_DEPTH * num_layers)]
    elif memory_layers is None:
        memory_layers = default_number_of_memory_layers(num_layers, fields)
    if isinstance(memory_layers, int):
        memory_layers = spread(memory_layers, num_layers)
    total = num_layers + len(memory_layers)
    if sorted(set(memory_layers)) != sorted(memory_layers) or not all(0 <= i < total for i in memory_layers):
        raise ValueError(
            f"`memory_layers` are places in the new stack of {num_layers} + {len(memory_layers)} layers: different "
            f"numbers from 0 to {total - 1}, got {memory_layers}."
        )
    fields["memory_layers"] = sorted(memory_layers)
    if recalls and loop_span is None:
        fields["loop_span"] = (total, total)  # a layer that was not made for it is not fed its own features
        key_layer = round(RECALL_KEY_DEPTH * num_layers)
        if key_layer < min(memory_layers):
            fields.setdefault("recall_key_layer", key_layer)
    if not is_hybrid:
        memory_type = "recall_memory" if recalls else "linear_attention"
        fields["layer_types"] = [memory_type if i in memory_layers else "sleep_attention" for i in range(total)]
        fields["num_hidden_layers"] = total
    return SleepConfig(**fields)


def adopted_rope(original: PreTrainedConfig, span: int) -> dict:
    """
    The rotary parameters of `original`, as they are within a window and the tokens kept before it: a `span` of tokens.

    Raises
    ------
    ValueError
        If its frequencies change with the length of the text, and the span is longer than what they begin with.
    """
    rope = dict(original.rope_parameters)
    longest = original.max_position_embeddings
    if rope.get("rope_type") == "dynamic":  # as they are in a short text
        if span > longest:
            raise ValueError(
                f"The model's 'dynamic' rotary frequencies change beyond {longest} tokens: choose `window_size` + "
                f"`window_overlap` + `pinned_tokens` <= {longest}, got {span}."
            )
        return {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    if rope.get("rope_type") in ("yarn", "longrope"):
        trained = rope.setdefault("original_max_position_embeddings", longest)
        if rope.get("factor") is None:
            rope["factor"] = longest / trained
    return rope


def default_number_of_memory_layers(num_layers: int, fields: dict) -> int:
    """As many as fit in `MEMORY_SHARE` of the pretrained model's parameters, at least one, at most one per layer."""
    config = SleepConfig(
        **{
            **fields,
            "loop_span": None,
            "num_hidden_layers": 2,
            "layer_types": ["sleep_attention", "linear_attention"],
            "memory_layers": [1],
        }
    )
    with torch.device("meta"):
        attention_layer, memory_layer = (
            sum(parameter.numel() for parameter in SleepDecoderLayer(config, i).parameters()) for i in range(2)
        )
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    number = int(MEMORY_SHARE * (num_layers * attention_layer + embeddings) / memory_layer)
    return min(max(1, number), num_layers)


def spread(number: int, num_layers: int) -> list[int]:
    """Places of `number` layers inserted evenly between `num_layers` others, in the new stack."""
    if not 1 <= number <= num_layers:
        raise ValueError(f"`memory_layers` must be from 1 to the {num_layers} layers of the model, got {number}.")
    return [math.floor((j + 1) * (num_layers + 1) / (number + 1)) + j for j in range(number)]


def adopted_state_dict(original: PreTrainedModel, config: SleepConfig) -> dict[str, torch.Tensor]:
    """The parameters of `original` under our names. Within a layer they are the same; the layers move apart."""
    own = original.state_dict() if config.base_config is None else family_state_dict(original)
    places = iter(i for i in range(config.num_hidden_layers) if i not in config.memory_layers)
    moved = dict(enumerate(places))
    parameters = {}
    for name, parameter in own.items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(moved[int(parts[2])])
        parameters[".".join(parts)] = parameter
    return parameters


def tokenizer_of(original: PreTrainedModel, options: dict) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a pretrained model, if there is one; `options` are those of `from_pretrained`."""
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code", "gguf_file")
    name = original.config._name_or_path
    if not name:
        return None
    try:
        return AutoTokenizer.from_pretrained(name, **{k: options[k] for k in names if k in options})
    except (OSError, ValueError):
        return None


def copy_norm(own: torch.nn.Module, layers: torch.nn.ModuleList) -> None:
    """Let a memory's norm show hidden states as the first of `layers` sees them that has one before its mixer."""
    norms = [getattr(layer, "input_layernorm", None) for layer in layers]
    if norm := next((norm for norm in norms if norm is not None), None):
        with torch.no_grad():
            own.weight.copy_(weight_of(norm))


def check_family(config: PreTrainedConfig) -> None:
    """Raise unless the model is of a family that we know."""
    if config.model_type == SleepConfig.model_type:
        raise ValueError("This model sleeps already: load it with `from_pretrained`.")
    if config.model_type not in (*ATTENTION_FAMILIES, *HYBRIDS):
        raise ValueError(
            f"A model of type {config.model_type!r} cannot be given sleep: its layers are not known here. Supported "
            f"are {', '.join(ATTENTION_FAMILIES)}, which is also what many models of other names are, and the hybrids "
            f"{', '.join(HYBRIDS)}, without mixtures of experts."
        )


def sliding_window(config: PreTrainedConfig) -> int | None:
    """How many tokens the model's own attention reaches back; None if it sees all of a text."""
    return (getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)) or None


def default_overlap(config: PreTrainedConfig, window_size: int) -> int:
    """Half of a window, or as much as the model's own attention reaches over, and at the same frequencies."""
    reach, rope = sliding_window(config) or config.max_position_embeddings, config.rope_parameters
    short = rope.get("original_max_position_embeddings", reach)
    if rope.get("rope_type") == "longrope" and window_size <= short:
        reach = min(reach, short)
    return max(0, min(window_size // 2, reach - window_size - ATTENTION_SINK))


def check_attention(config: PreTrainedConfig, window_size: int, kept: int) -> None:
    """Raise if attention within one window, and to the tokens kept, would not be what the model was trained with."""
    slides, span = sliding_window(config), window_size + kept
    told = f"`window_size` is {window_size}" + (f", and {kept} more tokens are kept" if kept else "")
    if slides and slides < span:
        raise ValueError(
            f"The model's own attention reaches back {slides} tokens only, and {told}: choose `window_size` + "
            f"`window_overlap` + `pinned_tokens` <= {slides}."
        )
    if span > config.max_position_embeddings:
        logger.warning_once(
            f"{told}, but the model was made for texts of {config.max_position_embeddings} tokens: choose fewer."
        )


def check_model(model: PreTrainedModel) -> None:
    """Raise if the parameters of `model` cannot be taken over as they are."""
    check_family(model.config)
    if not hasattr(model, "lm_head"):
        raise ValueError(f"{type(model).__name__} has no language modeling head. Give the family's `...ForCausalLM`.")
    if not all(parameter.is_floating_point() for parameter in model.state_dict().values()):
        raise ValueError(
            "The model is quantised. Load it in full precision: without a `quantization_config`, or with one that "
            "dequantises, such as `GgufConfig(dequantize=True)`."
        )
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ValueError(
            "The model lies on several devices. Load it on one (no `device_map`), save what comes out, and load that "
            "with the `device_map`."
        )
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("The model has an adapter. Merge it first: `model.merge_and_unload()`.")
