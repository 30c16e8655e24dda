"""The model card, rendered from the run's `results.json` and the configuration; no number in it is typed by hand."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .contents import read_json
from .versions import CODE_FIELD, TRANSFORMERS_FIELD


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


def model_card(folder: Path, *, source_card: Path | None = None, license: str | None = None) -> str:
    """
    Render the card of an exported model.

    Parameters
    ----------
    folder : Path
        With `config.json` and, if the model was evaluated, `results.json` as `examples/train.py` writes it.
    source_card : Path, optional
        A card whose metadata (licence, base model, data sets, languages) is kept.
    license : str, optional
        As the Hub names it; goes before that of `source_card`.

    Returns
    -------
    str
    """
    config = read_json(folder / "config.json")
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    known = ModelCard.load(source_card).data if source_card is not None and source_card.exists() else None
    name = results.get("recipe") or (known and known.model_name) or f"{config['model_type']}-model"
    kind = config["architectures"][0]
    data = ModelCardData(
        library_name="transformers",
        license=license or (known and known.license) or "apache-2.0",
        license_name=known and known.license_name,
        license_link=known and known.license_link,
        language=known and known.language,
        datasets=results.get("datasets") or (known and known.datasets),
        base_model=results.get("base_model") or (known and known.base_model),
        pipeline_tag=PIPELINES[kind],
        tags=["sleep", "fast-weights", *([results["task"]["name"]] if "task" in results else [])],
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
    trained = sorted(set(results.get("training", {}).get("passes", [])))
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
        return "Nothing was measured: this model came without a `results.json`." + plots
    totals = {row["total"] for row in results["counts"]}
    total = f"{totals.pop():,}" if len(totals) == 1 else f"{min(totals):,} to {max(totals):,}"
    return (
        f"Share of answers that are right as a whole, by {results['depth_name']}; {total} answers per figure, none of "
        f"them from training; one seed ({results['seed']}).\n\n{table(results)}{plots}\n\n"
        "`results.json` holds all numbers, with 95 % intervals."
    )


def table(results: dict) -> str:
    """A row per N, a column per depth."""
    share = {(row["passes"], row["depth"]): row["exact_match"] for row in results["counts"]}
    depths = list(dict.fromkeys(depth for _, depth in share))
    trained = results.get("training", {}).get("passes", [])
    lines = ["| passes N | " + " | ".join(f"{results['depth_name']} = {depth}" for depth in depths) + " |"]
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
        return f"How it was trained is not recorded. {made}"
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
