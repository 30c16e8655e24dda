"""Ask a model the questions of a task, by depth and by number of passes N.

An answer is right if all its tokens are. One forward pass over the right answer decides that: greedy decoding gives
the right answer exactly if, behind every right beginning, the next right token is the likeliest.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import evaluate
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_sleep import Sleep

from .tasks import Task
from .tasks.task import IGNORE, runs


METRIC = Path(__file__).parent / "metrics" / "exact_match_by_depth"


@torch.no_grad()
def predict_answers(
    model, batch: dict[str, torch.Tensor], sleep_passes: int | Sleep, **kwargs
) -> list[tuple[list[int], list[int]]]:
    """
    Predict every answer of a batch, token by token behind the right ones.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model that takes `sleep_passes`.
    batch : dict[str, torch.Tensor]
        What a [`WindowCollator`] makes: `input_ids`, `attention_mask`, `labels`, each (batch, tokens).
    sleep_passes : int or Sleep
        N, or until when.
    **kwargs
        Of the model's forward, such as `sleep_callback`.

    Returns
    -------
    list[tuple[list[int], list[int]]]
        Predicted and right token ids of each answer, in the order of rows and answers.
    """
    labels = batch["labels"]
    columns = (labels != IGNORE).any(dim=0).nonzero().squeeze(1)  # where some row has an answer's token
    logits = model(
        input_ids=batch["input_ids"].to(model.device),
        attention_mask=batch["attention_mask"].to(model.device),
        sleep_passes=sleep_passes,
        logits_to_keep=(columns - 1).to(model.device),  # a token is predicted at the one before
        use_cache=False,
        **kwargs,
    ).logits
    predicted = torch.full_like(labels, IGNORE)
    predicted[:, columns] = logits.argmax(dim=-1).to(labels.device)
    return [
        (predicted_row[begin:end], row[begin:end])
        for predicted_row, row in zip(predicted.tolist(), labels.tolist())
        for begin, end in runs(label != IGNORE for label in row)
    ]


def evaluate_by_depth(
    model,
    task: Task,
    *,
    passes: Sequence[int],
    depths: Iterable[int],
    num_examples: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool = True,
) -> list[dict]:
    """
    Answer fresh questions of every depth with every N. All N get the same questions; processes share them.

    Parameters
    ----------
    model : PreTrainedModel
    task : Task
    passes : sequence of int
        Every N.
    depths : iterable of int
        Every depth.
    num_examples : int
        Examples per depth; an example may have several questions.
    batch_size : int
        Examples per forward pass.
    seed : int
        Of the examples.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    list[dict]
        Per N and depth: `passes`, `depth`, `correct`, `total`, and `exact_match`, `low`, `high`: the share of right
        answers with its 95 % interval.
    """
    was_training = model.training
    model.eval()
    collator, state = task.collator(), PartialState()
    metric, answers = evaluate.load(str(METRIC)), {n: [] for n in passes}
    silent = not progress or not state.is_main_process
    for depth in tqdm(list(depths), desc="   evaluating", unit="depth", leave=False, disable=silent):
        examples = task.examples(range(num_examples), split="eval", seed=seed, depth=depth)
        with state.split_between_processes(examples) as mine:
            batches = [collator(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]
        for n in passes:
            mine = [(*answer, depth) for batch in batches for answer in predict_answers(model, batch, n)]
            answers[n] += gather_object(mine)
    model.train(was_training)

    results = []
    for n in passes:
        predictions, references, depths = zip(*answers[n])
        scores = metric.compute(predictions=predictions, references=references, depths=depths)
        results += [{"passes": n, **row} for row in scores["by_depth"]]
    return results
