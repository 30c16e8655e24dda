"""`generate()`: what belongs to one call, and what cannot work, said before any work is done.

The sleep itself lives in `SleepModel.forward`. Here are the choices of a call (`sleep_passes`, `sleep_callback`,
`pinned_tokens`, `compile_config`), what of a batch each new token is for, and the checks.
"""

import dataclasses
import logging as python_logging
import math
import os
from collections.abc import Callable
from contextlib import contextmanager

import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import CompileConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.utils import logging

from .cache_sleep import SleepState, read_state, window_layer
from .checks_sleep import check_input_ids, check_past, one_cache
from .distributed_sleep import is_sharded
from .memory_sleep import MemoryTurn, SleepMemory
from .nap_sleep import Sleep, SleepEvent, raise_if_not_finite
from .outputs_sleep import CACHE
from .system_turn_sleep import pinned_by


logger = logging.get_logger(__name__)

# Arguments of `generate` that go on to `forward`, wherever they are given.
OWN_OPTIONS = ("sleep_passes", "sleep_callback", "pinned_tokens")


def chosen(name: str, value, *generation_configs):
    """An option as `generate` finds it: what a call gives, or else the first of these configs that has it, or None."""
    values = (value, *(getattr(config, name, None) for config in generation_configs))
    return next((x for x in values if x is not None), None)


class GenerationCall(StoppingCriteriaList):
    """
    What one call of `generate` knows of its rows, and transformers does not tell `forward`.

    It stands for the call's stopping criteria, and remembers which rows they have ended: what is fed to such a row
    afterwards is padding. Its last token is read like any other, as the next turn of a chat stands behind it.
    """

    ended: torch.Tensor | None = None  # (batch,) of bool
    ended_before: torch.Tensor | None = None  # the same, before the last token
    # Of a call with a memory:
    mask: torch.Tensor | None = None  # of the tokens given, one row for each text that is generated
    pad_token: torch.Tensor | None = None
    eos_tokens: torch.Tensor | None = None
    length: int | None = None  # of the texts, new tokens included
    embeds_are_new: bool = False  # `inputs_embeds` do not begin with what the cache has read

    def __call__(self, input_ids, scores, **kwargs):
        is_done = super().__call__(input_ids, scores, **kwargs)
        self.ended_before = self.ended
        self.ended = is_done if self.ended is None else self.ended | is_done
        self.length = input_ids.shape[1]
        return is_done

    def last_mask(self) -> torch.Tensor | None:
        """(batch, 1): 0 where the last token of all was for a row that had ended. None if there is none."""
        return None if self.ended_before is None else (~self.ended_before).long().unsqueeze(1)

    def mask_of_beams(self, generated: torch.Tensor) -> torch.Tensor:
        """(rows, length): 0 behind the first token that ends a text that beam search returns, or, where none does, at
        the padding with which the row ends."""
        ends = torch.zeros_like(generated)
        if self.eos_tokens is not None:
            ends = torch.isin(generated, self.eos_tokens.to(generated.device)).long()
        is_padding = torch.zeros_like(generated)
        if self.pad_token is not None:
            is_padding = (generated == self.pad_token.to(generated.device)).long()
        is_padding = is_padding.flip(1).cumprod(1).flip(1)
        is_behind = (ends.cumsum(1) - ends).clamp(max=1)
        return 1 - torch.where(ends.any(1, keepdim=True), is_behind, is_padding)

    def padding_mask(self, batch: int) -> torch.Tensor | None:
        """(batch, 1): 0 where the next token is for a row that has ended. None if there is none."""
        if self.ended is None or self.ended.shape[0] != batch or not self.ended.any():
            return None
        return (~self.ended).long().unsqueeze(1)


class SleepGenerationMixin:
    """Adds `sleep_passes`, `sleep_callback`, `pinned_tokens` and compiled tokens to `generate()`; stands first among
    the bases."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        logits_processor: LogitsProcessorList | None = None,
        *args,
        sleep_passes: int | Sleep | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        pinned_tokens: int | bool | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        keep_memory: bool = True,
        **kwargs,
    ):
        """
        [`GenerationMixin.generate`], each row sleeping whenever its window is full. Takes and returns the same, and:

        Parameters
        ----------
        sleep_passes : int or Sleep, optional
            N for this call, all passes over a window. Default: `sleep_passes` of the generation config, which may
            have one, or else `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`] after every sleep, for instance to advance a progress bar.
        pinned_tokens : int or True, optional
            How many of a new text's first tokens keep their keys for good. True: those of the system's turn, which are
            found by the chat template of the `tokenizer` that is given, too. Default: `config.pinned_tokens`.
        past_key_values, cache : Cache, optional
            What earlier calls returned, by either name. It is carried on, also with `use_cache=False`. With a
            [`SleepMemory`], tokens, embeddings and mask are those of the new text alone, and so are all lengths that
            options speak of; a memory of one row serves any number of them. What comes back as `past_key_values` (with
            `return_dict_in_generate=True`) is a memory that has read the new text to its end, the last generated token
            included; of beams, the texts that are returned.
        keep_memory : bool, optional
            Whether a [`SleepMemory`] stays as it was, which costs nothing. False: it becomes what would come back.
        compile_config : CompileConfig, optional
            As elsewhere in transformers, but for this model's own cache and on any device: tokens run compiled, see
            `get_compiled_call`. Without it nothing is compiled.

        Raises
        ------
        ValueError
            If what is asked for cannot work with fast weights: assisted decoding, other caches. Or if where the
            system's turn ends cannot be told.
        FloatingPointError
            If the fast weights or the logits are not finite.
        """
        model = self.base_model
        for name, value in zip(OWN_OPTIONS, (sleep_passes, sleep_callback, pinned_tokens), strict=True):
            if value is not None:
                kwargs[name] = value
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")

        def option(name):
            return chosen(name, kwargs.get(name), generation_config, self.generation_config)

        sleep = model.check_sleep_passes(option("sleep_passes"))
        _refuse_what_cannot_work(option)
        if option("guidance_scale") not in (None, 1) and sleep != model.check_sleep_passes(None):
            raise ValueError(
                f"With `guidance_scale`, transformers reads the text once more without being told of "
                f"`sleep_passes={option('sleep_passes')}`. Set `model.config.sleep_passes` instead (now "
                f"{model.config.sleep_passes})."
            )
        if input_ids is not None and not input_ids.is_floating_point():
            check_input_ids(input_ids, model.config)
        state = SleepState.empty(0)
        if (cache := one_cache(past_key_values, cache)) is not None:
            state = read_state(cache, model.config)
            raise_if_not_finite(model.fast_weights(state))
            kwargs |= {CACHE: cache, "use_cache": True}
        if option("pinned_tokens") is True:
            mask = kwargs.get("attention_mask")
            kwargs["pinned_tokens"] = pinned_by(True, state, kwargs.get("tokenizer"), input_ids, mask)
        turn = None
        if getattr(cache, "is_memory", False):
            turn = self._turn(cache, input_ids, kwargs, option)
            kwargs[CACHE] = cache = turn.fork
        seen = 0 if cache is None else cache.get_seq_length()
        _check_lengths(input_ids, kwargs, seen, option)
        _warn_if_not_compiled(option)
        self._check_release()

        logits_processor = LogitsProcessorList([_RaiseIfNotFinite(), *(logits_processor or [])])
        call = GenerationCall()
        with _right_padding_is_fine():
            output = super().generate(
                inputs, generation_config, logits_processor, *args, generation_call=call, **kwargs
            )
        if turn is not None and (not keep_memory or not isinstance(output, torch.Tensor)):
            memory = self._end_turn(turn, call, output, kwargs, option)
            if not keep_memory:
                past_key_values.state = memory.state
            if not isinstance(output, torch.Tensor):
                output[CACHE] = memory
        return output

    def save_pretrained(self, *args, **kwargs):
        """
        As [`SleepPreTrainedModel.save_pretrained`], with our options of the generation config: transformers drops what
        it does not know in loading one that was derived from the model's config.
        """
        if any(getattr(self.generation_config, name, None) is not None for name in OWN_OPTIONS):
            self.generation_config._from_model_config = False
        return super().save_pretrained(*args, **kwargs)

    def _turn(self, memory: SleepMemory, input_ids, kwargs: dict, option: Callable) -> MemoryTurn:
        """A call with a memory, whose mask speaks of the new tokens alone from here on."""
        given = kwargs.get("inputs_embeds") if kwargs.get("inputs_embeds") is not None else input_ids
        if given is None:
            raise ValueError("A memory is not a beginning: give it new `input_ids`, at least one token.")
        times = max(option("num_beams") or 1, option("num_return_sequences") or 1)
        turn = MemoryTurn(memory, given.shape[0], times, 0 if input_ids is None else input_ids.shape[1])
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = turn.new_mask(kwargs["attention_mask"], given.shape[1])
        return turn

    def _end_turn(self, turn: MemoryTurn, call: GenerationCall, output, kwargs: dict, option) -> SleepMemory:
        """The memory that has read the texts to their ends: generation leaves the last token unread, or all beams."""
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        model, beams = self.base_model, option("num_beams") or 1
        options = {name: option(name) for name in ("sleep_passes", "pinned_tokens")}
        if beams == 1:
            memory = turn.end()
            options["sleep_callback"] = option("sleep_callback")
            model(sequences[:, -1:], attention_mask=call.last_mask(), past_key_values=memory, **options)
            return memory
        returned, embeds = option("num_return_sequences") or 1, kwargs.get("inputs_embeds")
        memory, mask = turn.memory.fork(returned), call.mask
        if mask is not None:  # one row for each beam
            mask = mask[:: turn.times].repeat_interleave(returned, dim=0)
        generated = sequences[:, turn.given :]
        if embeds is not None:
            embeds = embeds.repeat_interleave(returned, dim=0)
            model(inputs_embeds=embeds, attention_mask=mask, past_key_values=memory, **options)
            sequences, mask = generated, None
        if mask is None:
            mask = sequences.new_ones(len(sequences), sequences.shape[1] - generated.shape[1])
        mask = torch.cat([mask.to(sequences), call.mask_of_beams(generated)], dim=1)
        model(sequences, attention_mask=mask, past_key_values=memory, **options)
        return memory

    def generate_batch(self, *args, **kwargs):
        """Refused: continuous batching pages keys and values, and a sleep knows no pages."""
        raise ValueError(
            "Continuous batching keeps keys and values in pages, and this model's own cache, which sleeps, cannot be "
            "paged. Call `generate` with a padded batch: its rows do not depend on one another."
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def _prepare_generation_config(self, *args, generation_call: GenerationCall | None = None, **kwargs):
        """Let N go on to `forward`, wherever it was given; a generation config would keep it."""
        generation_config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        for name in OWN_OPTIONS:
            value = vars(generation_config).pop(name, None)
            if value is not None:
                model_kwargs[name] = value
        generation_config._call = GenerationCall() if generation_call is None else generation_call
        embeds, cache, mask = (model_kwargs.get(name) for name in ("inputs_embeds", CACHE, "attention_mask"))
        if embeds is not None and cache is not None and mask is not None:
            generation_config._call.embeds_are_new = mask.shape[1] == cache.get_seq_length() + embeds.shape[1]
        return generation_config, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """Where transformers has dropped a mask of ones, it is held against what the cache has read."""
        # Here no argument is checked any more: PEFT's prompt learning puts a function of its own before ours.
        model_kwargs["generation_call"] = call = getattr(generation_config, "_call", None)
        if call is not None:
            call.mask = model_kwargs.get("attention_mask")
            call.pad_token = getattr(generation_config, "_pad_token_tensor", None)
            call.eos_tokens = getattr(generation_config, "_eos_token_tensor", None)
        cache = model_kwargs.get(CACHE)
        if cache is not None and model_kwargs.get("attention_mask") is None:
            state = read_state(cache, self.config)
            if state.read != state.seen:
                rows = state.last_hidden_state.shape[0]
                check_past(torch.ones(rows, state.seen, dtype=torch.bool, device=self.device), state)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _get_stopping_criteria(self, generation_config, *args, **kwargs):
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        call = getattr(generation_config, "_call", None)
        if call is None or (generation_config.num_beams or 1) > 1:  # beams that go on have not ended
            return criteria
        call.extend(criteria)
        return call

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """None: positions count from a window's start, and a list of all of them would grow with the text."""

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, inputs_embeds=None, generation_call=None, **kwargs
    ):
        kwargs.pop("tokenizer", None)  # that of `stop_strings`, which transformers hands on
        if generation_call is not None and generation_call.embeds_are_new and kwargs.get("is_first_iteration"):
            next_sequence_length = None  # transformers takes embeddings for the whole text
        return super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, inputs_embeds=inputs_embeds, **kwargs
        )

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        """A mask of the new tokens alone where there is a cache: one of the whole text would grow with it."""
        given = model_kwargs.pop("attention_mask", None)
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        call = model_kwargs.get("generation_call")
        new = None if call is None else call.padding_mask(outputs.logits.shape[0])
        if not model_kwargs.get("use_cache", True) and (given is not None or new is not None):
            if given is None:
                given = new.new_ones(new.shape[0], call.length)
            new = given.new_ones(given.shape[0], 1) if new is None else new
            new = torch.cat([given, new.to(given.dtype)], dim=1)
        model_kwargs["attention_mask"] = new
        return model_kwargs

    def _check_release(self) -> None:
        """
        Under a release of transformers that this code was not tested with, hold generation against one reading: a
        renamed argument, dropped in silence, would cost the memory.
        """
        tested = SpecifierSet(self.config.tested_transformers)
        if tested.contains(transformers.__version__, prereleases=True) or self.__dict__.get("_release_is_checked"):
            return
        self._release_is_checked = True
        ids = torch.tensor([[0, min(1, self.config.vocab_size - 1)]], device=self.device)
        options = dict(do_sample=False, max_new_tokens=2, min_new_tokens=2, output_logits=True, num_beams=1)
        options["attention_mask"] = torch.ones_like(ids)  # neither is padding
        mode = self.training
        self.eval()
        try:
            generated = super().generate(ids, return_dict_in_generate=True, use_cache=True, **options)
            at_once = self(generated.sequences[:, :-1], use_cache=False).logits[:, 1:]
            apart = torch.stack(generated.logits, dim=1)
            tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
            agree = torch.allclose(at_once.float(), apart.float(), atol=tolerance * float(at_once.abs().max()))
            reason = "tokens generated one by one are not those of one reading"
        except Exception as error:
            agree, reason = False, f"{type(error).__name__}: {error}"
        finally:
            self.train(mode)
        if not agree:
            raise RuntimeError(
                f"This model's code was tested with transformers{tested} and does not work with "
                f"{transformers.__version__} ({reason}). Install one that it works with: "
                f'`pip install "transformers{tested}"`, or load the model with a newer modeling_sleep.'
            )

    def _valid_auto_compile_criteria(self, model_kwargs, generation_config) -> bool:
        """Whether to compile: where a `compile_config` is given, on any device; never unasked, as it takes a while."""
        if generation_config.compile_config is None or generation_config.disable_compile:
            return False
        devices = set((getattr(self, "hf_device_map", None) or {}).values())
        quantizer = getattr(self, "hf_quantizer", None)
        reasons = {
            "the model is offloaded": "disk" in devices or ("cpu" in devices and len(devices) > 1),
            "its quantisation does not allow it": quantizer is not None and not quantizer.is_compileable,
            "its parameters are sharded": is_sharded(self.base_model.layers[0]),
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

        def forward_new(*, attention_mask=None, past_key_values=None, cache=None, **kwargs):
            input_ids, cache = kwargs.get("input_ids"), one_cache(past_key_values, cache)
            kwargs[CACHE] = cache
            is_one_token = input_ids is not None and input_ids.shape[1] == 1 and cache is not None
            # Rows whose windows do not begin together, and padding, are read as ever.
            if not is_one_token or not (attention_mask is None or attention_mask[:, -1].all()):
                return self(attention_mask=attention_mask, **kwargs)
            common = window_layer(cache, self.config).common
            if common is None or not common.is_even():
                return self(**kwargs)
            options = {name: kwargs.pop(name, None) for name in OWN_OPTIONS}
            if common.stored >= self.config.window_size:
                self.sleep(cache, options["sleep_passes"], options["sleep_callback"])
            with limit:
                return compiled(**kwargs)

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


def _check_lengths(input_ids, kwargs: dict, seen: int, option: Callable) -> None:
    """transformers takes tokens as many as their mask for the whole text, and cuts off what the cache has seen."""
    embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    if embeds is not None and option("prefill_chunk_size") is not None:
        raise ValueError("`prefill_chunk_size` reads pieces of `input_ids`, not of `inputs_embeds`. Leave it out.")
    name, given = ("input_ids", input_ids) if embeds is None else ("inputs_embeds", embeds)
    if given is None:
        return
    batch, length = given.shape[:2]
    if mask is not None and mask.ndim == 2 and tuple(mask.shape) not in ((batch, length), (batch, seen + length)):
        raise ValueError(
            f"`attention_mask` must have shape (batch, past + new tokens) = ({batch}, {seen + length}), got "
            f"{tuple(mask.shape)}."
        )
    only_new = mask is not None and mask.shape[1] > length
    if length <= seen and not only_new:
        raise ValueError(
            f"`past_key_values` has seen {seen} tokens already, but `{name}` holds {length}. Give the whole text, "
            f"past and new, or new `{name}` alone with an `attention_mask` of shape (batch, past + new)."
        )


@contextmanager
def _right_padding_is_fine():
    """Without transformers' warning of right padding: here the first new token follows a row's last one."""
    generation_logger = python_logging.getLogger("transformers.generation.utils")
    says_so = lambda record: "right-padding was detected" not in record.getMessage()  # noqa: E731
    generation_logger.addFilter(says_so)
    try:
        yield
    finally:
        generation_logger.removeFilter(says_so)


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
