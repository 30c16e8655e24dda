"""The models with a head: language modeling, and labels for texts or for tokens."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .adopt_sleep import adopt
from .configuration_sleep import SleepConfig
from .distributed_sleep import is_sharded, largest_of_all_processes
from .generation_sleep import SleepGenerationMixin
from .modeling_sleep import SleepModel
from .nap_sleep import Sleep, SleepEvent
from .outputs_sleep import SleepCausalLMOutput, SleepSequenceClassifierOutput
from .packed_sleep import documents_of, first_tokens
from .pretrained_sleep import SleepPreTrainedModel


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
        window_size: int | None = None,
        sleep_passes: int | None = None,
        memory_layers: int | list[int] | None = None,
        loop_span: tuple[int, int] | None = None,
        memory: str | None = None,
        calibration: list[str] | list[list[int]] | None = None,
        read_out: float = 0.0,
        **kwargs,
    ) -> "SleepForCausalLM":
        """
        Give sleep to a pretrained model, to be taught: a hybrid as it is, and a model of attention layers with a
        memory inserted between them.

        Within the first window, logits are those of the pretrained model, whatever N.

        Parameters
        ----------
        model_or_path : PreTrainedModel or str
            A causal LM of the families llama (SmolLM2 and many others), mistral, qwen2 and qwen3, or of the hybrids
            olmo_hybrid, qwen3_5 and dense qwen3_next; or a name or folder of one. A model is left as it is, and its
            parameters are copied.
        window_size : int, optional
            L, the number of tokens after which the model sleeps. Default: 512, or that of the memory which is put on.
        sleep_passes : int, optional
            N, all passes over a window, the one awake included. Default: 2, or the memory's.
        memory_layers : int or list[int], optional
            How many memories to insert, evenly spread, or the places that they take in the new stack, as in
            `config.memory_layers`. Default: one recall memory at 0.8 of the depth, whose keys are made at 0.27 of it
            unless `recall_key_layer` says otherwise or `loop_span` is given; or as many Gated DeltaNet layers as fit
            in 10 % of the parameters.
        loop_span : tuple[int, int], optional
            Which layers of the new stack are passed N times, as in `config.loop_span`. Default: none with a recall
            memory, which writes each window N times; else all.
        memory : str, optional
            `"recall"` (the default): a memory that recalls before any training, and is taught in minutes by `python -m
            modeling_sleep.teach`. The folder, or name on the Hub, of a memory that was saved by itself
            (`save_pretrained(folder, memory_only=True)`): that memory, in its own base. `"gated_delta"`: Gated
            DeltaNet layers, which change nothing until they have been trained (arXiv 2605.26099, section 4). Hybrids
            have those of their own, and get a recall memory beside them if asked for.
        calibration : list[str] or list[list[int]], optional
            Texts, or their tokens, from which a recall memory learns how the model's hidden states are spread.
            Default: Python's manual.
        read_out : float, optional
            What a recall memory that has not been taught adds where it is sure of a word, as a share of the hidden
            state's length. With 0.5 it answers some questions at once, and disturbs everything behind the first
            window. Default: nothing.
        **kwargs
            Other fields of [`SleepConfig`], such as `bptt_windows`. `window_overlap` is half of a window by default
            where a recall memory is inserted between layers of attention, as far as that attention reaches. With an
            overlap, `pinned_tokens` is 1 unless it is said: attention that has learned to rest on a text's first token
            needs it. The rest goes to the pretrained model's `from_pretrained`: `revision`, `dtype`, `gguf_file`, ...

        Returns
        -------
        SleepForCausalLM
            In evaluation mode, as `from_pretrained` has it, with the dtype, device and generation config of the
            pretrained model.

        Raises
        ------
        ValueError
            If the model's family is not supported, it is quantised or spread over devices, its own attention does not
            reach over a window, or a saved memory belongs to another base.
        """
        return adopt(
            cls,
            model_or_path,
            window_size,
            sleep_passes,
            memory_layers,
            loop_span,
            memory,
            calibration,
            read_out,
            **kwargs,
        )

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
        sleep_passes: int | Sleep | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        pinned_tokens: int | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SleepCausalLMOutput:
        """
        Read tokens and predict the next. Parameters are those of [`SleepModel.forward`], and:

        Parameters
        ----------
        labels : torch.LongTensor, optional
            (batch, length), aligned with `input_ids` and shifted inside; -100 is not predicted, nor is the first token
            of a row behind padding or of a packed document, as nothing of its text stands before it.
        logits_to_keep : int or torch.Tensor, optional
            Compute logits of the last so many tokens, or of these indices. 0: of all.
        skip_logits : bool, optional
            Compute the loss from one window after the other, and only where there are labels, so that the logits of
            the whole text are never in memory. Default: `config.skip_logits` in training with labels, otherwise
            False.

        Returns
        -------
        SleepCausalLMOutput
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
            pinned_tokens=pinned_tokens,
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        first = None if labels is None else first_tokens(position_ids, attention_mask, labels.shape, kwargs)
        if first is not None:
            labels = labels.masked_fill(first.to(labels.device), kwargs.get("ignore_index", -100))
        logits = loss = None
        if skip_logits:
            loss = self._loss_by_window(outputs.last_hidden_state, labels, **kwargs)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if labels is not None and not skip_logits:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return SleepCausalLMOutput.of_cache(
            outputs.past_key_values,
            loss=loss,
            logits=logits,
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


class SleepClassifier(SleepPreTrainedModel):
    """
    [`SleepModel`] with a linear head, `score`; `_classify`, which says what it scores, is the subclass's.

    Parameters
    ----------
    config : SleepConfig
        `num_labels` as for any other model.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the call's rows or tokens: accumulating, `Trainer` divides
    score_bias = True

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SleepModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=self.score_bias)
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
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SleepSequenceClassifierOutput | TokenClassifierOutput:
        """
        Classify. Parameters are those of [`SleepModel.forward`], and:

        Parameters
        ----------
        labels : torch.Tensor, optional
            See the class.

        Returns
        -------
        SleepSequenceClassifierOutput | TokenClassifierOutput
            With `logits` as the class says.
        """
        inputs = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
        )
        return self._classify(inputs, labels, kwargs)


class SleepForSequenceClassification(SleepClassifier):
    """
    [`SleepModel`] with a linear head on the last token: one label for a text, however many windows it has.

    `labels` are (batch,), classes, or numbers for a regression; or (batch, num_labels), for several classes per text.
    `logits` are (batch, num_labels), of the last token that is no padding.

    Parameters
    ----------
    config : SleepConfig
        `num_labels` and `problem_type` as for any other model.
    """

    score_bias = False

    def _classify(self, inputs: dict, labels: torch.Tensor | None, kwargs: dict) -> SleepSequenceClassifierOutput:
        """What `forward` does with its inputs."""
        if inputs["attention_mask"] is None:
            inputs["attention_mask"] = self._padding_mask(inputs["input_ids"])
        outputs = self.model(**inputs, return_dict=True, **kwargs)
        told = (inputs["position_ids"], inputs["attention_mask"], inputs["past_key_values"])
        if documents_of(*told, outputs.last_hidden_state.shape[:2], kwargs) is not None:
            raise ValueError("A row is classified as one text: give every document a row of its own, not packed ones.")
        logits = self.score(outputs.last_hidden_state[:, -1])  # padding repeats the last token before it
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SleepSequenceClassifierOutput.of_cache(
            outputs.past_key_values,
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _padding_mask(self, input_ids) -> torch.Tensor | None:
        """Without an `attention_mask`, where padding is: (batch, length), 0 at the padding token."""
        if input_ids is None or input_ids.shape[0] == 1 and self.config.pad_token_id is None:
            return None
        if self.config.pad_token_id is None:
            raise ValueError(
                "Without an `attention_mask` or a `pad_token_id` in the config, where the texts of a batch end cannot "
                "be told. Give an `attention_mask`, or set `model.config.pad_token_id`."
            )
        return (input_ids != self.config.pad_token_id).long()


class SleepForTokenClassification(SleepClassifier):
    """
    [`SleepModel`] with a linear head on every token, which knows what came before it, slept over or not.

    `labels` are (batch, length), -100 where there is none; `logits` are (batch, length, num_labels).
    """

    def _classify(self, inputs: dict, labels: torch.Tensor | None, kwargs: dict) -> TokenClassifierOutput:
        """What `forward` does with its inputs."""
        if all(inputs[name] is None for name in ("use_cache", "past_key_values", "cache")):
            inputs["use_cache"] = False  # nobody would see it
        outputs = self.model(**inputs, return_dict=True, **kwargs)
        logits = self.score(outputs.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["SleepForCausalLM", "SleepForSequenceClassification", "SleepForTokenClassification"]
