"""What binds whoever gives sleep to a pretrained model, and goes along with it: its name, its licence, its notices."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCardData, hf_hub_download

from .hub_upload.card import on_the_hub, read_metadata
from .hub_upload.contents import CARD, read_json


# The terms of a model, which go along with its weights.
TERMS = ("LICENSE*", "NOTICE*")


def metadata_of_base(model: str, revision: str | None = None) -> ModelCardData:
    """
    What the card of a pretrained model says of its licence, and which model on the Hub it is.

    Parameters
    ----------
    model : str
        A folder, or a name on the Hub.
    revision : str, optional
        Of the model on the Hub.

    Returns
    -------
    ModelCardData
        As far as it is known. The base model of a folder is the one that its `config.json` says it was loaded from, or
        else the one that its card names: an ancestor, if not the model itself.
    """
    folder, named = Path(model), model
    if folder.is_dir():
        origin = read_json(folder / "config.json").get("_name_or_path") if (folder / "config.json").exists() else None
        known, named = read_metadata(folder / CARD), on_the_hub(origin) if "/" in (origin or "") else None
    else:
        try:
            known = read_metadata(Path(hf_hub_download(model, CARD, revision=revision)))
        except (OSError, ValueError):  # no card, or no Hub
            known = ModelCardData()
    link = known.license_link
    if link and "://" not in link and named == model:  # a file beside the card
        link = f"https://huggingface.co/{model}/blob/{revision or 'main'}/{link}"
    base_model = named or on_the_hub(known.base_model)
    return ModelCardData(
        license=known.license, license_name=known.license_name, license_link=link, base_model=base_model
    )


def copy_terms(model: str, folder: Path) -> None:
    """Copy licence and notice of a model that is a folder."""
    for path in (path for pattern in TERMS for path in Path(model).glob(pattern) if path.is_file()):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
