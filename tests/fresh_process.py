"""
What test_save_load.py runs in processes of their own, on folders that hold a saved model with its code:

    python -I fresh_process.py hidden  FOLDER OUT SITE     without the package, as on a machine that never had it
    python -I fresh_process.py clash   FOLDER OUT SITE     package and remote code side by side

SITE is where transformers is to be found.

FOLDER holds `ids.safetensors` and the saved models `causal` (with the head) and `base` (without). What they give goes
to OUT/outputs.safetensors, and in "hidden" they are saved again beside it.
"""

import shutil
import sys
from pathlib import Path


class HidePackage:
    """Stands in front of all finders, those of an editable installation included."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_sleep":
            raise ModuleNotFoundError(name)


def outputs(causal, base, headless, ids) -> dict:
    """All that must not depend on how a model was loaded, over several windows. `ids` is (batch, length)."""
    import torch

    with torch.no_grad():
        read = causal(ids)
        cache = causal.sleep(read.past_key_values, sleep_passes=3)
        return {
            "logits": read.logits,
            "after a nap": causal(ids[:, :3], past_key_values=cache).logits,
            "greedy": causal.generate(ids, max_new_tokens=14, do_sample=False, sleep_passes=3),
            "beams": causal.generate(ids, max_new_tokens=7, num_beams=2, do_sample=False).contiguous(),
            "hidden states": base(ids).last_hidden_state,
            "hidden states without head": headless(ids).last_hidden_state,
        }


def hidden(folder: Path, out: Path) -> None:
    sys.meta_path.insert(0, HidePackage)
    try:
        import modeling_sleep  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("The package is not hidden.")

    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder / "causal", trust_remote_code=True)
    causal = AutoModelForCausalLM.from_pretrained(folder / "causal", trust_remote_code=True)
    base = AutoModel.from_pretrained(folder / "causal", trust_remote_code=True)
    headless = AutoModel.from_pretrained(folder / "base", trust_remote_code=True)
    for thing in (config, causal, base, headless):
        assert type(thing).__module__.startswith("transformers_modules."), type(thing)
    try:
        type(config).from_preset("tiny")
    except ValueError as error:
        assert "presets come with the package `modeling_sleep`, not with a saved model" in str(error), error

    save_file(
        outputs(causal, base, headless, load_file(folder / "ids.safetensors")["ids"]), out / "outputs.safetensors"
    )
    causal.save_pretrained(out / "causal")
    headless.save_pretrained(out / "base")
    shutil.copy(folder / "ids.safetensors", out)


def clash(folder: Path, out: Path) -> None:
    """Both copies of the code name a cache layer of the same type; the last one imported is `DynamicCache`'s."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import DynamicCache
    from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from modeling_sleep import SleepForCausalLM, SleepWindowLayer

    ids = load_file(folder / "ids.safetensors")["ids"]
    remote_class = get_class_from_dynamic_module("modeling_sleep.SleepForCausalLM", folder / "causal")
    layers = {"package": SleepWindowLayer, "remote": DYNAMIC_LAYER_TYPE_MAPPING["sleep_attention"]}
    models = {
        "package": SleepForCausalLM.from_pretrained(folder / "causal"),
        "remote": remote_class.from_pretrained(folder / "causal"),
    }
    assert layers["remote"] is not layers["package"]
    assert remote_class is not SleepForCausalLM

    results = {}
    for last, layer in layers.items():
        DYNAMIC_LAYER_TYPE_MAPPING["sleep_attention"] = layer
        for first, model in models.items():
            for second, other in models.items():
                cache = DynamicCache(config=model.config)
                with torch.no_grad():
                    logits = [model(ids[:, :8], past_key_values=cache).logits]
                    assert type(cache.layers[0]) is layer
                    logits.append(other(ids[:, 8:], past_key_values=cache).logits)
                results[f"{last} registered, {first} then {second}"] = torch.cat(logits, dim=1)
            results[f"{last} registered, {first} generates"] = model.generate(ids, max_new_tokens=14, sleep_passes=3)
    save_file(results, out / "outputs.safetensors")


if __name__ == "__main__":
    job, folder, out, site = sys.argv[1:]
    sys.path.insert(0, site)
    {"hidden": hidden, "clash": clash}[job](Path(folder), Path(out))
