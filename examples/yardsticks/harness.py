"""The tasks of this folder for a model in memory, through lm-evaluation-harness."""

import importlib.util
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


TASKS = Path(__file__).parent / "tasks"


def check_harness() -> None:
    """Say what is missing before any work is done."""
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit(
            'error: lm-evaluation-harness measures the model, and it is not installed: pip install ".[eval]"; or do '
            "without figures, with --examples 0."
        )


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    window_size: int,
    questions: int,
    batch_size: int,
    cut: bool = False,
    passes: int | None = None,
) -> dict:
    """
    How many facts a model knows behind sleeps, and how well it reads.

    Parameters
    ----------
    name : str
        Of the tokenizer, a folder or on the Hub.
    questions : int
        How many, and how many ordinary texts.
    cut : bool
        Give the model no more than the last window of each text.
    passes : int, optional
        N, of a model that sleeps.

    Returns
    -------
    dict
        `perplexity` of a word of ordinary text; `facts`, by sleeps `since` how many of `total` were `right`; `choice`,
        the share where the right one of up to ten values was the likeliest.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    before = getattr(model.config, "sleep_passes", None)
    if passes is not None:
        model.config.sleep_passes = passes
    try:
        results = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size,
                **({"max_length": window_size} if cut else {}),
            ),
            tasks=["sleep_facts", "sleep_facts_choice", "sleep_text"],
            task_manager=TaskManager(
                include_path=str(TASKS),
                include_defaults=False,
                metadata={"tokenizer": name, "window_size": window_size, "questions": questions},
            ),
            bootstrap_iters=0,
        )  # fmt: skip
    finally:
        if passes is not None:
            model.config.sleep_passes = before
    cells = {}
    for sample in results["samples"]["sleep_facts"]:
        cell = cells.setdefault(sample["doc"]["since"], [0, 0])
        cell[0] += int(sample["right"])
        cell[1] += 1
    return {
        "perplexity": results["results"]["sleep_text"]["word_perplexity,none"],
        "facts": [dict(since=since, right=right, total=total) for since, (right, total) in sorted(cells.items())],
        "choice": results["results"]["sleep_facts_choice"]["acc,none"],
    }
