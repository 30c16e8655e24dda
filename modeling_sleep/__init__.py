"""Sleep for language models: transformers-compatible hybrids that consolidate their cache into fast weights.

Importing the package registers the model with the Auto classes, so that folders saved by it load without
`trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .cache_sleep import FastWeightsLayer, SleepWindowLayer
from .configuration_sleep import SleepConfig
from .gated_delta_rule import gated_delta_rule
from .generation_sleep import SleepEvent
from .modeling_sleep import SleepForCausalLM, SleepModel, SleepPreTrainedModel


__version__ = "0.1.0"

AutoConfig.register(SleepConfig.model_type, SleepConfig, exist_ok=True)
AutoModel.register(SleepConfig, SleepModel, exist_ok=True)
AutoModelForCausalLM.register(SleepConfig, SleepForCausalLM, exist_ok=True)

# Saved folders carry the code, so that they load where the package is not installed.
SleepConfig.register_for_auto_class()
SleepModel.register_for_auto_class("AutoModel")
SleepForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "FastWeightsLayer",
    "SleepConfig",
    "SleepEvent",
    "SleepForCausalLM",
    "SleepModel",
    "SleepPreTrainedModel",
    "SleepWindowLayer",
    "gated_delta_rule",
]
