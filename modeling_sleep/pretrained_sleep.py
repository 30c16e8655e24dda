"""What every model of ours is: how weights are initialised, loaded and saved."""

import torch
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from .adapter_sleep import save_memory
from .configuration_sleep import SleepConfig
from .family_layers_sleep import FamilyDecoderLayer, is_zero_centred
from .input_injection import InputInjection
from .layers_sleep import GatedDeltaNet, SleepDecoderLayer
from .nap_sleep import SleepMixin
from .peft_sleep import register_target_modules
from .reading_sleep import ReadingMixin
from .recall_memory_sleep import RecallMemoryLayer


logger = logging.get_logger(__name__)

register_target_modules()
# With label smoothing, `Trainer` computes the loss itself, and shifts the labels of the classes that stand here.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(SleepConfig.model_type, "SleepForCausalLM")


class SleepPreTrainedModel(PreTrainedModel, SleepMixin, ReadingMixin):
    """Weights: how they are initialised, loaded and saved."""

    config_class = SleepConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SleepDecoderLayer"]
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
        # Accelerate wants no name that is not there.
        self._no_split_modules = ["SleepDecoderLayer" if config.base_config is None else "FamilyDecoderLayer"]
        if "recall_memory" in config.layer_types:
            self._no_split_modules.append("RecallMemoryLayer")

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
        elif isinstance(module, InputInjection):
            init.ones_(module.weight)
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
        from .heads_sleep import SleepForCausalLM  # noqa: F401 (so that it is saved beside a model without a head, too)

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
