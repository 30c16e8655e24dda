"""This model and its peers: as many parameters, layers and dimensions, and a cache that holds a long text.

Notable:
- peers have our hidden size, layers, heads and vocabulary; the width of their MLP is chosen so that the number of
  parameters agrees
- a long text is not read: the model reads a short one, and its keys and values are repeated. What a token costs
  depends on their number, not on what they say
- this stack with its cache kept also keeps, as any model of ours, the hidden states that a sleep would replay: a fifth
  of its bytes
"""

import functools
import os

import torch
import transformers
from transformers import DynamicCache

from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.cache_sleep import read_state, write_state
from modeling_sleep.layers_sleep import AttentionState

from .bench import Bench


OURS, KEPT, FULL, WIDE, SLIDING, OLMO, QWEN = (
    "this model",
    "this stack, cache kept",
    "Llama",
    "Mistral, window 4k",
    "Mistral, window L",
    "OLMo-Hybrid",
    "Qwen3.5",
)
PEERS = (KEPT, FULL, WIDE, SLIDING, OLMO, QWEN)
MODELS = (OURS, *PEERS)
# In older releases of transformers, masks ask OLMo-Hybrid's cache what it cannot say.
OLDEST = "5.17"
VOCABULARY = 256
LONGEST = 2**21  # no rotary position beyond it


def sizes(bench: Bench) -> dict:
    """What all models have in common."""
    hidden_size, layers = (64, 2) if bench.quick else (256, 4)
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": bench.width * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": bench.width * 4,
    }


def described(bench: Bench, batch: int = 1, **overrides) -> str:
    """What a reader of a table has to know of the models and their input; `overrides` as of [`build`]."""
    common = {**sizes(bench), **overrides}
    layers = common["num_hidden_layers"]
    return f"d = {common['hidden_size']}, {layers} layers, L = {bench.window_size}, batch {batch}"


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _in_tree(name: str, bench: Bench, intermediate_size: int):
    """A peer of transformers with an MLP of this width."""
    common = sizes(bench)
    layers, heads = common["num_hidden_layers"], common["num_attention_heads"]
    head_dim = common["hidden_size"] // heads
    common |= {"intermediate_size": intermediate_size, "num_key_value_heads": heads}
    common |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "max_position_embeddings": LONGEST}
    hybrid = {
        "layer_types": ["full_attention", "linear_attention"] * (layers // 2),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim,
    }
    if name == FULL:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    if name in (WIDE, SLIDING):
        window = bench.window_size if name == SLIDING else 4096  # the default of its config, that of Mistral 7B
        return transformers.MistralForCausalLM(transformers.MistralConfig(**common, sliding_window=window))
    if name == OLMO:
        return transformers.OlmoHybridForCausalLM(transformers.OlmoHybridConfig(**common, **hybrid))
    config = transformers.Qwen3_5TextConfig(**common, **hybrid, head_dim=head_dim)
    return transformers.Qwen3_5ForCausalLM(config)


def _build(name: str, bench: Bench, overrides: dict):
    if name in (OURS, KEPT):
        window_size = bench.window_size if name == OURS else LONGEST
        return SleepForCausalLM(SleepConfig(**{**sizes(bench), "window_size": window_size, **overrides}))
    target = parameters(SleepForCausalLM(SleepConfig(**{**sizes(bench), **overrides})))
    common = sizes(bench)
    width = 2 * common["hidden_size"]
    per_column = 3 * common["hidden_size"] * common["num_hidden_layers"]
    missing = target - parameters(_in_tree(name, bench, width))
    return _in_tree(name, bench, width + 8 * round(missing / per_column / 8))


def build(name: str, bench: Bench, **overrides):
    """
    A fresh model; what its weights are does not matter here.

    Parameters
    ----------
    name : str
        One of `MODELS`.
    overrides
        Fields of our config that differ.
    """
    torch.manual_seed(0)
    return _build(name, bench, overrides).eval().to(bench.device, bench.dtype)


@functools.cache
def _bytes_per_token(name: str, quick: bool, device: str) -> float:
    bench = Bench(quick, device)
    model, short = build(name, bench), 2 * bench.window_size
    return (held_bytes(filled(model, bench, 2 * short)) - held_bytes(filled(model, bench, short))) / short


def fits(name: str, bench: Bench, context: int) -> bool:
    """Whether a cache of this length fits into memory, with the copy of a layer that every new token makes of it."""
    if bench.device != "cpu":
        free = torch.cuda.mem_get_info()[0]
    elif os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    else:  # not Linux: half of what there is
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 1.6 * context * _bytes_per_token(name, bench.quick, bench.device) < 0.8 * free


def tensors(cache: DynamicCache) -> dict[str, list[torch.Tensor]]:
    """All that a cache remembers, by kind."""
    kinds = {"keys": [], "values": [], "kept states": [], "fast weights": [], "convolution": []}
    for layer in cache.layers:
        kinds["keys"].append(getattr(layer, "keys", None))
        kinds["values"].append(getattr(layer, "values", None))
        if (common := getattr(layer, "common", None)) is not None:
            kinds["kept states"] += [common.kept_hidden_states, common.last_hidden_state]
        kinds["fast weights"] += [*getattr(layer, "recurrent_states", {}).values()]
        kinds["fast weights"].append(getattr(getattr(layer, "window_start_state", None), "recurrent_state", None))
        kinds["convolution"] += [*getattr(layer, "conv_states", {}).values()]
    return {kind: [x for x in found if x is not None] for kind, found in kinds.items()}


def held_bytes(cache: DynamicCache, kind: str | None = None) -> int:
    """Bytes of all that a cache remembers, or of one kind."""
    found = tensors(cache)
    return sum(x.nbytes for name in found if kind in (None, name) for x in found[name])


@torch.no_grad()
def filled(model, bench: Bench, context: int, passes: int = 2) -> DynamicCache:
    """
    A cache as a text of `context` tokens leaves it. Two windows are read; what grows beyond is their repetition.

    Of our own model, the last window is full, as it is before a sleep.
    """
    length = 2 * bench.window_size
    repeats, rest = divmod(context, length)
    if rest or not repeats:
        raise ValueError(f"the context must be a multiple of two windows ({length} tokens), got {context}")
    cache = DynamicCache(config=model.config)
    ours = {"sleep_passes": passes} if model.config.model_type == "sleep" else {}
    model(bench.tokens(model.config.vocab_size, 1, length), past_key_values=cache, use_cache=True, **ours)
    if ours:
        _lengthen(cache, model.config, context, repeats)
        return cache
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = context
        if getattr(layer, "keys", None) is not None:
            kept = layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else context
            times = min(repeats, -(-kept // layer.keys.shape[2]))
            layer.keys, layer.values = (
                x.repeat(1, 1, times, 1)[:, :, -kept:].contiguous() for x in (layer.keys, layer.values)
            )
    return cache


def _lengthen(cache: DynamicCache, config: SleepConfig, context: int, repeats: int) -> None:
    """As `repeats` times the text that a cache of ours has read: `context` tokens."""
    state = read_state(cache, config)
    counts = {"seen": context, "read": context, "places": context * (context - 1) // 2}
    if config.window_size > context:  # a cache that is kept
        layers = [
            x._replace(keys=x.keys.repeat(1, 1, repeats, 1), values=x.values.repeat(1, 1, repeats, 1))
            if isinstance(x, AttentionState)
            else x
            for x in state.layers
        ]
        kept = state.kept_hidden_states.repeat(1, repeats, 1)
        state = state._replace(layers=tuple(layers), kept_hidden_states=kept, columns=context, stored=context)
    write_state(cache, state._replace(**counts, sleeps=(context - 1) // config.window_size), config)
