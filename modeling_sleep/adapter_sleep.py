"""A memory without its model: what was taught is some megabytes, the base that it was taught in hundreds.

    model.save_pretrained("ada", memory_only=True)                      writes memory_config.json,
                                                                        memory_model.safetensors and a card
    SleepForCausalLM.from_causal_lm("HuggingFaceTB/...", memory="ada")  the base, with that memory in its place

A memory serves the base in which it was taught, and no other: what it finds is where that model's hidden states are.
So a sketch of the base's weights goes with it, some entries of each matrix, in which the same weights are known again,
also in another precision or a little fine-tuned.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .configuration_sleep import SleepConfig


CONFIG_NAME = "memory_config.json"
WEIGHTS_NAME = "memory_model.safetensors"
SKETCH = "base_sketch"
SKETCHED = 4  # entries of each matrix
ALIKE = 0.9  # least cosine of two sketches of the same base
# What a memory says of the model that it belongs to, and of how it reads.
BASE_FIELDS = ("hidden_size", "vocab_size", "num_hidden_layers")
FIELDS = (
    "window_size",
    "window_overlap",
    "pinned_tokens",
    "sleep_passes",
    "loop_span",
    "memory_layers",
    "recall_key_dim",
    "recall_key_rank",
    "recall_key_layer",
    "recall_value_dim",
    "recall_span",
    "recall_poolings",
    "recall_pooling_dim",
    "recall_hindsight",
    "recall_products",
    "recall_threshold",
)
# What those mean by it that were saved before there was a field.
LATER_FIELDS = {
    "recall_hindsight": 0,
    "recall_products": False,
    "recall_threshold": 0.0,
    "recall_key_rank": None,
    "recall_key_layer": None,
}


@dataclass(frozen=True)
class MemoryAdapter:
    """
    A saved memory.

    Attributes
    ----------
    name : str
        Where it was read from.
    config : dict
    tensors : dict[str, torch.Tensor]
        Of all its layers, by `{number}.{name}`, and the sketch of its base.
    """

    name: str
    config: dict
    tensors: dict[str, torch.Tensor]

    @classmethod
    def from_pretrained(cls, name: str, **hub) -> "MemoryAdapter":
        """
        Read a memory from a folder or from the Hub; `hub` are arguments of `hf_hub_download`.

        Raises
        ------
        ValueError
            If there is no memory.
        """
        try:
            paths = [
                Path(name) / file if Path(name).is_dir() else Path(hf_hub_download(name, file, **hub))
                for file in (CONFIG_NAME, WEIGHTS_NAME)
            ]
            config = json.loads(paths[0].read_text(encoding="utf-8"))
            return cls(name, LATER_FIELDS | config, load_file(paths[1]))
        except (OSError, EntryNotFoundError, HFValidationError, RepositoryNotFoundError) as error:
            raise ValueError(
                f"`memory` must be 'recall', 'gated_delta', or a folder or repository with {CONFIG_NAME} and "
                f"{WEIGHTS_NAME}, as `save_pretrained(folder, memory_only=True)` writes it; got {name!r}: {error}"
            ) from error

    def check_config(self, config) -> None:
        """Raise unless the configuration of a pretrained model is that of its base."""
        base = self.config["base"]
        different = [
            f"{name} is {getattr(config, name)}, not {base[name]}"
            for name in base
            if getattr(config, name) != base[name]
        ]
        if different:
            raise ValueError(
                f"The memory {self.name!r} was taught in {self.base_name()}; here, {', '.join(different)}."
            )

    def base_name(self) -> str:
        """How to call the base."""
        return self.config["base_model_name_or_path"] or "another model"

    @torch.no_grad()
    def put_on(self, model: PreTrainedModel) -> None:
        """
        Set the memories of `model`, in place.

        Raises
        ------
        ValueError
            If its other weights are not those of the base.
        """
        likeness = torch.cosine_similarity(self.tensors[SKETCH], sketch(model), dim=0).item()
        if likeness < ALIKE:
            raise ValueError(
                f"The memory {self.name!r} was taught in {self.base_name()}, and these are other weights (likeness "
                f"{likeness:.2f} of 1): it would find nothing. Put it on its own base, or teach this model."
            )
        for number, i in enumerate(model.config.memory_layers):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
            model.model.layers[i].load_state_dict(own)


def save_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """
    What [`SleepForCausalLM.save_pretrained`] writes with `memory_only`.

    Raises
    ------
    ValueError
        If nothing but recall memories may be taken out of a model, and there is none.
    """
    config: SleepConfig = model.config
    kinds = {config.layer_types[i] for i in config.memory_layers}
    if kinds != {"recall_memory"}:
        raise ValueError(
            "`memory_only` saves recall memories, and this model has none "
            f"(`memory_layers` is {config.memory_layers}): save all of it."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = {name: getattr(config, name) for name in BASE_FIELDS}
    named = config.adopted_from
    if named and Path(named).exists():
        named = None  # a folder here, of which nobody else knows
    base["num_hidden_layers"] -= len(config.memory_layers)
    contents = {
        "base_model_name_or_path": named,
        "base": base,
        **{name: getattr(config, name) for name in FIELDS},
        "modeling_sleep_version": config.code_version,
    }
    tensors = {
        f"{number}.{name}": parameter.contiguous()
        for number, i in enumerate(config.memory_layers)
        for name, parameter in model.model.layers[i].state_dict().items()
    }
    tensors[SKETCH] = sketch(model)
    (folder / CONFIG_NAME).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    if not (folder / "README.md").exists():
        (folder / "README.md").write_text(card(named), encoding="utf-8")


def card(base: str | None) -> str:
    """What the Hub shows of a memory. It claims no licence: that is for its author to say, within the base's terms."""
    known = f"base_model: {base}\nbase_model_relation: adapter\n" if base else ""
    return (
        f"---\n{known}tags:\n- sleep\n- fast-weights\n---\n\n# A memory for {base or 'a language model'}\n\n"
        "```python\nfrom modeling_sleep import SleepForCausalLM\n\n"
        f'model = SleepForCausalLM.from_causal_lm("{base or "its base"}", memory="this folder or repository")\n```\n'
    )


@torch.no_grad()
def sketch(model: PreTrainedModel) -> torch.Tensor:
    """Some entries of each matrix that belongs to the base, in units of what its entries spread."""
    memories = tuple(f"model.layers.{i}." for i in model.config.memory_layers)
    parts = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.startswith(memories):
            continue
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, SKETCHED + 2, dtype=torch.float64)[1:-1].long()
        spread = flat[:: max(1, len(flat) // 4096)].float().std().clamp_min(1e-12)
        parts.append(flat[places.to(flat.device)].float() / spread)
    return torch.cat(parts).cpu()
