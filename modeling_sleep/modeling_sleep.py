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
from transformers.cache_utils import Cache
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .cache_sleep import SleepCache, SleepState, read_state, write_state
from .checks_sleep import (
    check_fits,
    check_input_ids,
    check_mask,
    check_options,
    check_pinned_tokens,
    check_shape,
    one_cache,
    padding_mask_of,
)
from .configuration_sleep import SleepConfig
from .distributed_sleep import InStepMixin, is_sharded
from .family_layers_sleep import FamilyDecoderLayer, family_norm
from .input_injection import InputInjection
from .keep_sleep import keys_to_keep
from .layers_sleep import SleepDecoderLayer, SleepLayers
from .masks_sleep import live_columns, new_window, whole_window
from .nap_sleep import (
    NOBODY,
    Recorder,
    Restless,
    Sleep,
    SleepEvent,
    check_sleep_passes,
    raise_if_not_finite,
)
from .outputs_sleep import SleepModelOutput, record_of_layers
from .packed_sleep import PACKING, documents_of
from .peft_sleep import adapters_of, check_adapters
from .plan_sleep import Tokens, Wave, plan
from .pretrained_sleep import SleepPreTrainedModel
from .recall_memory_sleep import RecallMemoryLayer
from .window_sleep import Window, added, largest, of_rows, scaled


# With N = 1, windows are read side by side, but not more: the memory of a long text is to stay bounded.
TOKENS_AT_ONCE = 4096
RECORDED = ("output_hidden_states", "output_attentions")


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
        self.layers.key_layer = config.recall_key_layer
        self.norm = norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.injection = InputInjection(config.hidden_size, config.rms_norm_eps) if config.input_injection else None
        self.gradient_checkpointing = False
        # What of a window a sleep needs, and how far it goes.
        start, end = config.looped_layers
        memories = [i for i, layer in enumerate(self.layers) if layer.is_memory]
        self.memories_behind = [i for i in memories if start < end <= i]
        self.last_looped_memory = max((i for i in memories if start <= i < end), default=-1)
        self.keeps_hidden_states = start < end
        reads_inputs_embeds = any(layer.reads_inputs_embeds for layer in self.layers[start:])
        self.keeps_inputs_embeds = start < end and (config.input_injection or reads_inputs_embeds)
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
            carried on. Default: `config.use_cache`, but never under gradient checkpointing or in `torch.export`.
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
        if self.injection is not None and self.training:  # DDP wants a gradient of all, also where no pass is asleep
            inputs_embeds = inputs_embeds + 0 * self.injection.weight
        batch, length = inputs_embeds.shape[:2]
        if use_cache is None:  # an exported program returns tensors
            use_cache = self.config.use_cache and not (self.gradient_checkpointing and self.training)
            use_cache = use_cache and not torch.compiler.is_exporting()
        if use_cache and past_key_values is None:
            past_key_values = SleepCache(config=self.config)
        state = read_state(past_key_values, self.config)
        check_mask(attention_mask, state.seen, (batch, length))
        documents = documents_of(position_ids, attention_mask, past_key_values, (batch, length), kwargs)
        if documents is not None:
            return self._read_documents(documents, inputs_embeds, sleep, sleep_callback, pinned_tokens, kwargs)
        if past_key_values is not None and input_ids is None:
            inputs_embeds = inputs_embeds.clone()  # the cache keeps them, and a caller may fill the same buffer again
        check_fits(state, inputs_embeds)
        state = self._pin(state, pinned_tokens)
        tokens = Tokens.of_mask(padding_mask_of(attention_mask, state, inputs_embeds), batch, length)
        is_ragged = tokens.columns is not None
        read = self._read_uncompiled if is_ragged and torch.compiler.is_compiling() else self._read
        last_hidden_state, waves, state = read(
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
        at_once = self._windows_at_once(sleep, callback, state.pinned_tokens, options)
        waves = plan(tokens.counts, state.stored, batch, config.window_size, at_once, cache is not None)
        check_adapters(self, state.seen == 0, waves, tokens)
        schedule = self.in_step(waves, state, sleep, inputs_embeds) if is_sharded(self.layers[0]) else waves
        read, before = [], state.last_hidden_state
        for wave in schedule:
            if wave.sleepers != ():
                state = self._sleep_rows(state, wave, sleep, callback, batch)
            part = state if wave.rows is None else state.select(wave.rows, batch)
            with adapters_of(self, wave.rows):
                output, part = self._wake_window(tokens.read(wave, inputs_embeds), wave, part, **options)
            state = part if wave.rows is None else state.put(wave.rows, part, batch)
            read.append((wave, output))
        pieces = [output.last_hidden_state for _, output in read]
        if pieces:
            hidden_states = tokens.write(waves, pieces, before)
        else:  # padding alone
            hidden_states = inputs_embeds * 0 if before is None else before.expand_as(inputs_embeds)
        if schedule is not waves:
            hidden_states = schedule.attach(hidden_states)
        return hidden_states, read, self._count(state, tokens, hidden_states)

    # Within a compiled model, as rows that differ would make another graph for every number of tokens.
    _read_uncompiled = torch.compiler.disable(_read)

    def _read_documents(self, documents, inputs_embeds, sleep: Sleep, callback, pinned_tokens, options: dict):
        """Read each document of packed rows as a row of its own, so that nothing leaks from one into the next."""
        options = {name: value for name, value in options.items() if name not in PACKING}
        rows = documents.unpack(inputs_embeds)
        batch, length = rows.shape[:2]
        tokens = Tokens.of_mask(live_columns(documents.counts, batch, length, rows.device), batch, length)
        state = self._pin(SleepState.empty(len(self.layers)), pinned_tokens)
        with adapters_of(self, documents.rows()):
            hidden_states, read, _ = self._read(rows, tokens, state, sleep, callback, None, options)
        recorded = record_of_layers(tokens, read).get("hidden_states")
        return SleepModelOutput(
            last_hidden_state=documents.pack(hidden_states),
            hidden_states=recorded and tuple(documents.pack(x) for x in recorded),
        )

    # Wake: pass 1, which is also the prediction.

    def _wake_window(self, inputs_embeds, wave: Wave, state: SleepState, **options):
        """Read tokens that fit into the current window of each row, or whole windows side by side."""
        if wave.count > 1 and state.columns > 0:  # of rows that have just slept beside others
            begin = tuple(layer.begin(x, None) for layer, x in zip(self.layers, state.layers, strict=True))
            state = state._replace(layers=begin, kept_hidden_states=None, columns=0)
        window = new_window(self.config, state, inputs_embeds, wave.lengths, wave.count, options)
        output = self._wake(inputs_embeds, state, window, return_dict=True, **options)
        stored = added(state.stored, wave.lengths)
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
        return self._sleep_some(state, rows, sleep, callback, batch)

    def _sleep_rows(self, state: SleepState, wave: Wave, sleep: Sleep, callback, batch: int) -> SleepState:
        """Sleep over the windows of the rows that a wave names, and end the gradient's way back where it is to end."""
        if self.config.bptt_windows is None or not torch.is_grad_enabled():
            return self._sleep_some(state, wave.sleepers, sleep, callback, batch)
        cut, uncut = self.cuts_of(wave, batch)
        if uncut:
            state = self._sleep_some(state, uncut, sleep, callback, batch)
        if cut:
            with torch.no_grad():  # what is cut off needs no graph
                part = state.select(cut, batch).map(torch.Tensor.detach)
                part = self._sleep(part, sleep, NOBODY if callback is None else Recorder(callback, cut))
            state = state.put(cut, part, batch)
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
        rows = None if rows is not None and len(rows) == batch else rows
        recorder = NOBODY if callback is None else Recorder(callback, rows)
        if rows is None:
            return self._sleep(state, sleep, recorder)
        with adapters_of(self, rows):
            return state.put(rows, self._sleep(state.select(rows, batch), sleep, recorder), batch)

    def _sleep(self, state: SleepState, sleep: Sleep, recorder=NOBODY) -> SleepState:
        """Consolidate the window of every row, and forget it."""
        recorder.begin(state)
        start, end = self.config.looped_layers
        is_replayed, passes = sleep.passes > 1 and start < end, (sleep.passes,)
        window = whole_window(self.config, state, is_replayed)
        if is_replayed:
            replay = partial(self._replay, sleep=sleep, recorder=recorder)
            # A checkpoint around those of the single passes: while back-propagating through a window, only its own
            # passes are in memory, as their hidden states and S, and one of them in full.
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                replay = partial(self._gradient_checkpointing_func, replay)
            layers, passes = replay(state, window)
            state = state._replace(layers=layers)
        state = self._forget(state, window, sleep.passes)
        recorder.end(state, self.fast_weights(state), passes)
        return state

    def _replay(self, state: SleepState, window: Window, sleep: Sleep, recorder) -> tuple[tuple, tuple[int, ...]]:
        """
        Passes 2 ... N over the window: h, S <- Blocks(h, S) over the looped span. Then the layers behind it go back to
        where the window found them, and run once over the features of the last pass.

        Returns the states of all layers, and how many passes were made of each row, or one number for all.
        """
        rest, whole = Restless(state, sleep), window
        for number in range(2, sleep.passes + 1):
            before = self._looped_fast_weights(state)
            with adapters_of(self, rest.rows):
                written = window._replace(written=self._drop_writes(state, sleep))
                state = self._pass_again(state, written, last=number == sleep.passes and sleep.until is None)
            after = self._looped_fast_weights(state)
            recorder.passed(before, after)
            passed, state = state, rest.after(number, state, before, after)
            if state is None:
                break
            if state is not passed:  # fewer rows
                window = whole_window(self.config, state)
        return self._conclude(rest.all(state), whole).layers, rest.passes

    def _drop_writes(self, state: SleepState, sleep: Sleep) -> torch.Tensor | None:
        """Which of a window's tokens a pass writes, (batch, columns) of bool. None: all."""
        if not (self.training and sleep.write_dropout):
            return None
        shape = state.kept_hidden_states.shape[:2]
        return torch.rand(shape, device=state.kept_hidden_states.device) >= sleep.write_dropout

    def _pass_again(self, state: SleepState, window: Window, last: bool) -> SleepState:
        """One pass over the window. The `last` one ends with the last S that it has to write, if nothing follows."""
        start, end = self.config.looped_layers
        ends_early = last and not self.memories_behind
        stop = self.last_looped_memory + 1 if ends_early else end
        begin = [self.layers[i].begin(state.layers[i], window) for i in range(start, stop)]
        # Without gradients, as in the first run of a checkpoint, there is nothing to checkpoint.
        run = self.layers if torch.is_grad_enabled() else self.layers.run
        fed = state.kept_hidden_states
        if self.injection is not None:
            fed = self.injection(fed, state.kept_inputs_embeds)
        hidden_states, after = run(fed, begin, start=start, window=window, state_only=ends_early)
        return state._replace(layers=self._rewritten(state.layers, after, start), kept_hidden_states=hidden_states)

    def _conclude(self, state: SleepState, window: Window) -> SleepState:
        """The layers behind the looped span, once, as far as there is S to write."""
        if not self.memories_behind:
            return state
        end = self.config.looped_layers[1]
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
            sleeps=added(state.sleeps, sleeps),
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

    # What a call is given, and what is counted of it.

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
            return state if state.has_begun else state._replace(pinned_tokens=self.config.pinned_tokens)
        check_pinned_tokens(pinned_tokens, state, self.config)
        return state._replace(pinned_tokens=pinned_tokens)

    def _count(self, state: SleepState, tokens: Tokens, hidden_states: torch.Tensor) -> SleepState:
        """With what a call has read: how many tokens of each row, in which columns, and what the last one gave."""
        last = hidden_states[:, -1:]
        places = added(tokens.places, scaled(tokens.counts, state.seen))
        return state._replace(
            # A copy, as a view would keep the whole text alive.
            last_hidden_state=last.clone() if tokens.length > 1 else last,
            seen=state.seen + tokens.length,
            read=added(state.read, tokens.counts),
            places=added(state.places, places),
            looped_layers=self.config.looped_layers,
        )

    def _windows_at_once(self, sleep: Sleep, callback, pinned_tokens: int, options: dict) -> int:
        """How many windows may be read at once: with N = 1, as many as fit in `TOKENS_AT_ONCE`, if nobody minds."""
        config = self.config
        recorded = any(options.get(name, getattr(config, name, False)) for name in RECORDED)
        cut = config.bptt_windows is not None and torch.is_grad_enabled()
        in_pieces = (self.gradient_checkpointing and self.training) or is_sharded(self.layers[0])
        keeps_keys = config.window_overlap > 0 or pinned_tokens > 0
        if sleep.passes > 1 or callback is not None or recorded or cut or in_pieces or keeps_keys:
            return 1
        return TOKENS_AT_ONCE // config.window_size if all(layer.side_by_side for layer in self.layers) else 1

    def check_sleep_passes(self, sleep_passes: int | Sleep | None) -> Sleep:
        """How long to sleep in this call: `sleep_passes`, or the config's; see `nap_sleep.check_sleep_passes`."""
        return check_sleep_passes(sleep_passes, self.config)


__all__ = ["SleepModel"]
