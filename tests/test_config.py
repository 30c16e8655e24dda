"""Every field has its range, every argument is known, and what was given is never overruled without a word."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from examples.experiments.resume import is_whole, last_checkpoint
from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.configuration import configuration_sleep
from modeling_sleep.configuration.configuration_sleep import MAX_SLEEP_PASSES


DEMO = Path(__file__).parents[1] / "examples" / "checkpoints" / "rule110-demo"
BASE = dict(
    model_type="qwen3_next", vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_experts=0,
    num_attention_heads=2, num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
INFINITE = [math.inf, -math.inf, math.nan]


@pytest.fixture
def warnings(monkeypatch):
    """What the configuration warns of, as it warns."""
    said = []
    monkeypatch.setattr(configuration_sleep.logger, "warning", lambda text, *args, **kwargs: said.append(text))
    logging.warning_once.cache_clear()
    return said


def saved(folder, config, **changes):
    """The folder, with the configuration and what is changed in its file. None takes a field out."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return folder


# Ranges.


@pytest.mark.parametrize(
    "name, wrong, right",
    [
        ("attention_dropout", [-0.1, 1, 1.0, *INFINITE], [0, 0.999]),
        ("initializer_range", [-0.02, *INFINITE], [0.0]),
        ("rms_norm_eps", [0.0, -1e-6, *INFINITE], [1e-12]),
        ("linear_a_max", [math.inf, math.nan], [1]),
        ("linear_dt_max", [math.inf, math.nan], [1]),
        ("sleep_passes", [0, MAX_SLEEP_PASSES + 1, 10**9], [1, MAX_SLEEP_PASSES]),
        ("n_positions", [0, -1], [1, 10**7]),
        ("memory_layers", [[1, 1]], [[1, 3]]),
        ("hidden_act", ["zzz", ""], ["gelu", "relu"]),
        ("pad_token_id", [-1, 64, 65], [0, 63, None]),
        ("bos_token_id", [-1, 64], [63, None]),
        ("eos_token_id", [-1, 64, [1, 64], [-100], []], [63, [1, 63], None]),
    ],
)
@pytest.mark.parametrize("way", ["given", "read"])
def test_what_is_out_of_range_is_refused(name, wrong, right, way, tmp_path):
    def make(value):
        if way == "given":
            return SleepConfig.from_preset("tiny", **{name: value})
        return SleepConfig.from_pretrained(saved(tmp_path, SleepConfig.from_preset("tiny"), **{name: value}))

    for value in wrong:
        with pytest.raises(StrictDataclassClassValidationError, match=f"`{name}"):
            make(value)
    for value in right:
        assert value is None or getattr(make(value), name) == value


def test_a_message_says_what_to_do():
    with pytest.raises(StrictDataclassClassValidationError, match=r"`hidden_act` .* 'sylu' \(did you mean 'silu'\?\)"):
        SleepConfig(hidden_act="sylu")
    message = (
        r"`pad_token_id` is 64, .* \(`vocab_size` = 64\) ends with 63.*resize_token_embeddings\(len\(tokenizer\)\)"
    )
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        SleepConfig.from_preset("tiny", pad_token_id=64)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3["original_max_position_embeddings"] = 8192


@pytest.mark.parametrize(
    "rope, name",
    [
        *((dict(rope_theta=value), "rope_theta") for value in (0, -1.0, "10000", True, *INFINITE)),
        *((dict(rope_type="linear", factor=value), "factor") for value in (0, -2.0, None, math.inf)),
        *((dict(LLAMA3, **{name: 0}), name) for name in LLAMA3 if name != "rope_type"),
        (dict(LLAMA3, low_freq_factor=4.0), "low_freq_factor"),
    ],
    ids=str,
)
def test_a_rotation_out_of_range_is_refused(rope, name):
    with pytest.raises(ValueError, match=rf"`rope_parameters\['{name}'\]` must be "):
        SleepConfig(rope_parameters=rope)
    if rope.get("rope_type") is None:
        with pytest.raises(ValueError, match=rf"`rope_parameters\['{name}'\]` must be "):
            SleepConfig(**rope)  # its older place
    base = dict(BASE, rope_parameters={"rope_theta": 1e4, **rope})
    with pytest.raises(ValueError, match=rf"`rope_parameters\['{name}'\]` must be "):
        SleepConfig(base_config=base)


@pytest.mark.parametrize("factor", [0, -0.5, 1.5])
def test_no_more_than_a_head_is_rotated(factor):
    rope = dict(rope_theta=1e4, partial_rotary_factor=factor)
    with pytest.raises(ValueError, match=r"`rope_parameters\['partial_rotary_factor'\]`"):
        SleepConfig(base_config=dict(BASE, rope_parameters=rope))
    rope["partial_rotary_factor"] = 0.5
    assert SleepConfig(base_config=dict(BASE, rope_parameters=rope)).rope_parameters["partial_rotary_factor"] == 0.5


def test_a_vocabulary_that_shrinks_below_a_token_is_not_saved(tmp_path):
    model = SleepForCausalLM(SleepConfig.from_preset("tiny", eos_token_id=63))
    model.resize_token_embeddings(60)
    with pytest.raises(StrictDataclassClassValidationError, match="`eos_token_id` is 63, .* ends with 59"):
        model.save_pretrained(tmp_path)


# Names.


@pytest.mark.parametrize(
    "name, nearest", [("windw_size", "window_size"), ("sleep_pases", "sleep_passes"), ("colour", None)]
)
def test_an_unknown_argument_is_refused(name, nearest):
    for make in (
        SleepConfig,
        lambda **k: SleepConfig.from_preset("tiny", **k),
        lambda **k: AutoConfig.for_model("sleep", **k),
    ):
        with pytest.raises(TypeError, match=f"SleepConfig does not know '{name}'") as caught:
            make(**{name: 8})
        assert (f"did you mean '{nearest}'?" in str(caught.value)) == (nearest is not None)


@pytest.mark.parametrize("version", [transformers.__version__, None], ids=["saved", "written by hand"])
def test_an_unknown_field_of_a_file_is_kept_with_a_warning(version, tmp_path, warnings):
    folder = saved(tmp_path, SleepConfig(window_size=7), windw_size=8, colour="red", transformers_version=version)
    for load in (SleepConfig.from_pretrained, AutoConfig.from_pretrained):
        warnings.clear()
        logging.warning_once.cache_clear()
        config = load(folder)
        assert (config.windw_size, config.colour, config.window_size) == (8, "red", 7)
        assert len(warnings) == 1
        assert "does not know and will not read: 'windw_size' (did you mean 'window_size'?), 'colour'." in warnings[0]
    config.save_pretrained(tmp_path / "again")  # of newer code, perhaps: it is not lost
    assert json.loads((tmp_path / "again" / "config.json").read_text())["colour"] == "red"


def test_what_is_known_is_taken_without_a_warning(tmp_path, warnings):
    """What transformers has for all models, what it wrote itself, and what others leave on a configuration."""
    config = SleepConfig(
        architectures=["SleepForCausalLM"], dtype="float32", torch_dtype="float32", return_dict=False,
        output_attentions=True, output_hidden_states=True, num_labels=3, problem_type="regression",
        chunk_size_feed_forward=0, is_encoder_decoder=False, name_or_path="here", attn_implementation="eager",
        auto_map={"AutoConfig": "configuration_sleep.SleepConfig"}, tokenizer_class="PreTrainedTokenizerFast",
        classifier_dropout=0.1, rope_theta=5e5, _of_others=1, **GenerationConfig._get_default_generation_params(),
    )  # fmt: skip
    assert (config.num_labels, config._attn_implementation, config.name_or_path) == (3, "eager", "here")
    assert config.rope_parameters["rope_theta"] == 5e5 and config.classifier_dropout == 0.1
    plain = PreTrainedConfig().to_dict()
    assert SleepConfig(**{**plain, "num_hidden_layers": 2}).num_hidden_layers == 2
    for each in (SleepConfig(tie_word_embeddings=True, window_size=5), SleepConfig(base_config=BASE), config):
        copies = [SleepConfig.from_pretrained(saved(tmp_path, each))]
        copies += [SleepConfig.from_json_file(tmp_path / "config.json")]
        copies += [copy.deepcopy(each), pickle.loads(pickle.dumps(each))]
        for fields in (each.to_dict(), each.to_diff_dict()):
            copies += [SleepConfig(**fields), SleepConfig.from_dict(fields), AutoConfig.for_model(**fields)]
        for one in copies:
            assert one.to_diff_dict() == each.to_diff_dict()
            assert "_is_saved" not in one.to_dict()
    assert warnings == []


def test_overrides_of_a_saved_configuration_are_checked(tmp_path):
    folder = saved(tmp_path, SleepConfig())
    config, unused = AutoConfig.from_pretrained(folder, window_size=9, colour="red", return_unused_kwargs=True)
    assert config.window_size == 9 and unused == {"colour": "red"}
    with pytest.raises(StrictDataclassClassValidationError, match="`sleep_passes`"):
        SleepConfig.from_pretrained(folder, sleep_passes=0)


class WithAField(SleepConfig):
    model_type = "with_a_field"
    extra: int = 3


class WithAConstructor(SleepConfig):
    model_type = "with_a_constructor"

    def __init__(self, extra=3, **kwargs):
        super().__init__(extra=extra, **kwargs)


@pytest.mark.parametrize("config_class", [WithAField, WithAConstructor])
def test_classes_that_extend_it_have_arguments_of_their_own(config_class, tmp_path, warnings):
    config = config_class(extra=4, window_size=9)
    assert (config.extra, config.window_size, config.hidden_size) == (4, 9, 256)
    assert config_class.from_pretrained(saved(tmp_path, config)).to_dict() == config.to_dict()
    assert warnings == []
    with pytest.raises(TypeError, match=f"{config_class.__name__} does not know 'extr'"):
        config_class(extr=4)


# What was given.


@pytest.mark.parametrize("name, value", [*configuration_sleep.DEFAULTS.items()])
def test_a_field_that_is_given_beside_a_base_must_agree_with_it(name, value):
    """Also if it is the default: `SleepConfig(hidden_size=256, base_config=...)` is not what the base says."""
    theirs = {
        "attention_bias": True, "attention_dropout": 0.5, "linear_conv_kernel_dim": 3, "initializer_range": 0.1,
        "rms_norm_eps": 1e-3, "tie_word_embeddings": True,
    }  # fmt: skip
    base = {**BASE, **theirs}
    assert getattr(SleepConfig(), name) == value
    ours = getattr(SleepConfig(base_config=base), name)
    assert getattr(SleepConfig(base_config=base, **{name: ours}), name) == ours
    if name != "hidden_act":  # no base may have another
        assert ours != value
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but `base_config` makes it {ours!r}"):
            SleepConfig(base_config=base, **{name: value})


def test_a_misspelt_field_of_a_base_is_warned_of(warnings):
    SleepConfig(base_config={**BASE, "num_expert": 4})
    assert len(warnings) == 1 and "will not read: 'num_expert' (did you mean 'num_experts'?)" in warnings[0]


# What clients look for.


def test_generation_knows_no_end_but_clients_do(tmp_path):
    """As lm-evaluation-harness looks for the longest text; transformers would cut a prompt at the other name."""
    config = SleepConfig.from_preset("tiny", n_positions=4)
    assert not hasattr(config, "max_position_embeddings")
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    found = [getattr(SleepConfig(), name) for name in names if hasattr(SleepConfig(), name)]
    assert (
        found == [131072] == [json.loads((saved(tmp_path, SleepConfig()) / "config.json").read_text())["n_positions"]]
    )
    text = SleepForCausalLM(config).generate(torch.ones(1, 30, dtype=torch.long))
    assert text.shape[1] == 50  # as ever: 20 new tokens where nobody said how many


# Folders.


def test_the_tokenizer_of_a_folder_needs_no_code(tmp_path):
    """`AutoTokenizer` reads the model's configuration first, and its `auto_map` asks for trust. The class does not."""
    program = f"""
import sys
sys.modules["modeling_sleep"] = None
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast.from_pretrained({str(DEMO)!r})
assert not [name for name in sys.modules if name.startswith("transformers_modules.")]
print(tokenizer("t=4 0 1 1 <query>")["input_ids"], tokenizer.padding_side, tokenizer.pad_token_id)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, input=""
    )
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    expected = AutoTokenizer.from_pretrained(DEMO)
    said = f"{expected('t=4 0 1 1 <query>')['input_ids']} {expected.padding_side} {expected.pad_token_id}"
    assert done.stdout.splitlines()[-1] == said


def test_a_checkpoint_is_whole_or_torn(tmp_path):
    def checkpoint(step):
        folder = tmp_path / f"checkpoint-{step}"
        SleepForCausalLM(SleepConfig.from_preset("tiny")).save_pretrained(folder)
        torch.save({"lr": torch.ones(1000)}, folder / "optimizer.pt")
        torch.save({"cpu": torch.ones(1000)}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text('{"global_step": 9}')
        return folder

    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "nowhere") is None
    nine = checkpoint(9)
    assert is_whole(nine) and last_checkpoint(tmp_path) == str(nine)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        ten = checkpoint(10)
        assert last_checkpoint(tmp_path) == str(ten)  # by number
        content = (ten / name).read_bytes()
        for length in (0, len(content) // 2, len(content) - 1):
            (ten / name).write_bytes(content[:length])
            assert not is_whole(ten) and last_checkpoint(tmp_path) == str(nine)
    (ten / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == str(nine)
