"""What a saved model gives, as [`verify`] sees it with the package and as a stranger sees it without.

    python -I clean_room.py FOLDER OUT SITE THREADS

loads FOLDER with its own code only, in a process in which this package cannot be found, and writes to OUT. SITE is
where transformers is to be found. Run by its path, as nothing here may import `modeling_sleep`.
"""

import json
import sys
from pathlib import Path


class HidePackage:
    """Stands in front of all finders, those of an editable installation included."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "modeling_sleep":
            raise ModuleNotFoundError(name)


def outputs(folder: Path, **kwargs) -> tuple[dict, dict]:
    """
    What must not depend on how the folder was loaded.

    Parameters
    ----------
    folder : Path
    **kwargs
        For `from_pretrained`.

    Returns
    -------
    tuple[dict[str, torch.Tensor], dict[str, str]]
        Tensors over more than two windows, greedy tokens across a window's end among them, and texts.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    window = config.window_size
    # An N that sleeps; a model of attention layers alone has only one.
    passes = max(2, config.sleep_passes) if "linear_attention" in config.layer_types else 1
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, 2 * window + 3), generator=generator)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sleep_passes": passes}
    tensors, texts = {}, {}

    tokenizer = None
    if (folder / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
        text = tokenizer.decode(ids[0, : window + 1] % len(tokenizer)) or "a"  # words of its own: not all know others
        texts["tokenizer"] = json.dumps(tokenizer(text)["input_ids"])
    with torch.no_grad():
        base = transformers.AutoModel.from_pretrained(folder, **kwargs)
        tensors["hidden states"] = base(**whole).last_hidden_state.contiguous()
        del base  # a large model need not be in memory twice
        if auto_class(config) == "AutoModel":
            return tensors, texts
        model = getattr(transformers, auto_class(config)).from_pretrained(folder, **kwargs)
        tensors["logits"] = model(**whole).logits.contiguous()
    if not model.can_generate():
        return tensors, texts
    beginning = {name: tensor[:, : max(1, 2 * window - 2)] for name, tensor in whole.items() if name != "sleep_passes"}
    how = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "sleep_passes": passes}
    tensors["greedy tokens"] = model.generate(**beginning, **how)
    del model
    if tokenizer is not None:
        write = transformers.pipeline("text-generation", model=str(folder), tokenizer=str(folder), **kwargs)
        texts["pipeline"] = write(text, **how)[0]["generated_text"]
    return tensors, texts


def auto_class(config) -> str:
    """The name of the Auto class that loads the model with its head."""
    (name,) = (
        name for name, reference in config.auto_map.items() if reference.endswith(f".{config.architectures[0]}")
    )
    return name


def main(folder: str, out: str, site: str, threads: str) -> None:
    sys.path.insert(0, site)
    sys.meta_path.insert(0, HidePackage)
    try:
        import modeling_sleep  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("The package is not hidden.")

    import torch
    import transformers
    from safetensors.torch import save_file

    torch.set_num_threads(int(threads))
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if not type(config).__module__.startswith("transformers_modules."):
        raise AssertionError(f"{type(config)} is not the folder's own class.")
    tensors, texts = outputs(Path(folder), trust_remote_code=True)
    save_file(tensors, Path(out) / "tensors.safetensors")
    (Path(out) / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
