"""Sleep for language models: transformers-compatible hybrids that consolidate their cache into fast weights.

Importing the package registers the model with the Auto classes, so that folders saved by it load without
`trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .cache_sleep import FastWeightsLayer, SleepCache, SleepWindowLayer
from .configuration_sleep import SleepConfig
from .gated_delta_rule import gated_delta_rule
from .heads_sleep import SleepForCausalLM, SleepForSequenceClassification, SleepForTokenClassification
from .memory_sleep import SleepMemory
from .modeling_sleep import SleepModel
from .nap_sleep import Sleep, SleepEvent
from .peft_sleep import memory_target_modules
from .pretrained_sleep import SleepPreTrainedModel
from .trainer_sleep import SleepCallback


__version__ = "0.1.0"

# Saved folders carry the code, so that they load where the package is not installed.
AutoConfig.register(SleepConfig.model_type, SleepConfig, exist_ok=True)
SleepConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, SleepModel),
    (AutoModelForCausalLM, SleepForCausalLM),
    (AutoModelForSequenceClassification, SleepForSequenceClassification),
    (AutoModelForTokenClassification, SleepForTokenClassification),
):
    auto_class.register(SleepConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)

__all__ = [
    "FastWeightsLayer",
    "Sleep",
    "SleepCache",
    "SleepCallback",
    "SleepConfig",
    "SleepEvent",
    "SleepForCausalLM",
    "SleepForSequenceClassification",
    "SleepForTokenClassification",
    "SleepMemory",
    "SleepModel",
    "SleepPreTrainedModel",
    "SleepWindowLayer",
    "gated_delta_rule",
    "memory_target_modules",
]
