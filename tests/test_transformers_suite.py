"""Transformers' own test suite, on our classes: what holds for every model of theirs holds for ours.

Twice: with a window that none of the tests fills, where the model is a hybrid like others, and with one that they all
fill several times over. tests/fetch_transformers_tests.py fetches the suite, of the version that is installed.
"""

import os
import unittest
from unittest import mock

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from modeling_sleep import (
    SleepConfig,
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
)


os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")  # or, from outside, "cuda"
suite = pytest.importorskip(
    "transformers_tests", reason="transformers' own tests are not here: `make test` fetches them, if it is online"
)
if suite.__version__ != transformers.__version__:
    pytest.skip(
        f"transformers' own tests are here of {suite.__version__}, not of {transformers.__version__}",
        allow_module_level=True,
    )

from transformers_tests import test_fsdp_mixin, test_modeling_common, test_tensor_parallel_mixin  # noqa: E402
from transformers_tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_training_mixin import TrainingTesterMixin  # noqa: E402


# The suite looks up by these names which labels a class takes.
NAMES = {
    "MODEL_MAPPING_NAMES": SleepModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": SleepForCausalLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": SleepForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": SleepForTokenClassification,
}


@pytest.fixture(scope="module", autouse=True)
def known_to_transformers():
    """For this module, our classes are among those that transformers knows, and are not exempt from slower tests."""
    with pytest.MonkeyPatch.context() as patch:
        for mapping, model_class in NAMES.items():
            patch.setitem(getattr(modeling_auto, mapping), SleepConfig.model_type, model_class.__name__)
        patch.setattr(test_tensor_parallel_mixin, "TP_DISTRIBUTED_TEST_MODEL_TYPES", {SleepConfig.model_type})
        patch.setattr(test_fsdp_mixin, "FSDP_DISTRIBUTED_TEST_MODEL_TYPES", {SleepConfig.model_type})
        if not torch.cuda.is_available():  # ranks of a tiny model need no core each
            patch.setattr(test_fsdp_mixin, "_get_available_fsdp_workers", lambda: 4)
        yield


class SleepModelTester:
    """A tiny model and its input; the suite reads the attributes."""

    is_training = True
    causal_lm_class = SleepForCausalLM
    batch_size = 3
    seq_length = 7
    vocab_size = 99
    hidden_size = 32
    layer_types = ["sleep_attention", "linear_attention"]
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, window_size):
        self.window_size = window_size

    def get_config(self):
        return SleepConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=len(self.layer_types),
            layer_types=self.layer_types,
            num_attention_heads=self.num_attention_heads,
            window_size=self.window_size,
            sleep_passes=2,
            pad_token_id=0,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = test_modeling_common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class SleepTest:
    """What all classes here share."""

    all_model_classes = (SleepModel, SleepForCausalLM, SleepForSequenceClassification, SleepForTokenClassification)
    model_tester = None
    window_size = None

    def setUp(self):
        test_modeling_common.global_rng.seed(0)
        self.model_tester = SleepModelTester(self.window_size)
        self.config_tester = ConfigTester(self, SleepConfig, hidden_size=32, num_attention_heads=4)


class ModelSuite(SleepTest, test_modeling_common.ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    test_can_init_all_missing_weights_before_2023 = True  # as files without a copyright year are taken to be

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_attention_outputs(self):
        # The suite expects attentions of `num_hidden_layers` layers; a hybrid's come from attention layers only.
        attention_layers = self.model_tester.layer_types.count("sleep_attention")
        with mock.patch.object(self.model_tester, "num_hidden_layers", attention_layers):
            super().test_attention_outputs()


class DistributedSuite(
    SleepTest, test_tensor_parallel_mixin.TensorParallelTesterMixin, test_fsdp_mixin.FSDPTesterMixin
):
    """Two or four processes on the CPU."""

    def _run_fsdp2_distributed_test(self, test_name, test_impl, *args, **kwargs):
        # Its tolerance is 1e-5 after 20 steps, over which float32 lets roundings grow to 2e-5 on some processors. In
        # float64 the two agree, wherever they compute.
        if test_impl is test_fsdp_mixin._test_fsdp2_plan_vs_ddp_impl:
            kwargs["dtype"] = torch.float64
        super()._run_fsdp2_distributed_test(test_name, test_impl, *args, **kwargs)


class OneWindowTest(ModelSuite, unittest.TestCase):
    """No test fills the window."""

    window_size = 128


@pytest.mark.slow
class OneWindowDistributedTest(DistributedSuite, unittest.TestCase):
    window_size = 128


class SeveralWindowsTest(ModelSuite, unittest.TestCase):
    """Every text is of several windows."""

    window_size = 3
    # 64 tokens and 300 steps take minutes; 19 tokens are what the suite repeats.
    training_overfit_seq_length = 20
    training_overfit_steps = 100
    training_overfit_learning_rate = 5e-3

    def test_retain_grad_hidden_states_attentions(self):
        # What is recorded of several windows is put together at the end, beside the way from the input to the output.
        # Read window by window, it lies on this way, and a later window's output has a gradient in an earlier window.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SleepModel._from_config(config, attn_implementation="eager")
        windows = inputs["input_ids"].split(self.window_size, dim=1)
        cache, recorded = None, []
        for window in windows:
            outputs = model(window, past_key_values=cache, output_hidden_states=True, output_attentions=True)
            cache = outputs.past_key_values
            recorded.append((*outputs.hidden_states[:-1], *outputs.attentions))  # the last are the output itself
            for tensor in recorded[-1]:
                tensor.retain_grad()
        outputs.last_hidden_state[0, 0, 0].backward()
        for window, tensors in enumerate(recorded):
            for tensor in tensors:
                self.assertIsNotNone(tensor.grad, f"window {window}")

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        # The suite puts a mock around the checkpointed layers, which calls again what was called last. They are called
        # once per window and pass, and with checkpoints within checkpoints. So here gradients are compared.
        for model_class in self.all_model_classes[1:]:
            with self.subTest(model_class.__name__):
                config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
                inputs = self._prepare_for_class(inputs, model_class, return_labels=True)
                model = model_class(config).train()
                model(**inputs).loss.backward()
                expected = {name: parameter.grad for name, parameter in model.named_parameters()}
                model.zero_grad()

                model.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)
                layers = model.model.layers
                checkpoint = mock.Mock(wraps=layers._gradient_checkpointing_func)
                with mock.patch.object(layers, "_gradient_checkpointing_func", checkpoint):
                    model(**inputs).loss.backward()
                self.assertGreater(checkpoint.call_count, 3)  # windows
                for name, parameter in model.named_parameters():
                    torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.programs
class SeveralWindowsDistributedTest(DistributedSuite, unittest.TestCase):
    """These tests read 64 tokens, three windows, and generate up to 34, two windows."""

    window_size = 24
