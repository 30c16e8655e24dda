"""`generate()` and `sleep()`: what belongs to one call, and what cannot work, said before any work is done.

The sleep itself lives in `SleepModel.forward`. Here are the choices of a call (`sleep_passes`, `sleep_callback`,
`compile_config`), the nap on demand, and the checks.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache
from transformers.utils import is_torchdynamo_compiling, logging

from .cache_sleep import SleepState, read_state, window_layer, write_state
from .distributed_sleep import is_sharded


logger = logging.get_logger(__name__)


@dataclass
class SleepEvent:
    """
    What a `sleep_callback` is told after every sleep.

    Attributes
    ----------
    window_index : int
        The window that was slept over, counted from 0.
    passes : int
        N, the one awake included.
    seconds : float
        Wall time of the sleep.
    relative_change : list[float]
        For each of the N - 1 passes asleep, |S_j - S_{j-1}| / |S_{j-1}| over all fast weights of the looped span.
    state_norm : float
        |S| after the sleep: the Frobenius norm over all fast weights of a row, averaged over the rows.
    freed_bytes : int
        Bytes of cache that the sleep freed.
    """

    window_index: int
    passes: int
    seconds: float
    relative_change: list[float]
    state_norm: float
    freed_bytes: int


class SleepMixin:
    """Adds `sleep()` to a model."""

    @torch.no_grad()
    def sleep(
        self,
        past_key_values: Cache,
        sleep_passes: int | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
    ) -> Cache:
        """
        Sleep now, whether the window is full or not: consolidate it into the fast weights and clear it.

        Parameters
        ----------
        past_key_values : Cache
            What `forward` or `generate` returned. Changed in place.
        sleep_passes : int, optional
            N, all passes over the window, the one awake included: 2 replays it once, 1 only clears it. Default:
            `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`].

        Returns
        -------
        Cache
            `past_key_values`. If its window is empty already, nothing has happened.

        Raises
        ------
        ValueError
            If the cache was not made for this model, or N is not a positive integer.
        """
        model = getattr(self, self.base_model_prefix, self)
        passes = model.check_sleep_passes(sleep_passes)
        state = read_state(past_key_values, model.config)
        if state.stored > 0:
            write_state(past_key_values, model._sleep(state, passes, sleep_callback), model.config)
        return past_key_values


class SleepGenerationMixin:
    """Adds `sleep_passes`, `sleep_callback` and compiled tokens to `generate()`; stands first among the bases."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        sleep_passes: int | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        **kwargs,
    ):
        """
        [`GenerationMixin.generate`], sleeping whenever the window is full. Takes and returns the same, and:

        Parameters
        ----------
        sleep_passes : int, optional
            N for this call, all passes over a window. Default: `sleep_passes` of the generation config, which may
            have one, or else `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`] after every sleep, for instance to advance a progress bar.
        compile_config : CompileConfig, optional
            As elsewhere in transformers, but for this model's own cache and on any device: tokens run compiled, see
            `get_compiled_call`. Without it nothing is compiled.

        Raises
        ------
        ValueError
            If what is asked for cannot work with fast weights: assisted decoding, other caches, right padding.
        FloatingPointError
            If the fast weights or the logits are not finite.
        """
        model = getattr(self, self.base_model_prefix, self)
        for name, value in (("sleep_passes", sleep_passes), ("sleep_callback", sleep_callback)):
            if value is not None:
                kwargs[name] = value
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")

        def option(name):
            """As `generate` will find it: from the call, its generation config or the model's."""
            values = (
                kwargs.get(name),
                getattr(generation_config, name, None),
                getattr(self.generation_config, name, None),
            )
            return next((value for value in values if value is not None), None)

        passes = model.check_sleep_passes(option("sleep_passes"))
        _refuse_what_cannot_work(option)
        if option("guidance_scale") not in (None, 1) and passes != model.config.sleep_passes:
            raise ValueError(
                f"With `guidance_scale`, transformers reads the text once more without being told of "
                f"`sleep_passes={passes}`. Set `model.config.sleep_passes` instead (now {model.config.sleep_passes})."
            )
        given_mask = kwargs.get("attention_mask")
        padding_mask = _padding_mask(input_ids, given_mask, option)
        _refuse_right_padding(padding_mask, None if given_mask is not None else option("pad_token_id"))
        if input_ids is not None and not input_ids.is_floating_point():
            model.check_input_ids(input_ids)
        if (cache := kwargs.get("past_key_values")) is not None:
            raise_if_not_finite(read_state(cache, model.config), model.config)
        _check_lengths(input_ids, kwargs, 0 if cache is None else cache.get_seq_length())
        _warn_of_cut_windows(padding_mask, model.config.window_size)
        _warn_if_not_compiled(option)

        logits_processor = LogitsProcessorList([_RaiseIfNotFinite(), *(logits_processor or [])])
        return super().generate(inputs, generation_config, logits_processor, *args, **kwargs)

    def _prepare_generation_config(self, *args, **kwargs):
        """Let N go on to `forward`, wherever it was given; a generation config would keep it."""
        generation_config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        for name in ("sleep_passes", "sleep_callback"):
            value = vars(generation_config).pop(name, None)
            if value is not None:
                model_kwargs[name] = value
        return generation_config, model_kwargs

    def _valid_auto_compile_criteria(self, model_kwargs, generation_config) -> bool:
        """Whether to compile: where a `compile_config` is given, on any device; never unasked, as it takes a while."""
        if generation_config.compile_config is None or generation_config.disable_compile:
            return False
        devices = set((getattr(self, "hf_device_map", None) or {}).values())
        quantizer = getattr(self, "hf_quantizer", None)
        reasons = {
            "the model is offloaded": "disk" in devices or ("cpu" in devices and len(devices) > 1),
            "its quantisation does not allow it": quantizer is not None and not quantizer.is_compileable,
            "its parameters are sharded": is_sharded(getattr(self, self.base_model_prefix, self).layers[0]),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            logger.warning_once(f"`compile_config` is left aside, as {reason}: generation goes on without compiling.")
            return False
        os.environ["TOKENIZERS_PARALLELISM"] = "0"  # as transformers does, because the compiler forks
        return True

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Callable:
        """
        What `generate` calls for what is new: a single token runs compiled, in four graphs however long the text.

        Sleeps and longer texts, which a graph would have to unroll into passes and windows, run as ever. A batch and
        padding take further graphs, whose number is bounded, too.

        Parameters
        ----------
        compile_config : CompileConfig, optional
            Options of `torch.compile`. Modes that record CUDA graphs, as "reduce-overhead", transformers' default, are
            replaced by those that do not.

        Raises
        ------
        ValueError
            If the options ask for CUDA graphs.
        """
        compile_config = _without_cuda_graphs(compile_config or self._default_compile_config())
        compiled = super().get_compiled_call(compile_config)
        limit = torch._dynamo.config.patch(recompile_limit=max(32, torch._dynamo.config.recompile_limit))

        def forward_new(*, past_key_values=None, attention_mask=None, position_ids=None, **kwargs):
            input_ids = kwargs.get("input_ids")
            is_one_token = input_ids is not None and input_ids.shape[1] == 1 and past_key_values is not None
            # The mask's length changes with every token. The cache knows which earlier ones are padding; a new one may
            # be, if the text is read in pieces of one token.
            if not is_one_token or not (attention_mask is None or attention_mask[:, -1].all()):
                given = dict(attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values)
                return self(**given, **kwargs)
            passes, callback = (kwargs.pop(name, None) for name in ("sleep_passes", "sleep_callback"))
            if window_layer(past_key_values, self.config).stored_length() >= self.config.window_size:
                self.sleep(past_key_values, passes, callback)
            with limit:
                return compiled(past_key_values=past_key_values, **kwargs)

        return forward_new

    def __getstate__(self) -> dict:
        """Without what was compiled, which is bound to this very model: a copy would compute with its weights."""
        compiled = ("_compiled_call", "_last_compile_config")
        return {name: value for name, value in super().__getstate__().items() if name not in compiled}


def _warn_if_not_compiled(option: Callable) -> None:
    """`generate` asks for a compiled call in greedy search and sampling alone, and of single tokens."""
    if option("compile_config") is None or option("disable_compile"):
        return
    if (option("num_beams") or 1) > 1:
        logger.warning_once("`compile_config` is left aside: transformers does not compile beam search.")
    elif option("use_cache") is False:
        logger.warning_once("`compile_config` is left aside: without a cache, every token reads the whole text anew.")


def _without_cuda_graphs(compile_config: CompileConfig) -> CompileConfig:
    """A CUDA graph replays one shape at fixed addresses; a window grows, and S is handed from call to call."""
    if (compile_config.options or {}).get("triton.cudagraphs"):
        raise ValueError(
            "CUDA graphs replay one shape at fixed addresses, which does not fit a window that grows: leave "
            "`triton.cudagraphs` out of the options of `compile_config`."
        )
    modes = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
    if compile_config.mode not in modes:
        return compile_config
    mode = modes[compile_config.mode]
    logger.info_once(f"CUDA graphs do not fit a window that grows: compiling with `mode={mode!r}` instead.")
    return dataclasses.replace(compile_config, mode=mode)


def _refuse_what_cannot_work(option: Callable) -> None:
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"):
        if option(name):
            raise ValueError(
                f"`{name}`: assisted decoding takes rejected tokens back, but the fast weights have taken them in and "
                "cannot give them back. Generate without an assistant; greedy search, sampling and beam search work."
            )
    cache = option("cache_implementation")
    if cache not in (None, "dynamic"):
        raise ValueError(
            f"`cache_implementation={cache!r}` does not know how to sleep. Leave it out: this model's own cache never "
            "outgrows one window."
        )


def _padding_mask(input_ids, mask, option: Callable) -> torch.Tensor | None:
    """The (batch, length) mask that `generate` goes by, if there is one: given, or of the padding tokens."""
    if mask is not None:
        return mask if mask.ndim == 2 else None
    # As transformers has it: no padding, if it is also what ends a text.
    padding, ends = option("pad_token_id"), option("eos_token_id")
    means_padding = padding is not None and padding not in (ends if isinstance(ends, list) else [ends])
    if means_padding and input_ids is not None and input_ids.ndim == 2:
        return input_ids != padding
    return None


def _refuse_right_padding(mask, padding: int | None) -> None:
    """`padding`: the token that the mask was made of, None if it was given."""
    if mask is None or mask[:, -1:].all():
        return
    what, or_else = "`attention_mask` ends in padding", ""
    if padding is not None:
        what, or_else = (
            f"`input_ids` end in padding (id {padding})",
            " If it is no padding, give an `attention_mask` of ones.",
        )
    raise ValueError(
        f"{what}, so the first new token would follow a padding token. Pad on the left: "
        f"`tokenizer.padding_side = 'left'`.{or_else}"
    )


def _warn_of_cut_windows(mask, window_size: int) -> None:
    if mask is None:
        return
    padding = (mask.cumsum(-1) == 0).sum(-1)  # tokens before the text, (batch,)
    if (padding % window_size > 0).any():
        logger.warning_once(
            f"Some rows begin inside a window, as their padding is not a multiple of window_size={window_size}. Their "
            "first window is cut short, so they sleep at other places than they would alone. For the same results as "
            "without padding, generate rows of one length at a time."
        )


def _check_lengths(input_ids, kwargs: dict, seen: int) -> None:
    """transformers takes tokens as many as their mask for the whole text, and cuts off what the cache has seen."""
    embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    name, given = ("input_ids", input_ids) if embeds is None else ("inputs_embeds", embeds)
    if given is None:
        return
    batch, length = given.shape[:2]
    if mask is not None and mask.ndim == 2 and tuple(mask.shape) not in ((batch, length), (batch, seen + length)):
        raise ValueError(
            f"`attention_mask` must have shape (batch, past + new tokens) = ({batch}, {seen + length}), got "
            f"{tuple(mask.shape)}."
        )
    only_new = embeds is None and mask is not None and mask.shape[1] > length
    if length <= seen and not only_new:
        raise ValueError(
            f"`past_key_values` has seen {seen} tokens already, but `{name}` holds {length}. Give the whole text, "
            "past and new, or new `input_ids` alone with an `attention_mask` of shape (batch, past + new)."
        )


class _RaiseIfNotFinite(LogitsProcessor):
    """NaN in S shows in the next logits, too large a number as infinity; greedy search would go on with nonsense."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # NaN is the largest of all, and one number is looked at faster than a vocabulary.
        if not (largest := scores.amax().item()) < math.inf:
            raise FloatingPointError(
                f"The largest logit is {largest}: weights or fast weights are NaN, or too large for this dtype. "
                "With a float16 model, try bfloat16 or float32."
            )
        return scores


def raise_if_not_finite(state: SleepState, config) -> None:
    """
    Raise `FloatingPointError`, naming the layers, if fast weights in `state` are NaN or infinite.

    In a compiled model the device itself asserts it, as reading an answer would break the graph in two: on a CPU that
    is a `RuntimeError`; on CUDA the process cannot go on after it, as after an index that is out of range.
    """
    finite = {
        i: recurrent_state.isfinite().all()
        for i, (layer_type, (recurrent_state, _)) in enumerate(zip(config.layer_types, state.layers, strict=True))
        if layer_type == "linear_attention" and recurrent_state is not None
    }
    message = (
        "The fast weights of layer(s) {} are not finite: everything after would be nonsense. Start from a new cache, "
        "and check the model's weights and dtype."
    )
    if is_torchdynamo_compiling():
        for i, is_finite in finite.items():
            torch._assert_async(is_finite, message.format([i]))
    elif bad := [i for i, is_finite in finite.items() if not is_finite]:
        raise FloatingPointError(message.format(bad))
