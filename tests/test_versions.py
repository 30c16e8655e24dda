"""What a checkpoint says of the code and the transformers that it was made with, and what is said on loading it."""

import json
import tomllib
from pathlib import Path

import pytest
from transformers.utils import logging

import modeling_sleep
from modeling_sleep import SleepConfig, SleepForCausalLM


PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOGGER = logging.get_logger("modeling_sleep.configuration.configuration_sleep")


def test_the_code_states_what_the_package_states():
    assert SleepConfig.code_version == modeling_sleep.__version__ == PROJECT["version"]
    assert f"transformers{SleepConfig.tested_transformers}" in PROJECT["dependencies"]
    assert "code_version" not in SleepConfig().to_dict()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, None),
        ({"transformers_range": ">=9.0,<9.2"}, "tested with transformers<9.2,>=9.0"),
        ({"modeling_sleep_version": "0.1.7"}, None),
        ({"modeling_sleep_version": "0.3.0"}, "made with modeling_sleep 0.3.0, and this is 0.1.0"),
        ({"modeling_sleep_version": "dawn", "transformers_range": "whatever"}, None),  # of the future
    ],
)
def test_a_checkpoint_of_other_versions_loads_with_a_warning(fields, message, tmp_path, monkeypatch):
    SleepForCausalLM(SleepConfig.from_preset("tiny")).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    saved = json.loads(path.read_text())
    stated = (saved["modeling_sleep_version"], saved["transformers_range"])
    assert stated == (SleepConfig.code_version, SleepConfig.tested_transformers)
    path.write_text(json.dumps({**saved, **fields}))

    said = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *args, **kwargs: said.append(text))
    logging.warning_once.cache_clear()
    loaded = SleepForCausalLM.from_pretrained(tmp_path / "saved")
    assert len(said) == (message is not None)
    if message is not None:
        assert message in said[0] and "If something is not as it should be" in said[0]

    # Saved again, it states what it goes with now.
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: again[name] for name in saved} == saved
