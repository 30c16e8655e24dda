"""Share of whole answers that are right, by depth, as a metric of `evaluate`, with Wilson intervals.

What is notable:
- an answer counts if it has every token right and no token more or less
- unlike the normal interval, Wilson's is not empty at 0 of n and n of n, which easy and hopeless depths are
- `by_depth` is a list of records: a DataFrame as it is, and unlike a dictionary with integer keys it survives JSON
- `evaluate` copies this one file and reads its imports line by line: one per line, none relative
"""

from collections import Counter

import datasets
import evaluate
from scipy.stats import binomtest


DESCRIPTION = "Share of answers, each a run of tokens, that are right as a whole, by depth (what makes one hard)."

INPUTS = """
Args:
    predictions: one sequence of token ids per answer
    references: one sequence of token ids per answer; another length than the prediction's is wrong
    depths: one integer per answer
    confidence_level: of the intervals, 0.95 by default
Returns:
    exact_match, low, high, correct, total: over all answers; low and high bound the Wilson interval
    by_depth: records of depth, exact_match, low, high, correct, total, by rising depth
Examples:
    >>> metric = evaluate.load("examples/experiments/metrics/exact_match_by_depth")
    >>> metric.add_batch(predictions=[[1, 2], [3]], references=[[1, 2], [3, 4]], depths=[1, 2])
    >>> metric.compute()["by_depth"][0]["exact_match"]
    1.0
"""


def share(correct: int, total: int, confidence_level: float) -> dict[str, float | int]:
    """Exact match with its Wilson interval, in plain numbers, which JSON takes."""
    interval = binomtest(correct, total).proportion_ci(confidence_level, method="wilson")
    return {
        "exact_match": correct / total,
        "low": float(interval.low),
        "high": float(interval.high),
        "correct": correct,
        "total": total,
    }


class ExactMatchByDepth(evaluate.Metric):
    """Differs from `evaluate`'s own exact_match in that answers are tokens instead of strings and have a depth."""

    def _info(self) -> evaluate.MetricInfo:
        tokens = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": tokens, "references": tokens, "depths": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, depths, confidence_level: float = 0.95) -> dict:
        if len(depths) == 0:
            raise ValueError("exact_match_by_depth needs at least one answer")
        correct, total = Counter(), Counter()
        for prediction, reference, depth in zip(predictions, references, depths):
            total[depth] += 1
            correct[depth] += list(prediction) == list(reference)
        return {
            **share(correct.total(), total.total(), confidence_level),
            "by_depth": [{"depth": d, **share(correct[d], total[d], confidence_level)} for d in sorted(total)],
        }
