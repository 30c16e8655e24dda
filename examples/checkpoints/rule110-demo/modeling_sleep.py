"""Language models that sleep: read this file and know the paper (arXiv 2605.26099, "Do Language Models Need Sleep?").

A hybrid of attention and Gated DeltaNet layers reads in windows. When the attention cache is full, the model sleeps:
it passes several times over the window, each pass fed by the hidden states of the one before, and each pass rewrites
the fast weights. Then the cache is cleared.

    L       `window_size`       tokens that the attention cache holds
    N       `sleep_passes`      passes over a window in all: one awake, N - 1 asleep
    S       `recurrent_state`   fast weights, one matrix per head of a Gated DeltaNet layer
    alpha   `log_decay`         how much of S a token keeps, exp(-A softplus(dt))
    beta    `beta`              how strongly a token rewrites S
    h       `hidden_states`     features of the window; those of pass 1 are kept as `kept_hidden_states`

Algorithm 1 of the paper, and where it stands here (all in `SleepModel`):

    1. zero-initialise S                                        `SleepState.empty`
    2. split the tokens into windows of at most L               `forward`
    3. pass 1 over the window, which is also the prediction     `_wake`
    4. before the next window: passes 2 ... N                   `_sleep`, `_consolidate`
    5. drop keys, values and h; S alone goes on                 `_sleep`

Sleep is lazy: it begins when a token arrives and the window is full. Nothing sleeps after the last window, whose
consolidation would serve nobody, so windows that are only predicted from take one pass, as in the paper.

Notable:
- one code path: `forward` walks over window boundaries, so one call, chunked prefill, token by token, training and
  generation cannot differ;
- functional core: layers take their states and return new ones. Only the edge, `forward` and `sleep`, reads and
  writes the cache. So gradients flow through all passes and windows, and through gradient checkpointing;
- positions count from the window's start; masked tokens leave S exactly as it was.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, is_torchdynamo_compiling
from transformers.utils.output_capturing import capture_outputs

from .adopt_sleep import adopt
from .cache_sleep import SleepState, read_state, write_state
from .configuration_sleep import SleepConfig
from .distributed_sleep import is_sharded, largest_of_all_processes
from .family_layers_sleep import FamilyDecoderLayer, family_norm, is_zero_centred
from .generation_sleep import SleepEvent, SleepGenerationMixin, SleepMixin, raise_if_not_finite
from .layers_sleep import GatedDeltaNet, SleepDecoderLayer, SleepLayers, rotary_embedding
from .peft_sleep import register_target_modules


register_target_modules()
# With label smoothing, `Trainer` computes the loss itself, and shifts the labels of the classes that stand here.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(SleepConfig.model_type, "SleepForCausalLM")

# With N = 1, windows are read side by side, but not more: the memory of a long text is to stay bounded.
TOKENS_AT_ONCE = 4096
RECORDED = ("output_hidden_states", "output_attentions")


class SleepPreTrainedModel(PreTrainedModel, SleepMixin):
    """Weights: how they are initialised, loaded and saved."""

    config_class = SleepConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SleepDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True  # S cannot be rewound: no assisted decoding
    model_tags = ["sleep", "fast-weights"]  # on the Hub
    # Attention by the name of its module, as it may be a family's.
    _can_record_outputs = {"hidden_states": [SleepDecoderLayer, FamilyDecoderLayer], "attentions": "self_attn"}

    def __init__(self, config: SleepConfig):
        config.validate()  # again: `from_pretrained(..., sleep_passes=4)` sets fields of one that was valid
        super().__init__(config)
        if config.base_config is not None:  # accelerate wants no name that is not there
            self._no_split_modules = ["FamilyDecoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        config = self.config
        if isinstance(module, GatedDeltaNet):
            bound = config.linear_conv_kernel_dim**-0.5
            init.uniform_(module.conv1d.weight, -bound, bound)
            init.copy_(
                module.A_log,
                torch.empty_like(module.A_log).uniform_(config.linear_a_min, config.linear_a_max).log(),
            )
            log_dt = torch.tensor([config.linear_dt_min, config.linear_dt_max]).log().tolist()
            dt = torch.empty_like(module.dt_bias).uniform_(*log_dt).exp()
            init.copy_(module.dt_bias, dt + (-torch.expm1(-dt)).log())  # the inverse of softplus
            if module.layer_idx in config.memory_layers:
                init.zeros_(module.o_proj.weight)
        elif is_zero_centred(module):
            init.zeros_(module.weight)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Save the model with its code, so that the folder loads anywhere with `trust_remote_code=True`.

        As [`PreTrainedModel.save_pretrained`]; the `auto_map` names all classes whichever of them is saved.
        """
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoConfig": "configuration_sleep.SleepConfig",
            "AutoModel": "modeling_sleep.SleepModel",
            "AutoModelForCausalLM": "modeling_sleep.SleepForCausalLM",
            "AutoModelForSequenceClassification": "modeling_sleep.SleepForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_sleep.SleepForTokenClassification",
        }
        # Whatever the weights were loaded from, the code that goes with them now is this.
        self.config.modeling_sleep_version = self.config.code_version
        self.config.transformers_range = self.config.tested_transformers
        super().save_pretrained(save_directory, **kwargs)


@dataclass
class SleepWindowOutput:
    """
    What one wake pass gives: its last hidden states, and the layers' new states.

    No [`ModelOutput`], as making one takes a hundredth of a token's time; `capture_outputs` sets items of it.
    """

    last_hidden_state: torch.Tensor | None = None
    kept_hidden_states: torch.Tensor | None = None
    layers: list | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None

    def __setitem__(self, name: str, value: tuple) -> None:
        setattr(self, name, value)


class SleepModel(SleepPreTrainedModel):
    """
    The stack of layers that wakes and sleeps (arXiv 2605.26099, Algorithm 1), without a head.

    Parameters
    ----------
    config : SleepConfig
    """

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        if config.base_config is None:
            layer_class, norm_class = SleepDecoderLayer, nn.RMSNorm
        else:
            layer_class, norm_class = FamilyDecoderLayer, family_norm(config)
        self.layers = SleepLayers(layer_class(config, i) for i in range(config.num_hidden_layers))
        self.norm = norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        sleep_passes: int | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Read tokens, sleeping whenever one arrives and the window is full.

        Parameters
        ----------
        input_ids : torch.LongTensor, optional
            (batch, length).
        attention_mask : torch.Tensor, optional
            (batch, past + length), 0 at padding, on either side.
        position_ids : torch.LongTensor, optional
            Taken for compatibility. Positions count from the window's start, whatever these say; ids that do not run
            on by one (packed sequences) are refused.
        past_key_values : Cache, optional
            A `DynamicCache(config=config)`; what earlier calls returned.
        inputs_embeds : torch.FloatTensor, optional
            (batch, length, hidden_size), instead of `input_ids`.
        use_cache : bool, optional
            Whether to return `past_key_values`, and to make them if none are given. Those that are given are always
            carried on. Default: `config.use_cache`, but never under gradient checkpointing.
        sleep_passes : int, optional
            N, all passes over a window, the wake one included. Default: `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`] after every sleep.

        Returns
        -------
        BaseModelOutputWithPast
            `last_hidden_state` is (batch, length, hidden_size). With `output_attentions`, a token's weights over other
            windows are the zeros that they are: (batch, heads, length, keys of the window so far + length).

        Raises
        ------
        ValueError
            If the input is not what it must be; the message says what to do.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        passes = self.check_sleep_passes(sleep_passes)
        if inputs_embeds is None:
            self._check_shape("input_ids", input_ids)
            try:
                inputs_embeds = self.embed_tokens(input_ids)
            except IndexError:  # on a CPU, as every other device asserts by itself
                self.check_input_ids(input_ids)
                raise
        else:
            self._check_shape("inputs_embeds", inputs_embeds, (self.config.hidden_size,))
        if use_cache is None:
            use_cache = self.config.use_cache and not (self.gradient_checkpointing and self.training)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        state = read_state(past_key_values, self.config)
        self._check_batch(state, inputs_embeds.shape[0])
        mask = self._mask_of_new_tokens(attention_mask, inputs_embeds, state.seen)
        self._check_position_ids(position_ids, mask, inputs_embeds.shape[:2])
        _check_unpacked(kwargs)

        windows = self._split_into_windows(inputs_embeds.shape[1], state.stored)
        if is_sharded(self.layers[0]):
            inputs_embeds = self._keep_in_step(inputs_embeds, len(windows), state, passes)
        outputs, begin, i = [], 0, 0
        # The last window stays in the cache if there is one, and may not be full; the others can be read side by side.
        alone = int(past_key_values is not None or windows[-1] < self.config.window_size)
        at_once = self._windows_at_once(passes, sleep_callback, kwargs) if len(windows) - alone > 1 else 1
        while i < len(windows):
            if state.stored >= self.config.window_size:
                state = self._sleep(state, passes, sleep_callback)
            if i > 0 and self._cuts_backward(len(windows) - i):
                state = _detach(state)
            # One that is begun already is not alone in the cache.
            number = max(1, min(at_once, len(windows) - alone - i)) if state.stored == 0 else 1
            read = self._wake_window if number == 1 else partial(self._wake_windows, number)
            window = slice(begin, begin + sum(windows[i : i + number]))
            # Contiguous, so that a compiled layer meets every window in one layout.
            window_mask = None if mask is None else mask[:, window]
            output, state = read(inputs_embeds[:, window].contiguous(), window_mask, state, **kwargs)
            outputs.append(output)
            begin, i = window.stop, i + number
        if past_key_values is not None:
            write_state(past_key_values, state, self.config)

        return BaseModelOutputWithPast(
            last_hidden_state=_concatenate([output.last_hidden_state for output in outputs]),
            past_key_values=past_key_values if use_cache else None,
            hidden_states=_concatenate_layers([output.hidden_states for output in outputs], _concatenate),
            attentions=_concatenate_layers([output.attentions for output in outputs], _block_diagonal),
        )

    # Wake: pass 1, which is also the prediction.

    def _wake_window(self, inputs_embeds, mask, state: SleepState, **kwargs) -> tuple[SleepWindowOutput, SleepState]:
        """Read tokens that fit into the current window."""
        length = inputs_embeds.shape[1]
        kept_mask = _append_mask(state.kept_mask, mask, state.stored, inputs_embeds)
        output = self._wake(inputs_embeds, state, mask, kept_mask, return_dict=True, **kwargs)

        window_start_states = state.window_start_states
        if state.stored == 0:
            window_start_states = list(window_start_states)
            for i in range(self.config.looped_layers[1], self.config.num_hidden_layers):
                if self.config.layer_types[i] == "linear_attention":
                    window_start_states[i] = state.layers[i][0]
        kept = output.kept_hidden_states
        if state.stored > 0:
            kept = torch.cat([state.kept_hidden_states, kept], dim=1)
        return output, state._replace(
            layers=output.layers,
            window_start_states=window_start_states,
            kept_hidden_states=kept,
            kept_mask=kept_mask,
            stored=state.stored + length,
            seen=state.seen + length,
        )

    def _wake_windows(self, number: int, inputs_embeds, mask, state: SleepState, **kwargs):
        """
        Read so many full windows of which none is slept over, then forget them: what N = 1 is, all windows at once.

        They stand side by side in the batch, (batch * number, window_size, ...). S alone goes from one to the next.
        """
        inputs_embeds, mask = (
            None if x is None else x.unflatten(1, (number, -1)).flatten(0, 1) for x in (inputs_embeds, mask)
        )
        output = self._wake(inputs_embeds, state, mask, mask, return_dict=True, windows=number, **kwargs)
        output.last_hidden_state = output.last_hidden_state.unflatten(0, (-1, number)).flatten(1, 2)
        seen = state.seen + number * self.config.window_size
        state = self._clear_window(state._replace(layers=output.layers, seen=seen), number)
        if not torch.is_grad_enabled():
            raise_if_not_finite(state, self.config)
        return output, state

    def _windows_at_once(self, passes: int, callback, kwargs: dict) -> int:
        """How many windows may be read at once: with N = 1, as many as fit in `TOKENS_AT_ONCE`, if nobody minds."""
        recorded = any(kwargs.get(name, getattr(self.config, name, False)) for name in RECORDED)
        cut = self.config.bptt_windows is not None and torch.is_grad_enabled()
        in_pieces = (self.gradient_checkpointing and self.training) or is_sharded(self.layers[0])
        if passes > 1 or callback is not None or recorded or cut or in_pieces:
            return 1
        return TOKENS_AT_ONCE // self.config.window_size

    @capture_outputs
    def _wake(self, hidden_states, state: SleepState, mask, kept_mask, **kwargs) -> SleepWindowOutput:
        """One pass through all layers. `output_hidden_states` and `output_attentions` record here, never asleep."""
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("output_")}
        context = self._window_context(hidden_states, kept_mask, state.stored, padding_mask=mask, **kwargs)
        num_layers, (_, end) = self.config.num_hidden_layers, self.config.looped_layers
        states = [tensor for pair in state.layers for tensor in pair]
        kept, *looped = self.layers(hidden_states, *states[: 2 * end], start=0, end=end, **context)
        last, after = kept, []
        if end < num_layers:
            last, *after = self.layers(kept, *states[2 * end :], start=end, end=num_layers, **context)
        states = looped + after
        return SleepWindowOutput(
            last_hidden_state=self.norm(last),
            kept_hidden_states=kept,
            layers=list(zip(states[::2], states[1::2], strict=True)),
        )

    # Sleep: passes 2 ... N, then nothing of the window is left but S.

    def _sleep(self, state: SleepState, passes: int, callback=None) -> SleepState:
        """Consolidate the current window into S and clear it."""
        if callback is not None:  # a clock would break a compiled graph in two
            device = state.kept_hidden_states.device
            began, bytes_before = _seconds(device), state.nbytes()
        changes = None
        if passes > 1 and state.stored > 0:
            start, num_layers = self.config.looped_layers[0], self.config.num_hidden_layers
            recurrent = [i for i in range(start, num_layers) if self.config.layer_types[i] == "linear_attention"]
            coda = self.config.looped_layers[1]
            # Layers behind the span have seen pass 1 only; they go back to where the window found them.
            before = [state.window_start_states[i] if i >= coda else state.layers[i][0] for i in recurrent]
            context = self._window_context(state.kept_hidden_states, state.kept_mask, 0, padding_mask=state.kept_mask)

            def consolidate(hidden_states, *recurrent_states):
                return self._consolidate(hidden_states, recurrent, recurrent_states, passes, context, callback)

            # A checkpoint around those of the single passes: while back-propagating through a window, only its own
            # passes are in memory, as their hidden states and S, and one of them in full.
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                consolidate = partial(self._gradient_checkpointing_func, consolidate)
            unseen = self._is_unseen_asleep()
            with torch.inference_mode() if unseen else nullcontext():
                *after, changes = consolidate(state.kept_hidden_states, *before)
            if unseen:  # a copy may be trained on from; what was made in that mode may not
                after = [x.clone() for x in after]
            layers = list(state.layers)
            for i, recurrent_state in zip(recurrent, after, strict=True):
                layers[i] = (recurrent_state, None)
            state = state._replace(layers=layers)

        state = self._clear_window(state)
        if not torch.is_grad_enabled():
            raise_if_not_finite(state, self.config)
        if callback is not None:
            callback(
                SleepEvent(
                    window_index=state.sleeps - 1,
                    passes=passes,
                    seconds=_seconds(device) - began,
                    relative_change=[] if changes is None else changes.tolist(),
                    state_norm=_norm(state, self.config),
                    freed_bytes=bytes_before - state.nbytes(),
                )
            )
        return state

    def _is_unseen_asleep(self) -> bool:
        """
        Whether torch need not keep track of what the passes of a sleep make: without gradients, nobody sees it but S.

        Compiled layers would be compiled for that mode as well, and sharded ones keep what they gather.
        """
        compiled = is_torchdynamo_compiling() or self.layers[0]._compiled_call_impl is not None
        return not (torch.is_grad_enabled() or compiled or is_sharded(self.layers[0]))

    def _consolidate(self, hidden_states, recurrent, recurrent_states, passes, context, callback):
        """
        Passes 2 ... N over `hidden_states`, (batch, stored, hidden_size): h, S <- Blocks(h, S) over the looped span.

        The last pass goes on into the layers behind the span, and ends with S of the last layer that has one: what
        comes after it would be read by nobody.

        Parameters
        ----------
        recurrent : list[int]
            The Gated DeltaNet layers from the span's start on.
        recurrent_states : sequence[torch.Tensor | None]
            S of each at the beginning.

        Returns
        -------
        tuple[torch.Tensor, ...]
            S of each of these layers, and the relative change of S in each pass, (passes - 1,), or None.
        """
        start, end = self.config.looped_layers
        recurrent_states, changes = list(recurrent_states), []
        looped = [i for i in recurrent if i < end]
        # Without gradients, as in the first run of a reentrant checkpoint, there is nothing to checkpoint.
        one_pass = self.layers if torch.is_grad_enabled() else self.layers.run
        for number in range(2, passes + 1):
            last = number == passes
            stop = recurrent[-1] + 1 if last else end
            here = [i for i in recurrent if i < stop]
            before = recurrent_states[: len(here)]

            # Keys, values and the convolution's inputs are made anew from the refined features.
            states = [None] * (2 * (stop - start))
            for i, recurrent_state in zip(here, before, strict=True):
                states[2 * (i - start)] = recurrent_state
            hidden_states, *states = one_pass(
                hidden_states, *states, start=start, end=stop, state_only=last, **context
            )
            after = [states[2 * (i - start)] for i in here]
            recurrent_states[: len(here)] = after
            if callback is not None and looped:
                changes.append(_relative_change(before[: len(looped)], after[: len(looped)]))
        return *recurrent_states, torch.stack(changes) if changes else None

    def _clear_window(self, state: SleepState, windows: int = 1) -> SleepState:
        """Drop everything but S: what the next window begins with, after so many more `windows`."""
        layers = [
            (states[0], None) if layer_type == "linear_attention" else (None, None)
            for layer_type, states in zip(self.config.layer_types, state.layers, strict=True)
        ]
        empty = SleepState.empty(len(layers))
        sleeps = state.sleeps + windows
        return empty._replace(layers=layers, seen=state.seen, sleeps=sleeps, slept=True)

    # In step with other processes, while parameters are sharded.

    def _keep_in_step(self, inputs_embeds, num_windows: int, state: SleepState, passes: int) -> torch.Tensor:
        """
        Pass through the layers as often as the process with the longest text does, for nothing, before our own text.

        Returns `inputs_embeds` as they were, but backward through them passes wherever it does in other processes.
        Ghost windows stand in front, as `bptt_windows` counts from the end.
        """
        sleeps_first = state.stored >= self.config.window_size
        numbers = [num_windows, int(sleeps_first), passes, -passes]
        most_windows, any_sleeps_first, most, least = largest_of_all_processes(numbers, inputs_embeds.device)
        if most != -least:
            raise ValueError(
                f"`sleep_passes` must be the same in all processes, as their parameters are sharded; got {-least} to "
                f"{most}. If you draw N at random, seed it alike everywhere."
            )
        ghosts = most_windows - num_windows
        token, ghost, seen = inputs_embeds[:1, :1], SleepState.empty(len(self.layers)), []
        for i in range(ghosts + 1):
            others_sleep, we_sleep = i > 0 or any_sleeps_first, i == ghosts and sleeps_first
            if others_sleep and not we_sleep:
                if ghost.stored == 0:
                    ghost = ghost._replace(kept_hidden_states=token, stored=1)
                ghost = self._sleep(ghost, passes)
            if i > 0 and self._cuts_backward(most_windows - i):
                ghost = _detach(ghost)
            if i < ghosts:
                output, ghost = self._wake_window(token, None, ghost)
                seen.append(output.last_hidden_state)
        seen += [tensor for pair in ghost.layers for tensor in pair if tensor is not None]
        return inputs_embeds + 0 * sum(tensor.sum() for tensor in seen) if seen else inputs_embeds

    def _cuts_backward(self, windows_left: int) -> bool:
        """Whether `bptt_windows` ends the gradient's way back where so many windows are still to come."""
        return self.config.bptt_windows is not None and windows_left % self.config.bptt_windows == 0

    # What both share.

    def _window_context(self, hidden_states, kept_mask, stored, padding_mask, **kwargs) -> dict:
        """Positions and masks of `hidden_states` behind `stored` tokens of the window; the same for every pass."""
        length = hidden_states.shape[1]
        attention_mask = None
        if length > 1 or kept_mask is not None:  # a single token sees all that there is
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=kept_mask,
                past_key_values=_WindowSizes(stored) if stored else None,
                position_ids=None,
            )
        return {
            "position_embeddings": rotary_embedding(
                self.config, stored, length, hidden_states.dtype, hidden_states.device
            ),
            "attention_mask": attention_mask,
            "padding_mask": padding_mask,
            **kwargs,
        }

    def _split_into_windows(self, length: int, stored: int) -> list[int]:
        """Lengths of the pieces of `length` new tokens: first what the current window still takes."""
        window_size = self.config.window_size
        first = min(window_size - stored, length) if stored < window_size else 0
        rest = length - first
        full, rest = rest // window_size, rest % window_size  # `divmod` would break a compiled graph in two
        return [piece for piece in (first, *[window_size] * full, rest) if piece > 0]

    # What is refused, before any work is done.

    def check_sleep_passes(self, sleep_passes: int | None) -> int:
        """N for this call: `sleep_passes`, or the config's."""
        if sleep_passes is None:
            sleep_passes = self.config.sleep_passes
        if not isinstance(sleep_passes, Integral) or isinstance(sleep_passes, bool) or sleep_passes < 1:
            raise ValueError(
                "`sleep_passes` (N) counts all passes over a window, the one awake included, so it must be an integer "
                f"of at least 1, got {sleep_passes!r}."
            )
        if sleep_passes > 1 and "linear_attention" not in self.config.layer_types:
            raise ValueError(
                f"`sleep_passes` is {sleep_passes}, but a model of attention layers alone has no fast weights that a "
                "sleep could rewrite: it takes `sleep_passes=1`."
            )
        return int(sleep_passes)

    def _check_shape(self, name: str, tensor: torch.Tensor, dimensions: tuple[int, ...] = ()) -> None:
        if tensor.ndim != 2 + len(dimensions) or tensor.shape[2:] != dimensions or tensor.numel() == 0:
            shape = ", ".join(map(str, ("batch", "length", *dimensions)))
            raise ValueError(
                f"`{name}` must have shape ({shape}), with at least one token, got {tuple(tensor.shape)}."
            )

    def check_input_ids(self, input_ids: torch.Tensor) -> None:
        """Raise if there is no token, or an id is not in the vocabulary."""
        self._check_shape("input_ids", input_ids)
        if is_torchdynamo_compiling():
            return
        low, high = (int(x) for x in input_ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"`input_ids` must lie between 0 and {self.config.vocab_size - 1} (the vocabulary of this "
                f"model), got values from {low} to {high}. Is this the model's own tokenizer?"
            )

    def _check_batch(self, state: SleepState, batch: int) -> None:
        tensor = next((tensor for pair in state.layers for tensor in pair if tensor is not None), None)
        if tensor is not None and tensor.shape[0] != batch:
            raise ValueError(
                f"`past_key_values` holds {tensor.shape[0]} rows, the new tokens have {batch}. To continue each row "
                "several times, call `past_key_values.batch_repeat_interleave(times)` first."
            )

    def _mask_of_new_tokens(self, attention_mask, inputs_embeds, seen: int) -> torch.Tensor | None:
        """(batch, length) of bool for the new tokens, None if there is no padding. Past ones are known already."""
        if attention_mask is None:
            return None
        batch, length = inputs_embeds.shape[:2]
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
        if shape != (batch, seen + length):
            raise ValueError(
                f"`attention_mask` must have shape (batch, past + new tokens) = ({batch}, {seen + length}), got "
                f"{shape}. Masks that are more than padding (4-D, block masks) have no meaning asleep."
            )
        mask = attention_mask[:, seen:].to(device=inputs_embeds.device, dtype=torch.bool)
        if not is_torchdynamo_compiling() and mask.all():
            return None
        return mask

    def _check_position_ids(self, position_ids, mask, shape) -> None:
        if position_ids is None or is_torchdynamo_compiling():
            return
        batch, length = shape
        if position_ids.ndim != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != length:
            raise ValueError(f"`position_ids` must have shape ({batch}, {length}), got {tuple(position_ids.shape)}.")
        if length == 1:
            return
        steps = position_ids.diff(dim=-1)
        consecutive = steps == 1
        if mask is not None:
            consecutive = consecutive | ~(mask[:, 1:] & mask[:, :-1]).to(steps.device)
        if not consecutive.all():
            raise ValueError(
                "`position_ids` do not run on by one: packed sequences are not supported, as the fast weights of one "
                "document would leak into the next. Give every document a row of its own, padded with an "
                "`attention_mask`."
            )


class SleepForCausalLM(SleepGenerationMixin, SleepPreTrainedModel, GenerationMixin):
    """
    [`SleepModel`] with a language modeling head: predicts while awake, sleeps when its cache is full.

    Parameters
    ----------
    config : SleepConfig
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.model = SleepModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_causal_lm(
        cls,
        model_or_path: PreTrainedModel | str,
        window_size: int = 512,
        sleep_passes: int = 2,
        memory_layers: int | list[int] | None = None,
        loop_span: tuple[int, int] | None = None,
        **kwargs,
    ) -> "SleepForCausalLM":
        """
        Give sleep to a pretrained model, to be fine-tuned: a hybrid as it is, and a model of attention layers with
        memory layers inserted between them.

        Within the first window, logits are those of the pretrained model, whatever N: the new layers' output
        projections are zero (arXiv 2605.26099, section 4).

        Parameters
        ----------
        model_or_path : PreTrainedModel or str
            A causal LM of the families llama (SmolLM2 and many others), mistral, qwen2 and qwen3, or of the hybrids
            olmo_hybrid, qwen3_5 and dense qwen3_next; or a name or folder of one. A model is left as it is, and its
            parameters are copied.
        window_size : int, optional
            L, the number of tokens after which the model sleeps.
        sleep_passes : int, optional
            N, all passes over a window, the one awake included.
        memory_layers : int or list[int], optional
            How many Gated DeltaNet layers without MLP to insert, evenly spread, or the places that they take in the
            new stack, as in `config.memory_layers`. Default: as many as fit in 10 % of the parameters. Hybrids take
            none.
        loop_span : tuple[int, int], optional
            Which layers of the new stack are passed N times, as in `config.loop_span`. Default: all.
        **kwargs
            Other fields of [`SleepConfig`], such as `bptt_windows`. The rest goes to the pretrained model's
            `from_pretrained`: `revision`, `dtype`, `gguf_file`, ...

        Returns
        -------
        SleepForCausalLM
            In evaluation mode, as `from_pretrained` has it, with the dtype, device and generation config of the
            pretrained model.

        Raises
        ------
        ValueError
            If the model's family is not supported, it is quantised or spread over devices, or its own attention does
            not reach over a window.
        """
        return adopt(cls, model_or_path, window_size, sleep_passes, memory_layers, loop_span, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        sleep_passes: int | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Read tokens and predict the next. Parameters are those of [`SleepModel.forward`], and:

        Parameters
        ----------
        labels : torch.LongTensor, optional
            (batch, length), aligned with `input_ids` and shifted inside; -100 is not predicted.
        logits_to_keep : int or torch.Tensor, optional
            Compute logits of the last so many tokens, or of these indices. 0: of all.
        skip_logits : bool, optional
            Compute the loss from one window after the other, and only where there are labels, so that the logits of
            the whole text are never in memory. Default: `config.skip_logits` in training with labels, otherwise
            False.

        Returns
        -------
        CausalLMOutputWithPast
            `logits` is (batch, length or `logits_to_keep`, vocab_size), or None if they are skipped.
        """
        if skip_logits is None:
            skip_logits = self.config.skip_logits and self.training and labels is not None
        keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if skip_logits and (labels is None or not keeps_all):
            raise ValueError("`skip_logits` returns the loss alone: it needs `labels`, and no `logits_to_keep`.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            sleep_passes=sleep_passes,
            sleep_callback=sleep_callback,
            return_dict=True,
            **kwargs,
        )
        logits = loss = None
        if skip_logits:
            loss = self._loss_by_window(outputs.last_hidden_state, labels, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if labels is not None and not skip_logits:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_by_window(
        self, hidden_states, labels, num_items_in_batch=None, shift_labels=None, ignore_index=-100, **kwargs
    ) -> torch.Tensor:
        """
        What `loss_function` gives for `hidden_states`, (batch, length, hidden_size), with the logits of one window in
        memory at a time, forward and (computed again) backward. Windows without labels do not meet `lm_head`.
        """
        if shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[:, 1:]
        shift_labels = shift_labels.to(hidden_states.device)
        if num_items_in_batch is None:
            num_items_in_batch = (shift_labels != ignore_index).sum()

        def loss_of(hidden_states, shift_labels):
            return self.loss_function(
                logits=self.lm_head(hidden_states),
                labels=None,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
                ignore_index=ignore_index,
                **kwargs,
            )

        labelled = []  # per window (tokens, hidden_size) and (tokens,)
        for window, label in zip(*(x.split(self.config.window_size, dim=1) for x in (hidden_states, shift_labels))):
            is_labelled = label != ignore_index
            labelled.append((window[is_labelled], label[is_labelled]))
        nothing = (hidden_states[:, :0].flatten(0, 1), shift_labels[:, :0].flatten())
        if is_sharded(self.model.layers[0]):  # then all processes call `lm_head` equally often
            (most,) = largest_of_all_processes([len(labelled)], hidden_states.device)
            labelled += [nothing] * (most - len(labelled))
        else:
            labelled = [pair for pair in labelled if pair[1].numel()] or [nothing]
        # Reentrant checkpoints want inputs that require gradients, which a frozen model with an adapter has not.
        return sum(checkpoint(loss_of, *pair, use_reentrant=False) for pair in labelled)


class SleepForSequenceClassification(SleepPreTrainedModel):
    """
    [`SleepModel`] with a linear head on the last token: one label for a text, however many windows it has.

    Parameters
    ----------
    config : SleepConfig
        `num_labels` and `problem_type` as for any other model.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the call's rows: accumulating, `Trainer` has to divide

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SleepModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """
        Classify texts. Parameters are those of [`SleepModel.forward`], and:

        Parameters
        ----------
        labels : torch.Tensor, optional
            (batch,): classes, or numbers for a regression; (batch, num_labels) for several classes per text.

        Returns
        -------
        SequenceClassifierOutputWithPast
            `logits` is (batch, num_labels), of the last token that is no padding.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        last = self._last_token(input_ids, attention_mask, hidden_states)
        logits = self.score(hidden_states[torch.arange(len(last), device=last.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _last_token(self, input_ids, attention_mask, hidden_states) -> torch.Tensor:
        """Where each row's last token is among the new ones, (batch,): by the mask, or else by the padding token."""
        batch, length = hidden_states.shape[:2]
        if attention_mask is not None:
            is_token = attention_mask[:, -length:] != 0
        elif input_ids is not None and self.config.pad_token_id is not None:
            is_token = input_ids != self.config.pad_token_id
        elif input_ids is not None and batch > 1:
            raise ValueError(
                "Without an `attention_mask` or a `pad_token_id` in the config, where the texts of a batch end cannot "
                "be told. Give an `attention_mask`, or set `model.config.pad_token_id`."
            )
        else:
            is_token = hidden_states.new_ones(batch, length, dtype=torch.bool)
        positions = torch.arange(length, device=hidden_states.device)
        return (positions * is_token.to(positions.device)).argmax(dim=-1)


class SleepForTokenClassification(SleepPreTrainedModel):
    """
    [`SleepModel`] with a linear head on every token, which knows what came before it, slept over or not.

    Parameters
    ----------
    config : SleepConfig
        `num_labels` as for any other model.
    """

    accepts_loss_kwargs = False  # as above, a mean over the call's tokens

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SleepModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """
        Classify tokens. Parameters are those of [`SleepModel.forward`], and:

        Parameters
        ----------
        labels : torch.LongTensor, optional
            (batch, length), -100 where there is none.

        Returns
        -------
        TokenClassifierOutput
            `logits` is (batch, length, num_labels).
        """
        if use_cache is None and past_key_values is None:
            use_cache = False  # which nobody would see
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class _WindowSizes:
    """The few numbers that the mask functions ask a cache for."""

    is_compileable = False

    def __init__(self, stored: int):
        self.stored = stored

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.stored

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.stored + query_length, 0


def _check_unpacked(kwargs: dict) -> None:
    packed = [name for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if kwargs.get(name) is not None]
    if packed:
        raise ValueError(
            f"Packed sequences ({', '.join(packed)}) are not supported, as the fast weights of one document would "
            "leak into the next. Turn packing (`padding_free`) off."
        )


def _append_mask(kept_mask, mask, stored: int, inputs_embeds) -> torch.Tensor | None:
    """(batch, stored + length) of bool: the padding of the window so far with that of new tokens, None if none."""
    if kept_mask is None and mask is None:
        return None
    batch, length = inputs_embeds.shape[:2]
    parts = [
        torch.ones(batch, size, dtype=torch.bool, device=inputs_embeds.device) if part is None else part
        for part, size in ((kept_mask, stored), (mask, length))
    ]
    return torch.cat(parts, dim=1)


def _detach(state: SleepState) -> SleepState:
    layers = [tuple(None if x is None else x.detach() for x in pair) for pair in state.layers]
    return state._replace(layers=layers)


def _seconds(device: torch.device) -> float:
    """Of a clock that waits for the device: what was asked of it before is not part of what is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _relative_change(before, after) -> torch.Tensor:
    """|S_j - S_{j-1}| / |S_{j-1}| of one pass, over all matrices together."""
    before = [torch.zeros_like(y) if x is None else x.detach() for x, y in zip(before, after, strict=True)]
    difference = _sum([(y.detach() - x).square().sum() for x, y in zip(before, after, strict=True)])
    # A window of padding leaves S at zero: 0 / 0 would be NaN, but nothing has changed.
    size = _sum([x.square().sum() for x in before])
    return (difference / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()


def _norm(state: SleepState, config: SleepConfig) -> float:
    """|S|, of all matrices of a row together, averaged over the rows."""
    squares = [
        recurrent_state.detach().square().sum(dim=(1, 2, 3))
        for layer_type, (recurrent_state, _) in zip(config.layer_types, state.layers, strict=True)
        if layer_type == "linear_attention" and recurrent_state is not None
    ]
    return _sum(squares).sqrt().mean().item() if squares else 0.0


def _sum(tensors: list) -> torch.Tensor:
    """Of what may lie on several devices, as the layers do."""
    return sum(tensor.to(tensors[0].device) for tensor in tensors)


def _concatenate(pieces: list) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _block_diagonal(pieces: list) -> torch.Tensor:
    """Attention weights of all windows in one (batch, heads, length, keys): zeros across windows."""
    if len(pieces) == 1:
        return pieces[0]
    rows, columns = (sum(piece.shape[i] for piece in pieces) for i in (2, 3))
    weights = pieces[0].new_zeros(*pieces[0].shape[:2], rows, columns)
    row = column = 0
    for piece in pieces:
        weights[:, :, row : row + piece.shape[2], column : column + piece.shape[3]] = piece
        row, column = row + piece.shape[2], column + piece.shape[3]
    return weights


def _concatenate_layers(windows: list, concatenate) -> tuple | None:
    """Per window a tuple over layers; returns one tuple over layers."""
    if windows[0] is None:
        return None
    return tuple(None if pieces[0] is None else concatenate(list(pieces)) for pieces in zip(*windows, strict=True))


__all__ = [
    "SleepForCausalLM",
    "SleepForSequenceClassification",
    "SleepForTokenClassification",
    "SleepModel",
    "SleepPreTrainedModel",
]
