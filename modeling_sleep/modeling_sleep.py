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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.output_capturing import capture_outputs

from .adapter_sleep import save_memory
from .cache_sleep import SleepCache, SleepState, read_state, write_state
from .checks_sleep import (
    check_batch,
    check_input_ids,
    check_options,
    check_pinned_tokens,
    check_shape,
    one_cache,
    padding_mask_of,
)
from .configuration_sleep import SleepConfig
from .distributed_sleep import InStepMixin, is_sharded
from .family_layers_sleep import FamilyDecoderLayer, family_norm, is_zero_centred
from .keep_sleep import kept_columns, kept_live, keys_to_keep
from .layers_sleep import GatedDeltaNet, SleepDecoderLayer, SleepLayers, rotary_embedding
from .masks_sleep import causal_mask, dense_causal_mask, live_columns
from .nap_sleep import (
    NOBODY,
    Recorder,
    Restless,
    Sleep,
    SleepEvent,
    SleepMixin,
    check_sleep_passes,
    raise_if_not_finite,
)
from .outputs_sleep import SleepModelOutput, record_of_layers
from .packed_sleep import PACKING, documents_of
from .peft_sleep import register_target_modules
from .plan_sleep import Tokens, Wave, plan
from .recall_memory_sleep import RecallMemoryLayer
from .window_sleep import PerRow, Window, largest, of_rows, per_row


logger = logging.get_logger(__name__)

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
    _no_split_modules = ["SleepDecoderLayer", "RecallMemoryLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = True  # S cannot be rewound: no assisted decoding
    model_tags = ["sleep", "fast-weights"]  # on the Hub
    # Attention by the name of its module, as it may be a family's.
    _can_record_outputs = {
        "hidden_states": [SleepDecoderLayer, FamilyDecoderLayer, RecallMemoryLayer],
        "attentions": "self_attn",
    }

    def __init__(self, config: SleepConfig):
        config.validate()  # again: `from_pretrained(..., sleep_passes=4)` sets fields of one that was valid
        super().__init__(config)
        if config.base_config is not None:  # accelerate wants no name that is not there
            self._no_split_modules = ["FamilyDecoderLayer", *["RecallMemoryLayer"][: len(config.memory_layers)]]

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
        elif isinstance(module, RecallMemoryLayer):
            module.init_weights()
        elif is_zero_centred(module):
            init.zeros_(module.weight)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs):
        """
        As [`PreTrainedModel.gradient_checkpointing_enable`], with `use_reentrant=False` whatever is asked for.

        The layers are passed once per window and pass, each with the states that the one before left: reentrant
        checkpoints take no such states, and DDP allows them one pass.
        """
        options = dict(gradient_checkpointing_kwargs or {})
        if options.get("use_reentrant"):
            logger.warning_once(
                "`use_reentrant=True` is left aside: a sleep takes checkpoints that are not reentrant."
            )
        options["use_reentrant"] = False
        return super().gradient_checkpointing_enable(options, **kwargs)

    def save_pretrained(self, save_directory, *args, memory_only: bool = False, **kwargs):
        """
        Save the model with its code, so that the folder loads anywhere with `trust_remote_code=True`.

        As [`PreTrainedModel.save_pretrained`]; the `auto_map` names all classes whichever of them is saved. With
        `memory_only`, save its recall memories alone: `from_causal_lm(base, memory=save_directory)` puts them on.
        """
        if memory_only:
            save_memory(self, save_directory)
            return
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoConfig": "configuration_sleep.SleepConfig",
            "AutoModel": "modeling_sleep.SleepModel",
            "AutoModelForCausalLM": "heads_sleep.SleepForCausalLM",
            "AutoModelForSequenceClassification": "heads_sleep.SleepForSequenceClassification",
            "AutoModelForTokenClassification": "heads_sleep.SleepForTokenClassification",
        }
        # Whatever the weights were loaded from, the code that goes with them now is this.
        self.config.modeling_sleep_version = self.config.code_version
        self.config.transformers_range = self.config.tested_transformers
        super().save_pretrained(save_directory, *args, **kwargs)


@dataclass
class SleepWindowOutput:
    """
    What one wake pass gives: its last hidden states, those at the end of the looped span, and the layers' new states.

    No [`ModelOutput`], as making one takes a hundredth of a token's time; `capture_outputs` sets items of it.
    """

    last_hidden_state: torch.Tensor | None = None
    kept_hidden_states: torch.Tensor | None = None
    layers: tuple | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None

    def __setitem__(self, name: str, value: tuple) -> None:
        setattr(self, name, value)


class SleepModel(InStepMixin, SleepPreTrainedModel):
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
        classes = {"recall_memory": RecallMemoryLayer}
        self.layers = SleepLayers(classes.get(x, layer_class)(config, i) for i, x in enumerate(config.layer_types))
        self.norm = norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        # What of a window a sleep needs, and how far it goes.
        start, end = config.looped_layers
        memories = [i for i, layer in enumerate(self.layers) if layer.is_memory]
        self.memories_behind = [i for i in memories if start < end <= i]
        self.last_looped_memory = max((i for i in memories if start <= i < end), default=-1)
        self.keeps_hidden_states = start < end
        self.keeps_inputs_embeds = start < end and any(layer.reads_inputs_embeds for layer in self.layers[start:])
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
        sleep_passes: int | Sleep | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        pinned_tokens: int | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SleepModelOutput:
        """
        Read tokens; each row sleeps whenever one arrives and its own window is full.

        Parameters
        ----------
        input_ids : torch.LongTensor, optional
            (batch, length).
        attention_mask : torch.Tensor, optional
            (batch, past + length), or (batch, length) for the new tokens alone: 0 at padding, wherever it stands.
        position_ids : torch.LongTensor, optional
            Positions count from the window's start, whatever these say. Ids that begin anew at 0 say where the next
            document of a packed row begins; it is read as a row of its own.
        past_key_values : Cache, optional
            What earlier calls returned, or a `DynamicCache(config=config)`.
        inputs_embeds : torch.FloatTensor, optional
            (batch, length, hidden_size), instead of `input_ids`.
        use_cache : bool, optional
            Whether to return `past_key_values`, and to make them if none are given. Those that are given are always
            carried on. Default: `config.use_cache`, but never under gradient checkpointing.
        sleep_passes : int or Sleep, optional
            N, all passes over a window, the wake one included. Default: `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`] after every sleep.
        pinned_tokens : int, optional
            How many of the text's first tokens keep their keys for good. To be said with the first tokens of a text.
            Default: `config.pinned_tokens`.
        cache : Cache, optional
            Another name of `past_key_values`, from transformers 5.24 on.
        **kwargs
            What training and attention functions of transformers know, such as `cu_seq_lens_q` or `seq_idx`, which
            say where the documents of a packed row begin. Anything else is an error.

        Returns
        -------
        SleepModelOutput
            `last_hidden_state` is (batch, length, hidden_size); padding repeats the last token before it. With
            `output_attentions`, a token's weights over other windows are the zeros that they are: (batch, heads,
            length, keys of all windows of the call).

        Raises
        ------
        ValueError
            If the input is not what it must be; the message says what to do.
        TypeError
            If there is an argument that would have to be dropped.
        """
        check_options(kwargs, ("sleep_passes", "sleep_callback", "pinned_tokens", "past_key_values", "input_ids"))
        past_key_values = one_cache(past_key_values, cache)
        sleep = check_sleep_passes(sleep_passes, self.config)
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        batch, length = inputs_embeds.shape[:2]
        if use_cache is None:
            use_cache = self.config.use_cache and not (self.gradient_checkpointing and self.training)
        documents = documents_of(position_ids, attention_mask, past_key_values, (batch, length), kwargs)
        if documents is not None:
            return self._read_documents(documents, inputs_embeds, sleep, sleep_callback, kwargs)
        if use_cache and past_key_values is None:
            past_key_values = SleepCache(config=self.config)

        state = read_state(past_key_values, self.config)
        check_batch(state, batch)
        state = self._pin(state, pinned_tokens)
        tokens = Tokens.of_mask(padding_mask_of(attention_mask, state, inputs_embeds), batch, length)
        last_hidden_state, waves, state = self._read(
            inputs_embeds, tokens, state, sleep, sleep_callback, past_key_values, kwargs
        )
        if past_key_values is not None:
            write_state(past_key_values, state, self.config)
        return SleepModelOutput.of_cache(
            past_key_values if use_cache else None,
            last_hidden_state=last_hidden_state,
            **record_of_layers(tokens, waves),
        )

    def _read(self, inputs_embeds, tokens: Tokens, state: SleepState, sleep: Sleep, callback, cache, options: dict):
        """
        Read `tokens` wave after wave, each row up to the end of its own window, and sleep before the next one.

        Returns their last hidden states, the waves with what they gave, and the state behind them.
        """
        batch, config = inputs_embeds.shape[0], self.config
        at_once = self._windows_at_once(sleep, callback, options)
        waves = plan(tokens.counts, state.stored, batch, config.window_size, at_once, cache is not None)
        schedule = self.in_step(waves, state, sleep, inputs_embeds) if is_sharded(self.layers[0]) else waves
        read, before = [], state.last_hidden_state
        for wave in schedule:
            if wave.sleepers != ():
                state = self._sleep_rows(state, wave, sleep, callback, batch)
            part = state if wave.rows is None else state.select(wave.rows, batch)
            output, part = self._wake_window(tokens.read(wave, inputs_embeds), wave, part, **options)
            state = part if wave.rows is None else state.put(wave.rows, part, batch)
            read.append((wave, output))
        pieces = [output.last_hidden_state for _, output in read]
        if not pieces:  # of padding alone
            return (inputs_embeds * 0 if before is None else before.expand_as(inputs_embeds)), read, state
        hidden_states = tokens.write(waves, pieces, before)
        if schedule is not waves:
            hidden_states = schedule.attach(hidden_states)
        return hidden_states, read, self._count(state, tokens, hidden_states)

    def _read_documents(self, documents, inputs_embeds, sleep: Sleep, callback, options: dict) -> SleepModelOutput:
        """Read each document of packed rows as a row of its own, so that nothing leaks from one into the next."""
        options = {name: value for name, value in options.items() if name not in PACKING}
        rows = documents.unpack(inputs_embeds)
        batch, length = rows.shape[:2]
        tokens = Tokens.of_mask(live_columns(documents.counts, batch, length, rows.device), batch, length)
        state = self._pin(SleepState.empty(len(self.layers)), None)
        hidden_states, read, _ = self._read(rows, tokens, state, sleep, callback, None, options)
        recorded = record_of_layers(tokens, read).get("hidden_states")
        return SleepModelOutput(
            last_hidden_state=documents.pack(hidden_states),
            hidden_states=recorded and tuple(documents.pack(x) for x in recorded),
        )

    # Wake: pass 1, which is also the prediction.

    def _wake_window(self, inputs_embeds, wave: Wave, state: SleepState, **options):
        """Read tokens that fit into the current window of each row, or whole windows side by side."""
        window = self._window(inputs_embeds, wave.lengths, state, wave.count, options)
        output = self._wake(inputs_embeds, state, window, return_dict=True, **options)
        stored = _add(state.stored, wave.lengths)
        if wave.count > 1:
            state = state._replace(layers=output.layers, stored=stored)
            return output, self._forget(state, window, sleeps=wave.count)
        kept, embeds = state.kept_hidden_states, state.kept_inputs_embeds
        if self.keeps_hidden_states:
            kept = window.append(kept, output.kept_hidden_states)
        if self.keeps_inputs_embeds:
            embeds = window.append(embeds, inputs_embeds)
        columns = largest(stored) if window.order is not None else state.columns + inputs_embeds.shape[1]
        return output, state._replace(
            layers=output.layers, kept_hidden_states=kept, kept_inputs_embeds=embeds, columns=columns, stored=stored
        )

    @capture_outputs
    def _wake(self, hidden_states, state: SleepState, window: Window, **options) -> SleepWindowOutput:
        """One pass through all layers. `output_hidden_states` and `output_attentions` record here, never asleep."""
        end = self.config.looped_layers[1]
        kept, looped = self.layers(hidden_states, list(state.layers[:end]), start=0, window=window)
        last, after = kept, []
        if end < len(self.layers):
            last, after = self.layers(kept, list(state.layers[end:]), start=end, window=window)
        return SleepWindowOutput(self.norm(last), kept, (*looped, *after))

    # Sleep: passes 2 ... N, then nothing of the window is left but what the layers carry on.

    def nap(self, state: SleepState, sleep: Sleep, callback=None) -> SleepState:
        """Sleep over the window of every row that holds something, full or not."""
        if largest(state.stored) == 0:
            return state
        batch = state.tensors()[0].shape[0]
        rows = tuple(i for i, stored in enumerate(of_rows(state.stored, batch)) if stored > 0)
        return self._sleep_some(state, None if len(rows) == batch else rows, sleep, callback, batch)

    def _sleep_rows(self, state: SleepState, wave: Wave, sleep: Sleep, callback, batch: int) -> SleepState:
        """Sleep over the windows of the rows that a wave names; what `bptt_windows` cuts off needs no graph."""
        if self.config.bptt_windows is None or not torch.is_grad_enabled():
            return self._sleep_some(state, wave.sleepers, sleep, callback, batch)
        cut, uncut = self.cuts_of(wave, batch)
        for rows in filter(None, (cut, uncut)):
            with torch.set_grad_enabled(rows is uncut):
                rows = None if len(rows) == batch else rows
                state = self._sleep_some(state, rows, sleep, callback, batch)
        return state

    def cuts_of(self, wave: Wave, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sleepers of a wave: those at which the gradient's way back ends, and the others."""
        sleepers = tuple(range(batch)) if wave.sleepers is None else wave.sleepers
        every, parts = self.config.bptt_windows, ([], [])
        for row, left in zip(sleepers, of_rows(wave.windows_left, len(sleepers)), strict=True):
            # Windows are counted from the end; the first of a call belongs to what came before.
            cuts = every is not None and left > 0 and left % every == 0
            parts[0 if cuts else 1].append(row)
        return tuple(parts[0]), tuple(parts[1])

    def _sleep_some(self, state: SleepState, rows, sleep: Sleep, callback, batch: int) -> SleepState:
        """Sleep over the windows of these `rows`, None for all; the others stay as they are."""
        recorder = NOBODY if callback is None else Recorder(callback, rows)
        if rows is None:
            return self._sleep(state, sleep, recorder)
        return state.put(rows, self._sleep(state.select(rows, batch), sleep, recorder), batch)

    def _sleep(self, state: SleepState, sleep: Sleep, recorder=NOBODY) -> SleepState:
        """Consolidate the window of every row, and forget it."""
        recorder.begin(state)
        passes = (sleep.passes,)
        start, end = self.config.looped_layers
        if sleep.passes > 1 and start < end:
            replay = partial(self._replay, sleep=sleep, recorder=recorder)
            # A checkpoint around those of the single passes: while back-propagating through a window, only its own
            # passes are in memory, as their hidden states and S, and one of them in full.
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                replay = partial(self._gradient_checkpointing_func, replay)
            layers, passes = replay(state)
            state = state._replace(layers=layers)
        state = self._forget(state, self._whole_window(state), sleep.passes)
        recorder.end(state, self.fast_weights(state), passes)
        return state

    def _replay(self, state: SleepState, sleep: Sleep, recorder) -> tuple[tuple, tuple[int, ...]]:
        """
        Passes 2 ... N over the window: h, S <- Blocks(h, S) over the looped span. Then the layers behind it go back to
        where the window found them, and run once over the features of the last pass.

        Returns the states of all layers, and how many passes were made of each row, or one number for all.
        """
        rest = Restless(state, sleep)
        for number in range(2, sleep.passes + 1):
            before, state = state, self._pass_again(state, last=number == sleep.passes and sleep.until is None)
            recorder.passed(*(self._looped_fast_weights(x) for x in (before, state)))
            state = rest.after(number, state, *(self._looped_fast_weights(x) for x in (before, state)))
            if state is None:
                break
        return self._conclude(rest.all(state)).layers, rest.passes

    def _pass_again(self, state: SleepState, last: bool) -> SleepState:
        """One pass over the window. The `last` one ends with the last S that it has to write, if nothing follows."""
        start, end = self.config.looped_layers
        ends_early = last and not self.memories_behind
        stop = self.last_looped_memory + 1 if ends_early else end
        window = self._whole_window(state)
        begin = [self.layers[i].begin(state.layers[i], window) for i in range(start, stop)]
        # Without gradients, as in the first run of a checkpoint, there is nothing to checkpoint.
        run = self.layers if torch.is_grad_enabled() else self.layers.run
        hidden_states, after = run(state.kept_hidden_states, begin, start=start, window=window, state_only=ends_early)
        return state._replace(layers=self._rewritten(state.layers, after, start), kept_hidden_states=hidden_states)

    def _conclude(self, state: SleepState) -> SleepState:
        """The layers behind the looped span, once, as far as there is S to write."""
        if not self.memories_behind:
            return state
        end, window = self.config.looped_layers[1], self._whole_window(state)
        begin = [self.layers[i].begin(state.window_start[i], window) for i in range(end, self.memories_behind[-1] + 1)]
        run = self.layers if torch.is_grad_enabled() else self.layers.run
        _, after = run(state.kept_hidden_states, begin, start=end, window=window, state_only=True)
        return state._replace(layers=self._rewritten(state.layers, after, end))

    def _rewritten(self, layers: tuple, after: list, start: int) -> tuple:
        """The states of all layers, with what memories from layer `start` on have rewritten. Keys stay the wake's."""
        layers = list(layers)
        for i, layer_state in enumerate(after, start):
            if self.layers[i].is_memory:
                layers[i] = layer_state
        return tuple(layers)

    def _forget(self, state: SleepState, window: Window, passes: int = 1, sleeps: int = 1) -> SleepState:
        """Drop everything of the window but what the layers carry on: what the next one begins with."""
        example = state.tensors()[0]
        keep, kept = keys_to_keep(self.config, state, example.shape[0], example.dtype, example.device)
        start, end = self.config.looped_layers
        layers = []
        for i, (layer, layer_state) in enumerate(zip(self.layers, state.layers, strict=True)):
            replayed = start < end and i >= start  # then the passes have been made
            written = window._replace(passes=1 if replayed else passes, keep=keep)
            layers.append(layer.forget(layer_state, written))
        state = state._replace(
            layers=tuple(layers),
            window_start=tuple(x if i >= end else None for i, x in enumerate(layers)),
            kept_hidden_states=None,
            kept_inputs_embeds=None,
            columns=0,
            stored=0,
            sleeps=_add(state.sleeps, sleeps),
            **kept,
        )
        if not torch.is_grad_enabled():
            raise_if_not_finite(self.fast_weights(state))
        return state

    def fast_weights(self, state: SleepState) -> list[torch.Tensor | None]:
        """S of every layer, None where there is none."""
        return [layer.fast_weights(x) for layer, x in zip(self.layers, state.layers, strict=True)]

    def _looped_fast_weights(self, state: SleepState) -> list[torch.Tensor | None]:
        """S of the memories in the looped span."""
        span = slice(*self.config.looped_layers)
        return [x for x, layer in zip(self.fast_weights(state)[span], self.layers[span]) if layer.is_memory]

    # What both share.

    def _window(self, inputs_embeds, lengths: PerRow, state: SleepState, count: int, options: dict) -> Window:
        """Positions and masks of new tokens, (batch, length, hidden_size), behind those that the window holds."""
        batch, length = inputs_embeds.shape[:2]
        device, stored, columns = inputs_embeds.device, state.stored, state.columns
        options = {name: x for name, x in options.items() if name not in (*RECORDED, "return_dict")}
        kept = kept_columns(self.config, state) if largest(state.sleeps) > 0 else 0
        kept_mask = kept_live(self.config, state, batch, device) if kept else None
        order, padding_mask = None, live_columns(lengths, batch, length, device)
        if not isinstance(stored, tuple) and stored == columns:
            positions = torch.arange(stored, stored + length // count, device=device).unsqueeze(0)
            columns = columns + length
        else:
            first = torch.tensor(of_rows(stored, batch), device=device).unsqueeze(1)
            positions = first + torch.arange(length, device=device)
            past, columns = columns, largest(_add(stored, lengths))
            column = torch.arange(columns, device=device)
            order = torch.where(column < first, column, past + (column - first).clamp(max=length - 1))
        is_dense = order is not None or kept_mask is not None
        if is_dense:
            mask = self._dense_mask(inputs_embeds, positions, columns, kept, kept_mask)
        else:
            mask = causal_mask(self.config, inputs_embeds.view(batch * count, length // count, -1), kept + stored)
        return Window(
            inputs_embeds=inputs_embeds,
            positions=positions,
            padding_mask=padding_mask,
            live=live_columns(_add(stored, lengths), batch, columns, device),
            order=order,
            attention_mask=mask,
            position_embeddings=rotary_embedding(
                self.config, positions[0] if len(positions) == 1 else positions, inputs_embeds.dtype
            ),
            count=count,
            options=options,
            is_dense=is_dense,
        )

    def _whole_window(self, state: SleepState) -> Window:
        """All that the window of each row holds, read anew."""
        hidden_states, stored, columns = state.kept_hidden_states, state.stored, state.columns
        example = state.tensors()[0]
        batch, device = example.shape[0], example.device
        live = live_columns(stored, batch, columns, device)
        window = Window(
            inputs_embeds=state.kept_inputs_embeds,
            positions=torch.arange(columns, device=device).unsqueeze(0),
            padding_mask=live,
            live=live,
        )
        if hidden_states is None:  # nothing is replayed
            return window
        kept = kept_columns(self.config, state) if largest(state.sleeps) > 0 else 0
        kept_mask = kept_live(self.config, state, batch, device) if kept else None
        if kept_mask is None:
            mask = causal_mask(self.config, hidden_states, kept)
        else:
            mask = self._dense_mask(hidden_states, window.positions, columns, kept, kept_mask)
        rotation = rotary_embedding(self.config, window.positions[0], hidden_states.dtype)
        return window._replace(attention_mask=mask, position_embeddings=rotation, is_dense=kept_mask is not None)

    def _dense_mask(self, hidden_states, positions, columns: int, kept: int, kept_mask) -> torch.Tensor:
        config = self.config
        if config.base_config is not None and config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"Rows whose windows do not begin together need a mask that {config._attn_implementation!r} does not "
                'take. Load the model with `attn_implementation="sdpa"`, or give rows of one length.'
            )
        if kept and kept_mask is None:
            kept_mask = torch.ones(1, kept, dtype=torch.bool, device=positions.device)
        return dense_causal_mask(config, hidden_states.dtype, positions, columns, kept_mask)

    def _embed(self, input_ids, inputs_embeds) -> torch.Tensor:
        """(batch, length, hidden_size) of what the call is given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is not None:
            check_shape("inputs_embeds", inputs_embeds, (self.config.hidden_size,))
            return inputs_embeds
        check_shape("input_ids", input_ids)
        try:
            return self.embed_tokens(input_ids)
        except IndexError:  # on a CPU, as every other device asserts by itself
            check_input_ids(input_ids, self.config)
            raise

    def _pin(self, state: SleepState, pinned_tokens: int | None) -> SleepState:
        """With the number of pinned tokens, which is said with the first tokens of a text."""
        if pinned_tokens is None:
            return state if state.seen else state._replace(pinned_tokens=self.config.pinned_tokens)
        check_pinned_tokens(pinned_tokens, state, self.config)
        return state._replace(pinned_tokens=pinned_tokens)

    @staticmethod
    def _count(state: SleepState, tokens: Tokens, hidden_states: torch.Tensor) -> SleepState:
        """With what a call has read: how many tokens of each row, in which columns, and what the last one gave."""
        last = hidden_states[:, -1:]
        places = _add(tokens.places, _scale(tokens.counts, state.seen))
        return state._replace(
            # A copy, as a view would keep the whole text alive.
            last_hidden_state=last.clone() if tokens.length > 1 else last,
            seen=state.seen + tokens.length,
            read=_add(state.read, tokens.counts),
            places=_add(state.places, places),
        )

    def _windows_at_once(self, sleep: Sleep, callback, options: dict) -> int:
        """How many windows may be read at once: with N = 1, as many as fit in `TOKENS_AT_ONCE`, if nobody minds."""
        config = self.config
        recorded = any(options.get(name, getattr(config, name, False)) for name in RECORDED)
        cut = config.bptt_windows is not None and torch.is_grad_enabled()
        in_pieces = (self.gradient_checkpointing and self.training) or is_sharded(self.layers[0])
        keeps_keys = config.window_overlap > 0 or config.pinned_tokens > 0
        if sleep.passes > 1 or callback is not None or recorded or cut or in_pieces or keeps_keys:
            return 1
        return TOKENS_AT_ONCE // config.window_size if all(layer.side_by_side for layer in self.layers) else 1

    def check_sleep_passes(self, sleep_passes: int | Sleep | None) -> Sleep:
        """How long to sleep in this call: `sleep_passes`, or the config's; see `nap_sleep.check_sleep_passes`."""
        return check_sleep_passes(sleep_passes, self.config)


def _add(a: PerRow, b: PerRow) -> PerRow:
    if not (isinstance(a, tuple) or isinstance(b, tuple)):
        return a + b
    batch = len(a if isinstance(a, tuple) else b)
    return per_row([x + y for x, y in zip(of_rows(a, batch), of_rows(b, batch), strict=True)])


def _scale(a: PerRow, factor: int) -> PerRow:
    return tuple(x * factor for x in a) if isinstance(a, tuple) else a * factor


__all__ = ["SleepModel", "SleepPreTrainedModel"]
