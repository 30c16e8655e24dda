"""examples/finetune_lora.py, from start to end with two steps of training."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_sleep import SleepForCausalLM


SCRIPT = Path(__file__).parents[1] / "examples" / "finetune_lora.py"


@pytest.mark.programs
@pytest.mark.parametrize("flags, added", [([], 51_328), (["--memory-only"], 12_416)])
def test_an_adapter_is_trained_saved_and_merged(flags, added, tmp_path):
    command = [sys.executable, SCRIPT, "--output", tmp_path / "adapter", "--steps", "2", "--examples", "20", *flags]
    run = subprocess.run(
        [*command, "--passes", "3", "--seed", "1"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert f"141,400 parameters stay as they are, LoRA adds {added:,}\n" in run.stdout
    for line in ("before", "after"):
        shares = re.search(rf"^{line}((?: +\d+\.\d)+)$", run.stdout, re.M)
        assert shares and len(shares[1].split()) == 6, run.stdout
    assert "loaded on a fresh base: the same logits\n" in run.stdout
    assert "merged model in" in run.stdout
    assert "100%" in run.stderr and "arning" not in run.stderr, run.stderr

    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in tmp_path.glob("adapter/*")}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 16
    merged = SleepForCausalLM.from_pretrained(tmp_path / "adapter" / "merged")
    assert (merged.config.sleep_passes, merged.config.use_cache) == (3, True)
    assert merged.num_parameters() == 141_400
