"""
What test_save_load.py runs in processes of their own, on folders that hold a saved model with its code:

    python -I fresh_process.py hidden  FOLDER OUT SITE     without the package, as on a machine that never had it
    python -I fresh_process.py clash   FOLDER OUT SITE     package and remote code side by side

SITE is where transformers is to be found.

FOLDER holds `ids.safetensors` and the saved models of `AUTO_CLASSES`. What they give goes to OUT/outputs.safetensors,
and in "hidden" they are saved again beside it.
"""

import shutil
import sys
from pathlib import Path


AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "base": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
}


class HidePackage:
    """Stands in front of all finders, those of an editable installation included."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_sleep":
            raise ModuleNotFoundError(name)


def outputs(models: dict, ids) -> dict:
    """All that must not depend on how a model was loaded, over several windows. `ids` is (batch, length)."""
    import torch

    causal = models["causal"]
    with torch.no_grad():
        read = causal(ids)
        cache = causal.sleep(read.past_key_values, sleep_passes=3)
        return {
            "logits": read.logits,
            "after a nap": causal(ids[:, :3], past_key_values=cache).logits,
            "greedy": causal.generate(ids, max_new_tokens=14, do_sample=False, sleep_passes=3),
            "beams": causal.generate(ids, max_new_tokens=7, num_beams=2, do_sample=False).contiguous(),
            "hidden states": models["head taken off"](ids).last_hidden_state,
            "hidden states without head": models["base"](ids).last_hidden_state,
            "class of the text": models["sequence"](ids).logits,
            "classes of the tokens": models["tokens"](ids).logits,
        }


def hidden(folder: Path, out: Path) -> None:
    sys.meta_path.insert(0, HidePackage)
    try:
        import modeling_sleep  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("The package is not hidden.")

    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.AutoConfig.from_pretrained(folder / "causal", trust_remote_code=True)
    models = {
        kind: getattr(transformers, auto_class).from_pretrained(folder / kind, trust_remote_code=True)
        for kind, auto_class in AUTO_CLASSES.items()
    }
    models["head taken off"] = transformers.AutoModel.from_pretrained(folder / "causal", trust_remote_code=True)
    for thing in (config, *models.values()):
        assert type(thing).__module__.startswith("transformers_modules."), type(thing)
    try:
        type(config).from_preset("tiny")
    except ValueError as error:
        assert "presets come with the package `modeling_sleep`, not with a saved model" in str(error), error

    save_file(outputs(models, load_file(folder / "ids.safetensors")["ids"]), out / "outputs.safetensors")
    for kind in AUTO_CLASSES:
        models[kind].save_pretrained(out / kind)
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
    remote_class = get_class_from_dynamic_module("heads_sleep.SleepForCausalLM", folder / "causal")
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
