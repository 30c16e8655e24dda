"""Saved models where the package is not: what they give there, and what they give here."""

import json

from safetensors.torch import load_file

from modeling_sleep.hub_upload import clean_room


AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "base": "AutoModel",
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
}
# Loads the saved models of a folder without the package and saves them again.
STRANGER = """
import json, shutil
from pathlib import Path

import transformers
from safetensors.torch import load_file, save_file

folder, out = map(Path, sys.argv[1:3])
ids = load_file(folder / "ids.safetensors")["ids"]
config = transformers.AutoConfig.from_pretrained(folder / "causal", trust_remote_code=True)
models = {
    kind: getattr(transformers, auto_class).from_pretrained(folder / kind, trust_remote_code=True)
    for kind, auto_class in json.loads(sys.argv[3]).items()
}
for kind, model in models.items():
    model.save_pretrained(out / kind)
models["head taken off"] = transformers.AutoModel.from_pretrained(folder / "causal", trust_remote_code=True)
for thing in (config, *models.values()):
    assert type(thing).__module__.startswith("transformers_modules."), type(thing)
try:
    type(config).from_preset("tiny")
except ValueError as error:
    assert "presets come with the package `modeling_sleep`, not with a saved model" in str(error), error
results = {kind: outputs(model, ids, 3) for kind, model in models.items()}
save_file({f"{k}: {n}": t for k, outs in results.items() for n, t in outs.items()}, out / "outputs.safetensors")
shutil.copy(folder / "ids.safetensors", out)
"""


def run_as_stranger(folder, out):
    """What the saved models of `folder` give where the package is not; they are saved again in `out`."""
    clean_room.run(STRANGER, folder, out, json.dumps(AUTO_CLASSES))
    return load_file(out / "outputs.safetensors")


def outputs(models, ids):
    results = {kind: clean_room.outputs(model, ids, 3) for kind, model in models.items()}
    return {f"{kind}: {name}": tensor for kind, each in results.items() for name, tensor in each.items()}
