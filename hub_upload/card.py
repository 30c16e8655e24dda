"""The model card, rendered from the run's `results.json` and the configuration; no number in it is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .contents import CARD, CODE_FIELD, TRANSFORMERS_FIELD, read_json
from .plot import NAME as PLOT
from .plot import plot_results


# What the code of a card loads; `push` puts the repository's name there.
PLACE = "path/to/this/folder"
PIPELINES = {
    "SleepForCausalLM": "text-generation",
    "SleepForSequenceClassification": "text-classification",
    "SleepForTokenClassification": "token-classification",
    "SleepModel": "feature-extraction",
}
PAPER = """```bibtex
@article{lee2026sleep,
  title   = {Do Language Models Need Sleep? Offline Recurrence for Improved Online Inference},
  author  = {Lee and McLeish and Goldstein and Fanti},
  journal = {arXiv:2605.26099},
  year    = {2026}
}
```"""


def write_card(folder: Path, known: ModelCardData | None = None, license: str | None = None) -> list[str]:
    """
    Put the card of a saved model beside it, and the plot of its results.

    Parameters
    ----------
    folder : Path
        With `config.json` and, if the model was evaluated, `results.json` as `examples/train.py` writes it.
    known : ModelCardData, optional
        What another card of the model says of licence, base model, data sets, languages and tags. It is kept.
    license : str, optional
        As the Hub names it; goes before that of `known`. Without either it is the code's, apache-2.0, unless the
        weights come from another model.

    Returns
    -------
    list[str]
        What is missing, a sentence each.
    """
    results = read_results(folder)
    notes = []
    if results.get("counts") and not plot_results(results, folder / PLOT):
        notes.append("no plot of the results, as matplotlib is not installed: `pip install matplotlib`")
    card = model_card(folder, known, license)
    data = ModelCard(card).data
    if data.license is None:
        notes.append(f"the card names no license, which is that of {data.base_model} as a rule: `--license ID`")
    (folder / CARD).write_text(card, encoding="utf-8", newline="\n")  # on Windows too
    return notes


def read_metadata(card: Path) -> ModelCardData | None:
    """
    What a card says of its model, if there is one.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    if not card.exists():
        return None
    try:
        return ModelCard.load(card).data
    except Exception as error:  # YAML's own, decoding, or a field of the wrong kind
        raise ValueError(f"The metadata of {card} cannot be read: {error}. Mend it, or remove the file.") from None


def read_results(folder: Path) -> dict:
    return read_json(folder / "results.json") if (folder / "results.json").exists() else {}


def model_card(folder: Path, known: ModelCardData | None = None, license: str | None = None) -> str:
    """Render the card. See [`write_card`] for the arguments."""
    config, results = read_json(folder / "config.json"), read_results(folder)
    known = known or ModelCardData()
    name = results.get("recipe") or known.model_name or f"{config['model_type']}-model"
    if results.get("variant"):
        name += f", {results['variant']}"
    kind = config["architectures"][0]
    tags = ["sleep", "fast-weights", *([results["task"]["name"]] if "task" in results else []), *(known.tags or [])]
    base_model = on_the_hub(results.get("base_model") or config.get("adopted_from") or known.base_model)
    data = ModelCardData(
        library_name="transformers",
        license=license or known.license or (None if base_model else "apache-2.0"),
        license_name=None if license else known.license_name,
        license_link=None if license else known.license_link,
        language=known.language,
        datasets=results.get("datasets") or known.datasets,
        base_model=base_model,
        pipeline_tag=PIPELINES[kind],
        tags=list(dict.fromkeys(tags)),
        model_name=name,
        eval_results=eval_results(results, PIPELINES[kind]) or None,
    )
    if data.eval_results is None:
        data.model_name = None  # without results it would be a field that the Hub does not know
    sections = [
        f"# {name}",
        introduction(config, results),
        "## Use\n\n" + usage(folder, config, results),
        "## How it sleeps\n\n" + how_it_sleeps(config, results),
        "## Results\n\n" + results_section(folder, results),
        "## Training\n\n" + training_section(config, results),
        "## Limits\n\n" + limits(config, results),
        "## Citation\n\n" + PAPER,
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def on_the_hub(models: str | list[str] | None) -> list[str] | str | None:
    """Those that a stranger can look up. Trainers also write folders here, at which the Hub refuses the card."""

    def is_there(model):
        try:
            validate_repo_id(model)
        except HFValidationError:
            return False
        return not Path(model).exists()

    kept = [model for model in ([models] if isinstance(models, str) else models or []) if is_there(model)]
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


def introduction(config: dict, results: dict) -> str:
    text = (
        f"A language model that sleeps ([arXiv 2605.26099](https://arxiv.org/abs/2605.26099)). It reads in windows of "
        f"L = {config['window_size']} tokens. When a window is full, the model replays it N - 1 more times into the "
        "fast weights of its Gated DeltaNet layers, then forgets it."
    )
    return "\n\n".join(filter(None, [text, results.get("description")]))


def usage(folder: Path, config: dict, results: dict) -> str:
    """Five lines that run as they stand."""
    kind = config["architectures"][0]
    auto_class = next(name for name, target in config["auto_map"].items() if target.endswith(f".{kind}"))
    example = results.get("example", {})
    passes = config["sleep_passes"]
    lines = [f'model = {auto_class}.from_pretrained("{PLACE}", trust_remote_code=True)']
    if (folder / "tokenizer_config.json").exists():
        lines.insert(0, f"from transformers import {auto_class}, AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}", trust_remote_code=True)')
        problem = json.dumps(example.get("problem", "A model that sleeps"), ensure_ascii=False)
        inputs, decoded = f'tokenizer({problem}, return_tensors="pt")', "tokenizer.decode(output[0])"
    else:
        lines.insert(0, f"import torch; from transformers import {auto_class}")
        inputs, decoded = '{"input_ids": torch.tensor([[1, 2, 3]])}', "output[0].tolist()"
    if kind == "SleepForCausalLM":
        tokens = example.get("answer_tokens", 2 * config["window_size"])
        lines.append(f"output = model.generate(**{inputs}, max_new_tokens={tokens}, sleep_passes={passes})")
    else:
        lines.append(f"output = model(**{inputs}, sleep_passes={passes})")
        decoded = "output.last_hidden_state" if kind == "SleepModel" else "output.logits"
    lines.append(f"print({decoded})")
    code = "\n".join(lines)
    return (
        f"```python\n{code}\n```\n\n`trust_remote_code=True` runs the Python files of this repository on your "
        "machine. Read them, and pin them: `revision=` takes a commit."
    )


def how_it_sleeps(config: dict, results: dict) -> str:
    window, passes = config["window_size"], config["sleep_passes"]
    trained = trained_passes(results)
    lines = [f"- L = {window}: the attention cache holds so many tokens. Texts may be longer; memory does not grow."]
    lines.append(
        f"- N = {passes} passes over a window in all, unless a call says otherwise: "
        f"`generate(..., sleep_passes=N)`. N = 1 reads once and forgets."
    )
    if config.get("loop_span"):
        start, end = config["loop_span"]
        lines.append(f"- Layers {start} to {end - 1} are passed N times, those before and behind them once.")
    if trained:
        lines.append(
            f"- **Trained with N = {', '.join(map(str, trained))}** and no other. Beyond N = {trained[-1]}, and with "
            "another L, nothing is promised: measure before you rely on it."
        )
    else:
        lines.append("- **What N it was trained for is not recorded.** Keep to the N and the L above, or measure.")
    return "\n".join(lines)


def results_section(folder: Path, results: dict) -> str:
    plots = "".join(f"\n\n![{path.stem.replace('_', ' ')}]({path.name})" for path in sorted(folder.glob("*.png")))
    if not results.get("counts"):
        return "None are recorded: measure before you rely on it." + plots
    totals = {row["total"] for row in results["counts"]}
    total = f"{totals.pop():,}" if len(totals) == 1 else f"{min(totals):,} to {max(totals):,}"
    return (
        f"Share of answers that are right as a whole, by {results['depth_name']}; {total} answers per figure, none of "
        f"them from training; one seed ({results['seed']}).\n\n"
        f"{table(results['counts'], results['depth_name'], trained_passes(results))}{plots}\n\n"
        "`results.json` holds all numbers, with 95 % intervals."
    )


def trained_passes(results: dict) -> list[int]:
    """Every N that was trained, if it is known."""
    return sorted(set(results.get("training", {}).get("passes", [])))


def table(counts: list[dict], depth_name: str, trained: Sequence[int] = ()) -> str:
    """The shares of right answers in Markdown: a row per N, a column per depth."""
    share = {(row["passes"], row["depth"]): row["exact_match"] for row in counts}
    depths = list(dict.fromkeys(depth for _, depth in share))
    lines = ["| passes N | " + " | ".join(f"{depth_name} = {depth}" for depth in depths) + " |"]
    lines.append("|---:|" + "---:|" * len(depths))
    for n in dict.fromkeys(n for n, _ in share):
        label = f"{n}, never trained" if trained and n not in trained else n
        lines.append(f"| {label} | " + " | ".join(f"{100 * share[n, depth]:.1f} %" for depth in depths) + " |")
    return "\n".join(lines)


def training_section(config: dict, results: dict) -> str:
    made = (
        f"The code in this repository is that of modeling_sleep {config[CODE_FIELD]}, which is tested with "
        f"transformers{config[TRANSFORMERS_FIELD]}."
    )
    if "command" not in results:
        return f"The command that trained it is not recorded. {made}"
    training, versions = results["training"], results["versions"]
    steps = training.get("max_steps")
    took = f"{steps:,} steps of {training['batch_size']:,} examples, " if steps and "batch_size" in training else ""
    threads = results.get("threads", 1)
    device = results["device"] + (f", {threads} thread{'s' * (threads > 1)}" if results["device"] == "cpu" else "")
    return (
        f"```\n{results['command']}\n```\n\nat commit {results.get('commit') or 'unknown'}, with torch "
        f"{versions['torch']} and transformers {versions['transformers']}: {results['parameters']:,} parameters, "
        f"{took}{results['tokens']:,} tokens, {results['flops']:.2g} floating point operations, "
        f"{results['seconds'] / 60:.0f} minutes ({device}).\n\n{made}"
    )


def limits(config: dict, results: dict) -> str:
    lines = []
    if "task" in results:
        lines.append(f"- It was trained on one task ({results['task']['name']}) and knows nothing else.")
    lines += [
        "- What it has read lives in fast weights of a fixed size: details of long texts get lost.",
        f"- In a batch, left padding is exact if it is a multiple of L = {config['window_size']}; right padding in "
        "generation, packed sequences, assisted decoding and static or quantised caches are refused.",
        "- An independent implementation of the paper, not its authors' code or model.",
    ]
    return "\n".join(lines)
