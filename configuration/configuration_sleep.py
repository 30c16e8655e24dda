"""The configuration of a model that sleeps.

This file is self-contained: it is copied into every saved folder and loaded there as remote code.
"""

import difflib
import inspect
import json
import math
from collections.abc import Iterable
from pathlib import Path

import transformers
from huggingface_hub.dataclasses import strict
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from transformers import AutoConfig, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import is_torch_available, logging


logger = logging.get_logger(__name__)

PRESETS_FOLDER = Path(__file__).parent / "presets"
SLEEP_LAYER_TYPES = ("sleep_attention", "linear_attention", "recall_memory")
MEMORY_TYPES = SLEEP_LAYER_TYPES[1:]
SAVED_LAYER_TYPES = "sleep_layer_types"
IS_SAVED = "_is_saved"  # how `from_dict` tells the constructor that its arguments were read
# More passes than anyone has tried are a mistake (a sleep of 10**9 never ends), whether in a configuration or a call.
MAX_SLEEP_PASSES = 1024
# The longest text that clients hand over whole: as much as models of today say that they read. There is no true value,
# as nothing here ends. A larger one would hurt where clients allocate that much at once, as lm-evaluation-harness does
# with `--batch_size auto`.
LONGEST_FOR_CLIENTS = 131072
# RoPE variants whose frequencies do not depend on the length of the text, as windows are all alike; what each needs.
ROPE_PARAMETERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("factor", "original_max_position_embeddings"),
}
# Arguments that transformers and the libraries around it know, but that no class or signature of transformers names.
ARGUMENTS_OF_OTHERS = (
    # Taken by the constructor of all configurations, or older names there...
    "attn_implementation",
    "experts_implementation",
    "rope_theta",
    "partial_rotary_factor",
    "tie_last_hidden_states",
    # ... or set on configurations of any kind and read from there.
    "adapters",
    "add_cross_attention",
    "auto_map",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "custom_pipelines",
    "decoder_start_token_id",
    "distributed_config",
    "finetuning_task",
    "hidden_dropout",
    "is_decoder",
    "loss_type",
    "model_name",
    "prefix",
    "pretraining_tp",
    "processor_class",
    "pruned_heads",
    "quantization_config",
    "sep_token_id",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "token_classification_bias",
    "tokenizer_class",
    "torchscript",
    "transformers_weights",
    "use_bfloat16",
)
NO_ROTATION = ("rope_theta", None)  # as some families have it
# Families whose own decoder layers can be run, by `model_type`.
BASE_MODEL_TYPES = ("olmo_hybrid", "qwen3_5_text", "qwen3_next")
# Of a family's configuration: what shapes its layers, and goes by the same name here...
SAME_IN_BASE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "attention_bias",
    "attention_dropout",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "hidden_act",
    "initializer_range",
    "rms_norm_eps",
)
# ... and what does not, and may change after the conversion (a resized vocabulary): it is kept here alone.
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
MOVED_FROM_BASE = ("vocab_size", "tie_word_embeddings", *TOKEN_IDS)
# Of what a `base_config` may determine, the values where there is none. The fields themselves begin as None, so that
# one can tell what was given.
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def unknown_arguments(config_class: type[PreTrainedConfig], names: Iterable[str]) -> list[str]:
    """Of the names of arguments, those that neither the class knows, nor those it extends, nor transformers."""
    known = {*ARGUMENTS_OF_OTHERS, *vars(GenerationConfig())}
    known |= {name for name in dir(config_class) if not callable(getattr(config_class, name, None))}
    for each in config_class.__mro__:
        known |= {*inspect.signature(each.__init__).parameters}
    # transformers marks what it sets by itself with an underscore.
    return [name for name in names if name not in known and not name.startswith("_")]


def with_nearest(name: str, known: Iterable[str]) -> str:
    """The name, and what it may be a misspelling of."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{name!r} (did you mean {nearest[0]!r}?)" if nearest else repr(name)


def is_finite(value) -> bool:
    """Whether `value` is a number, neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@strict
class SleepConfig(PreTrainedConfig):
    r"""
    Configuration of [`SleepModel`] and [`SleepForCausalLM`]: a hybrid of attention and Gated DeltaNet layers that
    reads in windows of `window_size` tokens and sleeps between them (arXiv 2605.26099, Algorithm 1).

    Args:
        vocab_size (`int`, *optional*, defaults to 32000):
            Size of the vocabulary.
        hidden_size (`int`, *optional*, defaults to 256):
            Dimension of the hidden states.
        intermediate_size (`int`, *optional*):
            Dimension of the gated MLP. Defaults to 8/3 of `hidden_size`, rounded up to a multiple of 64.
        num_hidden_layers (`int`, *optional*, defaults to 4):
            Number of decoder layers.
        layer_types (`list[str]`, *optional*):
            The mixer of every layer: `"sleep_attention"` (attention within the current window), `"linear_attention"`
            (Gated DeltaNet, whose state is the fast weights S) or `"recall_memory"` (the memory for pretrained models,
            see recall_memory_sleep.py). Defaults to the first two in turn, attention first. Attention and a memory are
            needed, except that attention alone does with `sleep_passes=1`.
        memory_layers (`list[int]`, *optional*):
            Indices of memories that are inserted into a pretrained model without changing it: `"recall_memory"`
            layers, and `"linear_attention"` layers that have no MLP and whose output projection starts at zero.
            Defaults to none.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Number of query heads of the attention layers.
        num_key_value_heads (`int`, *optional*):
            Number of key and value heads of the attention layers (grouped-query attention). Defaults to
            `num_attention_heads`.
        head_dim (`int`, *optional*):
            Dimension of an attention head. Defaults to `hidden_size // num_attention_heads`.
        attention_bias (`bool`, *optional*, defaults to `False`):
            Whether the projections of queries, keys and values have biases.
        attention_output_bias (`bool`, *optional*):
            Whether the output projection of the attention layers has one. Defaults to `attention_bias`.
        qk_norm (`bool`, *optional*, defaults to `False`):
            Whether the attention layers normalise every head's queries and keys before the rotation, as Qwen3 does.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the attention weights in training.
        rope_parameters (`dict`, *optional*):
            Parameters of the rotary position embedding, `rope_theta` and `rope_type` (`"default"`, `"linear"`,
            `"llama3"`, `"yarn"` or `"longrope"`, with the parameters that these have elsewhere). Positions count from
            the start of the window.
            Defaults to theta = 10000.
        linear_num_key_heads (`int`, *optional*):
            Number of query and key heads of the Gated DeltaNet layers. Defaults to `num_attention_heads`.
        linear_num_value_heads (`int`, *optional*):
            Number of value heads of the Gated DeltaNet layers, a multiple of `linear_num_key_heads`; each has a matrix
            S of its own. Defaults to `linear_num_key_heads`.
        linear_key_head_dim (`int`, *optional*):
            Number of rows of S. Defaults to `hidden_size // linear_num_key_heads`.
        linear_value_head_dim (`int`, *optional*):
            Number of columns of S. Defaults to `linear_key_head_dim`.
        linear_conv_kernel_dim (`int`, *optional*, defaults to 4):
            Width of the short causal convolution before queries, keys and values.
        linear_allow_neg_eigval (`bool`, *optional*, defaults to `True`):
            Whether beta lies in (0, 2) instead of (0, 1), so that a token can turn what S holds for its key around.
        linear_a_min (`float`, *optional*, defaults to 0.1):
            Lower end of the uniform distribution from which A is drawn. S keeps alpha = exp(-A softplus(dt)) of itself
            per token.
        linear_a_max (`float`, *optional*, defaults to 1.0):
            Upper end of the distribution of A.
        linear_dt_min (`float`, *optional*, defaults to 0.0001):
            Lower end of the log-uniform distribution from which softplus(dt) is drawn. With the defaults, half-lives
            of S lie between 7 and 70,000 tokens: some heads outlive many windows of several passes.
        linear_dt_max (`float`, *optional*, defaults to 0.1):
            Upper end of the distribution of softplus(dt).
        window_size (`int`, *optional*, defaults to 512):
            L, the number of tokens that the attention cache holds before the model sleeps.
        window_overlap (`int`, *optional*, defaults to 0):
            w, how many of the last tokens keep their keys and values after a sleep (arXiv 2605.26099 v3, section 6.4):
            the next window attends to them, and no sleep consolidates them again. 0 clears the cache,
            `window_size` - 1 is a sliding window.
        pinned_tokens (`int`, *optional*, defaults to 0):
            How many of a text's first tokens keep their keys and values for good: a system prompt, an attention sink.
            Any call with the first tokens of a text can choose another number.
        sleep_passes (`int`, *optional*, defaults to 1):
            N, the number of passes over a window *in all*: one awake and N - 1 asleep. 1 is the vanilla hybrid whose
            cache is evicted; 1024 are the most. Any call of `forward` or `generate` can choose another N.
        loop_span (`tuple[int, int]`, *optional*):
            `(start, end)`: the layers `start, ..., end - 1` are passed N times. Layers before the span run awake only,
            layers behind it once more at the end of a sleep. With start = end nothing is replayed: a
            `"recall_memory"` then writes every window N times. Defaults to all layers.
        input_injection (`bool`, *optional*, defaults to `False`):
            Whether every pass asleep is fed by the window's embeddings as well, beside the features of the pass
            before it, which are drawn to their length. For a loop that begins with the first layer.
        bptt_windows (`int`, *optional*):
            Back-propagate through at most this many windows of a call: S is detached between groups of `bptt_windows`
            windows, counted from the end of the sequence. Defaults to all windows.
        skip_logits (`bool`, *optional*, defaults to `False`):
            Whether training with labels computes the loss window by window and returns no logits, so that those of
            the whole text are never in memory. `forward(..., skip_logits=...)` has the last word.
        n_positions (`int`, *optional*, defaults to 131072):
            The longest text that clients such as lm-evaluation-harness hand over whole; longer ones they cut on the
            left. For them alone: nothing here reads it, and no text is too long for the model. (Another usual name,
            `max_position_embeddings`, would be taken for an end by `generate`, which refuses longer prompts.)
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the MLP, by its name in transformers.
        mlp_bias (`bool`, *optional*, defaults to `False`):
            Whether the projections of the MLP have biases.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weight matrices.
        rms_norm_eps (`float`, *optional*, defaults to 1e-06):
            Epsilon of the RMS norms.
        base_config (`dict`, *optional*):
            The configuration of an in-tree hybrid, with its `model_type` (`"olmo_hybrid"`, `"qwen3_5_text"` or a
            dense `"qwen3_next"`): the model is then made of that family's own decoder layers, with its parameter
            names. All fields that describe layers are taken from it; vocabulary, token ids and tied embeddings move
            from it to the fields here. What is given twice must agree. Defaults to our own layers.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether to return `past_key_values`.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether `lm_head` shares the weights of `embed_tokens`.
        pad_token_id (`int`, *optional*): Index of the padding token.
        bos_token_id (`int`, *optional*): Index of the token that begins a text.
        eos_token_id (`int` or `list[int]`, *optional*): Index or indices of the tokens that end a text.
        adopted_from (`str`, *optional*):
            The name on the Hub of the pretrained model that `from_causal_lm` gave sleep to.
        modeling_sleep_version (`str`, *optional*):
            The version of the code that a checkpoint was saved with. `save_pretrained` of a model writes it.
        transformers_range (`str`, *optional*):
            The releases of transformers that this code was tested with. `save_pretrained` of a model writes it.
        recall_key_dim (`int`, *optional*):
            Rows of S of the `"recall_memory"` layers. Defaults to about four thirds of `hidden_size`.
        recall_key_rank (`int`, *optional*):
            Rank of the maps that make queries and keys, at most `recall_key_dim`. At a quarter of it a memory is less
            than half as large. Defaults to maps of any rank. `modeling_sleep.teach` begins with these and cuts them.
        recall_key_layer (`int`, *optional*):
            Index of an earlier layer, of whose input queries, keys and the choice of what to write are made: names and
            things are told apart better there. What is recalled is added where the memory stands. Defaults to what
            enters the memory itself.
        recall_value_dim (`int`, *optional*):
            Columns of their S, at most and by default `hidden_size`. With fewer, what is recalled stands out less.
        recall_span (`int`, *optional*, defaults to 5):
            How many tokens before a token are averaged for its query and for the key of the next one.
        recall_poolings (`int`, *optional*, defaults to 2):
            How many learned averages over the window join them.
        recall_pooling_dim (`int`, *optional*, defaults to 64):
            Dimension of the queries and keys of each of these.
        recall_hindsight (`int`, *optional*, defaults to 0):
            How many learned averages over what came after a token in its window join its key. `from_causal_lm` takes
            2.
        recall_products (`bool`, *optional*, defaults to `False`):
            Whether the second half of queries and keys is multiplied by the first, so that what is alike in one half
            alone is found less. `from_causal_lm` takes `True`.
        recall_threshold (`float`, *optional*, defaults to 0.0):
            What the gate of a token must exceed for the token to be written: 0 <= `recall_threshold` < 1. With 0 all
            tokens are, if only a little, and what was told fades with each token that is read.
            `from_causal_lm` takes 0.5.

    Raises:
        `StrictDataclassError` (of `huggingface_hub.errors`) or `ValueError`: if a field is of the wrong type or out
        of its range, or the fields contradict each other.
        `TypeError`: if there is an argument that neither this class nor transformers knows. In a saved configuration,
        which newer code may have written, that is a warning.

    Example:

    ```python
    >>> from modeling_sleep import SleepConfig, SleepForCausalLM

    >>> config = SleepConfig(hidden_size=256, num_hidden_layers=4, window_size=24, sleep_passes=4)
    >>> model = SleepForCausalLM(config)
    ```
    """

    model_type = "sleep"
    # Of the code, not of a checkpoint, and no fields: tests keep them equal to the package's and pyproject.toml's.
    code_version = "0.1.0"
    tested_transformers = ">=5.14.0,<5.25"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    ignore_keys_at_rope_validation = {"partial_rotary_factor"}
    # As in the in-tree hybrids, the recurrent mixers are replicated: a head of S is small, and its rule is sequential.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    layer_types: list[str] | None = None
    memory_layers: list[int] | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool | None = None
    attention_output_bias: bool | None = None
    qk_norm: bool = False
    attention_dropout: int | float | None = None
    rope_parameters: dict | None = None
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_conv_kernel_dim: int | None = None
    linear_allow_neg_eigval: bool | None = None
    linear_a_min: int | float = 0.1
    linear_a_max: int | float = 1.0
    linear_dt_min: int | float = 1e-4
    linear_dt_max: int | float = 1e-1
    window_size: int = 512
    window_overlap: int = 0
    pinned_tokens: int = 0
    sleep_passes: int = 1
    loop_span: list[int] | tuple[int, int] | None = None
    input_injection: bool = False
    bptt_windows: int | None = None
    skip_logits: bool = False
    n_positions: int = LONGEST_FOR_CLIENTS
    hidden_act: str | None = None
    mlp_bias: bool = False
    initializer_range: float | None = None
    rms_norm_eps: float | None = None
    base_config: dict | None = None
    use_cache: bool = True
    tie_word_embeddings: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    adopted_from: str | None = None
    modeling_sleep_version: str | None = None
    transformers_range: str | None = None
    recall_key_dim: int | None = None
    recall_key_rank: int | None = None
    recall_key_layer: int | None = None
    recall_value_dim: int | None = None
    recall_span: int = 5
    recall_poolings: int = 2
    recall_pooling_dim: int = 64
    recall_hindsight: int = 0
    recall_products: bool = False
    recall_threshold: float = 0.0

    def __post_init__(self, **kwargs):
        if (layer_types := kwargs.pop(SAVED_LAYER_TYPES, None)) is not None:
            self.layer_types = layer_types
        # `from_dict` says so, and whatever `to_dict` wrote names the version of transformers.
        is_saved = kwargs.pop(IS_SAVED, False) or self.transformers_version is not None
        self._check_arguments(kwargs, is_saved)
        if self.base_config is not None:
            self._take_from_base()
        for name, default in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // (3 * 64)) * 64
        if self.layer_types is None:
            self.layer_types = [SLEEP_LAYER_TYPES[i % 2] for i in range(self.num_hidden_layers)]
        if self.memory_layers is None:
            self.memory_layers = []
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.linear_num_key_heads is None:
            self.linear_num_key_heads = self.num_attention_heads
        if self.linear_num_value_heads is None:
            self.linear_num_value_heads = self.linear_num_key_heads
        if self.linear_key_head_dim is None:
            self.linear_key_head_dim = self.hidden_size // max(self.linear_num_key_heads, 1)
        if self.linear_value_head_dim is None:
            self.linear_value_head_dim = self.linear_key_head_dim
        if self.recall_key_dim is None:
            self.recall_key_dim = _share(4 / 3, self.hidden_size)
            self.recall_key_dim += self.recall_products and self.recall_key_dim % 2
        if self.recall_value_dim is None:
            self.recall_value_dim = self.hidden_size
        if self.loop_span is not None:
            self.loop_span = list(self.loop_span)  # as JSON gives it back
        if (old_name := kwargs.pop("rope_scaling", None)) is not None:
            self.rope_parameters = dict(old_name)
        if self.rope_parameters is not None:
            self.standardize_rope_params()
            self.validate_rope_type()  # before the parent asks for what other types need
        super().__post_init__(**kwargs)
        self._warn_if_made_with_others()

    def family_config(self) -> PreTrainedConfig:
        """The family's own configuration, from `base_config`."""
        return AutoConfig.for_model(**self.base_config)

    def _check_arguments(self, arguments: Iterable[str], is_saved: bool):
        """Refuse arguments that nobody knows; of a saved configuration, which newer code may have written, say so."""
        unknown = unknown_arguments(type(self), arguments)
        if not unknown:
            return
        names = ", ".join(with_nearest(name, [*self.__dataclass_fields__]) for name in unknown)
        if not is_saved:
            raise TypeError(f"{type(self).__name__} does not know {names}. Its documentation names all of its fields.")
        logger.warning_once(
            f"This configuration has fields that {type(self).__name__} does not know and will not read: {names}. They "
            "may be misspelt, or of newer code: then use that."
        )

    def _take_from_base(self):
        """Set all fields that `base_config` determines."""
        self._check_family()
        base = self.family_config()
        if unknown := unknown_arguments(type(base), self.base_config):
            names = ", ".join(with_nearest(name, [*base.__dataclass_fields__]) for name in unknown)
            logger.warning_once(f"`base_config` has fields that its family does not know and will not read: {names}.")
        values = {name: getattr(base, name) for name in SAME_IN_BASE}
        values["head_dim"] = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
        values["linear_allow_neg_eigval"] = getattr(base, "linear_allow_neg_eigval", False)
        values["layer_types"] = [
            "sleep_attention" if layer_type == "full_attention" else layer_type for layer_type in base.layer_types
        ]
        for i in sorted(self.memory_layers or []):
            values["layer_types"].insert(i, "recall_memory")
        values["num_hidden_layers"] = len(values["layer_types"])
        # Multimodal positions along three axes are one and the same for text.
        values["rope_parameters"] = {
            name: value for name, value in base.rope_parameters.items() if not name.startswith("mrope")
        }
        self.base_config = dict(self.base_config)
        moved = {name: self.base_config.pop(name, None) for name in MOVED_FROM_BASE}
        values |= {name: value for name, value in moved.items() if value is not None}
        for name, value in values.items():
            given = getattr(self, name)
            if given is not None and given != value:
                raise ValueError(
                    f"`{name}` is {given!r}, but `base_config` makes it {value!r}. Leave it out, or change it there."
                )
            setattr(self, name, value)
        # The names in it are those of the family's layers, which are ours now.
        self.base_model_tp_plan = base.base_model_tp_plan

    def _check_family(self):
        """Raise unless `base_config` is of a family whose layers we can run."""
        model_type = self.base_config.get("model_type")
        supported = f"Supported are {', '.join(BASE_MODEL_TYPES)}, without mixtures of experts."
        if model_type not in BASE_MODEL_TYPES:
            missing = (
                "its layers are mixtures of experts, whose routing has not been followed through sleep"
                if "moe" in str(model_type)
                else "nobody has said how its layers take their states in and give them back"
            )
            raise ValueError(f"`base_config` is of the family {model_type!r}: {missing}. {supported}")
        base = self.family_config()
        sparse = [
            i
            for i in range(base.num_hidden_layers)
            if getattr(base, "num_experts", 0) > 0
            and i not in base.mlp_only_layers
            and (i + 1) % base.decoder_sparse_step == 0
        ]
        if sparse:
            raise ValueError(
                f"Layers {sparse} of `base_config` ({model_type}) are mixtures of experts, whose routing has not been "
                f"followed through sleep: `num_experts` must be 0, or `mlp_only_layers` name all layers. {supported}"
            )
        if base.hidden_act != "silu":
            raise ValueError(
                f"`base_config` has `hidden_act={base.hidden_act!r}`, but our short convolution knows 'silu' alone."
            )

    def _warn_if_made_with_others(self):
        """Say so, once, if a checkpoint was made for other releases than those here; it is loaded all the same."""
        try:
            version, code = Version(self.modeling_sleep_version or self.code_version), Version(self.code_version)
            supported = SpecifierSet(self.transformers_range or "")
        except (InvalidVersion, InvalidSpecifier):  # of a future that writes them differently
            return
        if version.release[:2] != code.release[:2]:
            logger.warning_once(
                f"This checkpoint was made with modeling_sleep {version}, and this is {code}. If something is not as "
                f"it should be, use modeling_sleep {version}."
            )
        if not supported.contains(transformers.__version__, prereleases=True):
            logger.warning_once(
                f"This checkpoint's code was tested with transformers{supported}, and {transformers.__version__} is "
                f'installed. If something is not as it should be: `pip install "transformers{supported}"`.'
            )

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As [`PreTrainedConfig.from_dict`]. Fields that nobody knows are warned of, overridden ones checked again."""
        result = super().from_dict({**config_dict, IS_SAVED: True}, **kwargs)
        config, unused = result if isinstance(result, tuple) else (result, {})
        config.validate()
        return (config, unused) if isinstance(result, tuple) else config

    def to_diff_dict(self) -> dict:
        """What is saved. `layer_types` goes by another name there: transformers reads every `config.json` also as a
        plain [`PreTrainedConfig`] (`AutoTokenizer`, `Trainer` on resuming), whose list of layer types is closed."""
        saved = super().to_diff_dict()
        if "layer_types" in saved:
            saved[SAVED_LAYER_TYPES] = saved.pop("layer_types")
        return saved

    @property
    def looped_layers(self) -> tuple[int, int]:
        """`(start, end)` of the layers that are passed N times: `loop_span`, or all layers."""
        return (0, self.num_hidden_layers) if self.loop_span is None else tuple(self.loop_span)

    def validate_recall_key_layer(self):
        """Keys are made of what a layer before all recall memories is given, in every pass that they are."""
        if self.recall_key_layer is None:
            return
        memories = [i for i, kind in enumerate(self.layer_types) if kind == "recall_memory"]
        if not memories or not 0 <= self.recall_key_layer < memories[0]:
            raise ValueError(
                "`recall_key_layer` is a layer before the recall memories, which are "
                f"{memories or 'none'}: got {self.recall_key_layer}."
            )
        start, end = self.looped_layers
        if len({(i >= start) + (i >= end) for i in (self.recall_key_layer, *memories)}) > 1:
            raise ValueError(
                f"`recall_key_layer` ({self.recall_key_layer}) and the recall memories {memories} must stand on one "
                f"side of the ends of `loop_span` ({start}, {end}), so that a pass over one is a pass over the other."
            )

    def validate_layer_type(self):
        """Every layer has a mixer that we know, and what sleeps has both kinds."""
        unknown = sorted(set(self.layer_types) - set(SLEEP_LAYER_TYPES))
        if unknown:
            raise ValueError(f"`layer_types` may hold {SLEEP_LAYER_TYPES}, got {unknown}.")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` names {len(self.layer_types)} layers, but `num_hidden_layers` is "
                f"{self.num_hidden_layers}. Make them equal."
            )
        if not self._holds_memory(self.layer_types) and self.sleep_passes > 1:
            raise ValueError(
                f"A model that sleeps needs at least one memory, {_either(MEMORY_TYPES)}: its fast weights are all "
                "that crosses a window's end. Attention alone, whose cache is evicted, takes `sleep_passes=1`."
            )
        if "sleep_attention" not in self.layer_types:
            raise ValueError(
                "A model that sleeps needs at least one 'sleep_attention' layer: without a cache that fills, it has "
                "no reason to sleep."
            )
        if misplaced := [i for i in self.memory_layers if not self._is_memory(i)]:
            raise ValueError(
                f"`memory_layers` must be indices of {_either(MEMORY_TYPES)} layers, but {misplaced} are not "
                f"(`layer_types` is {self.layer_types})."
            )
        if len(set(self.memory_layers)) != len(self.memory_layers):
            raise ValueError(f"`memory_layers` must name each layer once, got {self.memory_layers}.")

        if missing := [
            i for i, x in enumerate(self.layer_types) if x == "recall_memory" and i not in self.memory_layers
        ]:
            raise ValueError(
                f"Layers {missing} are a 'recall_memory', which is always inserted: name them in `memory_layers` "
                f"({self.memory_layers})."
            )

    def _is_memory(self, layer_idx: int) -> bool:
        return 0 <= layer_idx < self.num_hidden_layers and self.layer_types[layer_idx] in MEMORY_TYPES

    @staticmethod
    def _holds_memory(layer_types: list[str]) -> bool:
        return any(layer_type in MEMORY_TYPES for layer_type in layer_types)

    def validate_heads(self):
        """The heads divide what they must."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
            "n_positions",
            "recall_key_dim",
            "recall_value_dim",
            "recall_span",
            "recall_poolings",
            "recall_pooling_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"`linear_num_value_heads` ({self.linear_num_value_heads}) must be a multiple of "
                f"`linear_num_key_heads` ({self.linear_num_key_heads})."
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for the rotary position embedding, got {self.head_dim}.")

    def validate_numbers(self):
        """What is no size has a range, too."""
        if self.recall_hindsight < 0:
            raise ValueError(f"`recall_hindsight` must be at least 0, got {self.recall_hindsight}.")
        if self.recall_products and self.recall_key_dim % 2:
            raise ValueError(
                f"`recall_products` multiplies halves: `recall_key_dim` must be even, got {self.recall_key_dim}."
            )
        if self.recall_key_rank is not None and not 1 <= self.recall_key_rank <= self.recall_key_dim:
            raise ValueError(
                f"`recall_key_rank` must be from 1 to `recall_key_dim` ({self.recall_key_dim}), or None for maps of "
                f"any rank, got {self.recall_key_rank}."
            )
        if not 0 <= self.recall_threshold < 1:
            raise ValueError(
                "`recall_threshold` is what a sigmoid must exceed: 0 <= `recall_threshold` < 1, got "
                f"{self.recall_threshold}."
            )
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(
                f"`attention_dropout` is a probability: 0 <= `attention_dropout` < 1, got {self.attention_dropout}."
            )
        if not (is_finite(self.initializer_range) and self.initializer_range >= 0):
            raise ValueError(
                f"`initializer_range` is a standard deviation: finite and at least 0, got {self.initializer_range}."
            )
        if not (is_finite(self.rms_norm_eps) and self.rms_norm_eps > 0):
            raise ValueError(
                "`rms_norm_eps` must be finite and more than 0, or else the norm of zeros (an embedded padding token) "
                f"is no number, got {self.rms_norm_eps}."
            )

    def validate_activation(self):
        """The activation is one that transformers has."""
        if not is_torch_available():  # a tokenizer alone is loaded without it
            return
        from transformers.activations import ACT2FN

        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"`hidden_act` must name an activation of transformers, got {with_nearest(self.hidden_act, ACT2FN)}. "
                f"There are {', '.join(sorted(ACT2FN))}."
            )

    def validate_token_ids(self):
        """Special tokens are tokens of the vocabulary."""
        for name in TOKEN_IDS:
            ids = getattr(self, name)
            if ids == []:
                raise ValueError(f"`{name}` is an empty list. If there is no such token, it is None.")
            for token in [] if ids is None else ids if isinstance(ids, list) else [ids]:
                if token < 0:
                    raise ValueError(
                        f"`{name}` must not be negative, got {token}. If there is no such token, it is None."
                    )
                if token >= self.vocab_size:
                    raise ValueError(
                        f"`{name}` is {token}, but the vocabulary (`vocab_size` = {self.vocab_size}) ends with "
                        f"{self.vocab_size - 1}. Give a new token its place before its id: "
                        "`model.resize_token_embeddings(len(tokenizer))`, or the `vocab_size` of a new model."
                    )

    def validate_sleep(self):
        """Windows, passes and the looped span make sense together."""
        if self.window_size < 1:
            raise ValueError(f"`window_size` (L) must be at least 1 token, got {self.window_size}.")
        if not 0 <= self.window_overlap < self.window_size:
            raise ValueError(
                f"`window_overlap` (w) must be at least 0 and less than `window_size` ({self.window_size}), got "
                f"{self.window_overlap}."
            )
        if not 0 <= self.pinned_tokens <= self.window_size:
            raise ValueError(
                f"`pinned_tokens` must lie between 0 and `window_size` ({self.window_size}), got {self.pinned_tokens}."
            )
        if self.sleep_passes < 1:
            raise ValueError(
                f"`sleep_passes` (N) counts all passes over a window, the one awake included, so it must be at least "
                f"1, got {self.sleep_passes}."
            )
        if self.sleep_passes > MAX_SLEEP_PASSES:
            raise ValueError(
                f"`sleep_passes` (N) may be at most {MAX_SLEEP_PASSES}, as a sleep takes N - 1 over its window, "
                f"got {self.sleep_passes}."
            )
        if self.bptt_windows is not None and self.bptt_windows < 1:
            raise ValueError(
                f"`bptt_windows` must be at least 1, or None to back-propagate through all windows, got "
                f"{self.bptt_windows}."
            )
        if self.loop_span is None:
            return
        if len(self.loop_span) != 2:
            raise ValueError(f"`loop_span` is a pair (start, end) or None, got {self.loop_span}.")
        start, end = self.loop_span
        if not 0 <= start <= end <= self.num_hidden_layers:
            raise ValueError(
                f"`loop_span` must be (start, end) with 0 <= start <= end <= {self.num_hidden_layers} layers, got "
                f"({start}, {end})."
            )
        if start == end:
            if "recall_memory" not in self.layer_types:
                raise ValueError(
                    f"`loop_span` ({start}, {end}) is empty, so a sleep would rewrite nothing: only a 'recall_memory' "
                    f"needs no replay (`layer_types` is {self.layer_types})."
                )
        elif not self._holds_memory(self.layer_types[start:]):
            raise ValueError(
                f"`loop_span` ({start}, {end}) leaves no memory in or behind it, so a sleep would "
                f"rewrite nothing (`layer_types` is {self.layer_types})."
            )
        if self.input_injection and not 0 == start < end:
            raise ValueError(
                "`input_injection` feeds passes asleep with the window's embeddings, which only a loop from the first "
                f"layer on begins with: leave it out, or set `loop_span` to (0, end), got {self.loop_span}."
            )

    def validate_decay(self):
        """S decays, but not at once: 0 < min <= max < infinity for A and softplus(dt)."""
        for name in ("linear_a", "linear_dt"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if not 0 < low <= high < math.inf:
                raise ValueError(f"0 < `{name}_min` <= `{name}_max` must hold, got {low} and {high}.")

    def validate_rope_type(self):
        """Windows are all alike, so the frequencies must not depend on the length of texts, trained on or read."""
        rope_type = self.rope_parameters.get("rope_type", "default")
        if rope_type not in ROPE_PARAMETERS:
            raise ValueError(
                f"`rope_parameters['rope_type']` must be one of {tuple(ROPE_PARAMETERS)}, got {rope_type!r}."
            )
        if missing := [name for name in ROPE_PARAMETERS[rope_type] if name not in self.rope_parameters]:
            raise ValueError(f"`rope_parameters` of type {rope_type!r} lack {', '.join(missing)}.")

        partly = self.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0
        if self.base_config is None and (partly or self.rope_parameters.get("rope_theta", 1.0) is None):
            raise ValueError(
                "Our own attention rotates whole heads: `rope_parameters` must have a `rope_theta` and no "
                f"`partial_rotary_factor` below 1, got {self.rope_parameters}. A `base_config` may have either."
            )
        for name in ("rope_theta", "partial_rotary_factor", *ROPE_PARAMETERS[rope_type]):
            value = self.rope_parameters.get(name)
            if name in self.rope_parameters and not (is_finite(value) and value > 0) and (name, value) != NO_ROTATION:
                raise ValueError(f"`rope_parameters['{name}']` must be a finite number above 0, got {value!r}.")
        if self.rope_parameters.get("partial_rotary_factor", 1.0) > 1:
            raise ValueError(
                "`rope_parameters['partial_rotary_factor']` is a share of a head, at most 1, got "
                f"{self.rope_parameters['partial_rotary_factor']}."
            )
        if (
            rope_type == "llama3"
            and self.rope_parameters["low_freq_factor"] >= self.rope_parameters["high_freq_factor"]
        ):
            raise ValueError(
                "`rope_parameters['low_freq_factor']` must be less than `high_freq_factor`, got "
                f"{self.rope_parameters['low_freq_factor']} and {self.rope_parameters['high_freq_factor']}."
            )

    # For scaled frequencies the parent asks for `max_position_embeddings`, which a model of windows has not.

    def standardize_rope_params(self):
        """Old configurations say `type` instead of `rope_type`."""
        self.rope_parameters.setdefault("rope_type", self.rope_parameters.pop("type", "default"))

    def _validate_yarn_rope_parameters(self, rope_parameters: dict, ignore_keys: set | None = None):
        """`validate_rope_type` has looked at what is needed."""

    _validate_longrope_rope_parameters = _validate_yarn_rope_parameters

    def _validate_llama3_rope_parameters(self, rope_parameters: dict, ignore_keys: set | None = None):
        """`validate_rope_type` has looked at their values."""
        needed = {"rope_type", *ROPE_PARAMETERS["llama3"]}
        self._check_received_keys("llama3", set(rope_parameters), needed, {"rope_theta"}, ignore_keys)

    @classmethod
    def load_preset(cls, name: str) -> dict:
        """
        Read a preset of the project.

        Args:
            name (`str`): A file of `configuration/presets/` without its ending, such as `"rule110-mini"`.

        Returns:
            `dict`: `"description"` and `"model"` (fields of this class).

        Raises:
            `ValueError`: if there is no such preset; the message names those there are.
        """
        path = PRESETS_FOLDER / f"{name}.json"
        if not path.is_file():
            known = sorted(p.stem for p in PRESETS_FOLDER.glob("*.json"))
            raise ValueError(
                f"No preset {name!r}. Known presets: {', '.join(known)}."
                if known
                else f"No preset {name!r}: presets come with the package `modeling_sleep`, not with a saved model."
            )
        return json.loads(path.read_text(encoding="utf-8"))

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "SleepConfig":
        """The configuration of the preset `name` (see `load_preset`), with `overrides` of single fields."""
        return cls(**{**cls.load_preset(name)["model"], **overrides})


def _share(share: float, hidden_size: int) -> int:
    """About `share` of `hidden_size`: a multiple of 64 where that is possible."""
    unit = 64 if hidden_size >= 128 else 1
    return max(unit, round(share * hidden_size / unit) * unit)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)


__all__ = ["SleepConfig"]
