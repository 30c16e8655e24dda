"""What a card says of a taught memory: how it was taught, and how good it is.

`hub_upload/card.py` puts it on the card of a model, from `results.json`; here it comes onto that of a memory alone.
"""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


def write_memory_card(folder: Path, results: dict, known: ModelCardData) -> None:
    """
    Put results, and the licence that the base names, onto the card of a memory that was saved alone.

    Parameters
    ----------
    folder : Path
        As `save_pretrained(folder, memory_only=True)` left it.
    results : dict
        From [`teach`].
    known : ModelCardData
        What the base's card says (`metadata_of_base`).
    """
    card = ModelCard.load(folder / "README.md")
    for name in ("license", "license_name", "license_link", "base_model"):
        if getattr(known, name) is not None:
            setattr(card.data, name, getattr(known, name))
    card.content = f"---\n{card.data}\n---\n{card.text.rstrip()}\n\n## Results\n\n{section(results)}\n"
    (folder / "README.md").write_text(card.content, encoding="utf-8", newline="\n")


def section(results: dict) -> str:
    """Markdown of what was taught and measured."""
    settings, steps = results["settings"], results["steps"]
    overlap = settings.get("window_overlap", 0)  # results of earlier releases do not say it
    stay = f", of which the last {overlap} stay" if overlap else ""
    more = settings.get("alone_units")
    more = f" and {more:,} for the memory by itself" if more else ""
    processes = results.get("processes", 1)
    shared = f", shared by {processes} processes" if processes > 1 else ""
    lines = [
        f"Its recall memory was taught with `modeling_sleep.teach` (seed {settings['seed']}, "
        f"{settings['units']} stories{more}, {steps.get('alone', 0)} + {steps.get('through', 0)} steps{shared}, "
        f"windows of {settings['window_size']} tokens{stay}). All other weights are the original's.",
    ]
    if "recall" in results:
        first, second = results["perplexity"]
        same = sum(row["same"] for row in results["everyday"])
        lines += [
            "",
            f"Facts are told before a sleep (N = {results['passes']}) and asked for behind it: `known` in wordings of "
            "training, with other names and values; `eval` in wordings, names and values never met. The answer's "
            'beginning is given (`question`: the question\'s words; `general`: "The answer is"), or the model answers '
            "in its `own` words. A question begins a window, or stands amid other text of one, or windows end "
            "anywhere: in a fact, a question or its answer, too.",
            "",
            results["recall"],
            "",
            "By the sleeps between the fact and its question:",
            "",
            results["by sleeps"],
            "",
            f"Perplexity of natural text behind sleeps: {first['later']:.2f}, and {second['later']:.2f} when each "
            f"window is read by itself. Everyday questions: {same} of {len(results['everyday'])} answers are the "
            "original's.",
        ]
    if "picture" in results:
        drawn = results["picture"]
        lines += [
            "",
            f"![What a story changes in S, and where questions read what it told]({drawn['file']})",
            "",
            f"What a story of {drawn['windows']} windows does to S, and which of them wrote what a question reads, "
            'as shares of all that it reads where its answer begins (behind "The answer is"). The window that told '
            f"the answer is outlined; it is the one read most for {drawn['found']} of {drawn['questions']} questions.",
        ]
    return "\n".join(lines)
