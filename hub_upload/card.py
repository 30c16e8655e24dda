"""What stands on a model card. No number on it is typed by hand, and no licence is made up.

The text is card_template.md. The numbers come from `config.json`, and from `results.json` as
`examples/experiments/train.py` writes it; licence, base model, data sets and languages from a card that is there
already.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from modeling_sleep.markdown_table import markdown_table
from modeling_sleep.teach.card import section

from .contents import AUTO_CLASS_OF, CARD, read_json


# What the code of a card loads; `push` puts the repository's name there.
PLACE = "path/to/this/folder"
PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModel": "feature-extraction",
}


def write_card(folder: Path, known: ModelCardData | None = None) -> list[str]:
    """
    Put the card of a saved model beside it, and return what is missing, a sentence each.

    It shows `results.json` and the plots of a folder that has them. What another card of the model says of licence,
    base model, data sets, languages and tags is `known`, and kept.
    """
    card = model_card(folder, known)
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")  # on Windows too
    data = ModelCard(card).data
    if data.license is not None:
        return []
    theirs = f" That of {data.base_model} binds: look there." if data.base_model else ""
    return [
        f"the card names no licence, as none is known, and without one nobody may use the model.{theirs} Give it to "
        "`export` by `--license ID`, as the Hub names it: apache-2.0, mit, llama3.2, ..."
    ]


def model_card(folder: Path, known: ModelCardData | None = None) -> str:
    """Render the card. See [`write_card`] for the arguments."""
    config, results = read_json(folder / "config.json"), read_results(folder)
    known = known or ModelCardData()
    auto_class = AUTO_CLASS_OF[config["architectures"][0]]
    name = results.get("recipe") or known.model_name or "sleep-model"
    name += f", {results['variant']}" if results.get("variant") else ""
    counts, trained = results.get("counts", []), sorted(set(results.get("training", {}).get("passes", [])))
    totals = sorted({row["total"] for row in counts})
    tags = ["sleep", "fast-weights", *([results["task"]["name"]] if "task" in results else []), *(known.tags or [])]
    data = ModelCardData(
        library_name="transformers",
        license=known.license,
        license_name=known.license_name,
        license_link=known.license_link,
        language=known.language,
        datasets=results.get("datasets") or known.datasets,
        base_model=on_the_hub(results.get("base_model") or config.get("adopted_from") or known.base_model),
        pipeline_tag=PIPELINES[auto_class],
        tags=list(dict.fromkeys(tags)),
        model_name=name if counts else None,  # without results it would be a field that the Hub does not know
        eval_results=eval_results(results, PIPELINES[auto_class]) or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card_template.md")),
        name=name,
        config=config,
        results=results,
        auto_class=auto_class,
        place=PLACE,
        has_code=(folder / "modeling_sleep.py").exists(),
        has_tokenizer=(folder / "tokenizer_config.json").exists(),
        problem=json.dumps(results.get("example", {}).get("problem", "A model that sleeps"), ensure_ascii=False),
        untrained=has_untrained_memory(folder, config.get("memory_layers") or []),
        passes_trained=trained,
        answers=" to ".join(f"{total:,}" for total in dict.fromkeys(totals[:1] + totals[-1:])),
        taught=section(results) if "steps" in results else None,
        table=table(counts, results["depth_name"], trained) if counts else None,
        plots=[path for path in sorted(folder.glob("*.png")) if path.name != results.get("picture", {}).get("file")],
    )
    return str(card).rstrip("\n") + "\n"


def read_results(folder: Path) -> dict:
    return read_json(folder / "results.json") if (folder / "results.json").exists() else {}


def read_metadata(card: Path) -> ModelCardData:
    """What a card says of its model, nothing if it is not there; a `ValueError` if it cannot be read."""
    try:
        return ModelCard.load(card).data if card.exists() else ModelCardData()
    except Exception as error:  # YAML's own, decoding, or a field of the wrong kind
        raise ValueError(f"The metadata of {card} cannot be read: {error}. Mend it, or remove the file.") from None


def has_untrained_memory(folder: Path, memory_layers: list[int]) -> bool:
    """Whether nothing is read of what a sleep writes: all output projections of inserted memories are still zero."""
    projection = re.compile(rf"\blayers\.({'|'.join(map(str, memory_layers))})\.(\w+\.)?o_proj\.weight$")
    written = []
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            written += [file.get_tensor(name).any() for name in filter(projection.search, file.keys())]
    return bool(written) and not any(written)


def on_the_hub(models: str | list[str] | None) -> list[str] | str | None:
    """Those that a stranger can look up. Trainers also write folders here, at which the Hub refuses the card."""
    kept = []
    for model in [models] if isinstance(models, str) else models or []:
        with suppress(HFValidationError):
            validate_repo_id(model)
            kept += [] if Path(model).exists() else [model]
    return kept[0] if len(kept) == 1 else kept or None


def eval_results(results: dict, pipeline: str) -> list[EvalResult]:
    """One result per N and depth, as the metadata of a card has them."""
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=results["task"]["name"],
            dataset_name=results["task"]["name"],
            dataset_split="eval",
            metric_type="exact_match",
            metric_name=f"exact match, {results['depth_name']} = {row['depth']}, N = {row['passes']}",
            metric_value=row["exact_match"],
            metric_args={"sleep_passes": row["passes"], "depth": row["depth"], "examples": row["total"]},
        )
        for row in results.get("counts", [])
    ]


def table(counts: list[dict], depth_name: str, trained: Sequence[int] = ()) -> str:
    """The shares of right answers in Markdown: a row per N, a column per depth."""
    share = {(row["passes"], row["depth"]): row["exact_match"] for row in counts}
    depths = list(dict.fromkeys(depth for _, depth in share))
    head = ["passes N", *(f"{depth_name} = {depth}" for depth in depths)]
    rows = []
    for n in dict.fromkeys(n for n, _ in share):
        label = f"{n}, never trained" if trained and n not in trained else n
        rows.append([label, *(f"{100 * share[n, depth]:.1f} %" for depth in depths)])
    return markdown_table(head, rows, align="r" * len(head))
