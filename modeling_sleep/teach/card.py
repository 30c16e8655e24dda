"""The section of a model's card that says what its memory was taught, and how good it is."""

from pathlib import Path


HEADING = "## Memory"
END = "<!-- end of the memory's section -->"


def write_card(folder: Path, results: dict, base: str) -> None:
    """Put the section into `folder/README.md`, in the place of an older one if there is one."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, _, rest = text.partition(HEADING)
    after = rest.partition(END)[2] if rest else ""
    parts = [part for part in (before.strip(), section(results, base), after.strip()) if part]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def section(results: dict, base: str) -> str:
    """Markdown of what was measured."""
    settings, steps = results["settings"], results["steps"]
    lines = [
        HEADING,
        "",
        f"A recall memory in {base}, taught with `python -m modeling_sleep.teach` (seed {settings['seed']}, "
        f"{settings['units']} stories, {steps.get('alone', 0)} + {steps.get('through', 0)} steps, windows of "
        f"{settings['window_size']} tokens). All other weights are the original's.",
    ]
    if "recall" in results:
        first, second = results["perplexity"]
        same = sum(row["same"] for row in results["everyday"])
        lines += [
            "",
            "Facts are told before a sleep and asked for behind it: `known` in wordings of training, with other names "
            "and values; `eval` in wordings, names and values never met. The answer's beginning is given (`question`: "
            'the question\'s words; `general`: "The answer is"), or the model answers in its `own` words.',
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
    return "\n".join([*lines, "", END])
