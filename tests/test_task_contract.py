"""What is asked of every task: an example depends on nothing but its split, seed and index, and tokens are words."""

import dataclasses

import pytest
import test_depo
import test_gsm
import test_paths
import test_recall
import test_rule110
from transformers import AutoTokenizer

from examples.experiments.tasks.task import SPLITS


MODULES = (test_depo, test_gsm, test_paths, test_recall, test_rule110)
TASKS = {f"{module.__name__[5:]}: {name}": task for module in MODULES for name, task in module.TASKS.items()}
EXAMPLES = 10

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def contexts(examples) -> set[tuple]:
    return {tuple(example["context_ids"]) for example in examples}


@pytest.mark.parametrize("split", SPLITS)
@every_task
def test_an_example_depends_on_split_seed_and_index_alone(task, split):
    together = task.examples(range(EXAMPLES), seed=5, split=split)
    fresh = dataclasses.replace(task)  # which has drawn nothing yet
    alone = [fresh.examples([index], seed=5, split=split)[0] for index in reversed(range(EXAMPLES))]
    assert together == alone[::-1]
    assert len(contexts(together)) > 0.9 * EXAMPLES
    for other in ({"seed": 6, "split": split}, {"seed": 5, "split": SPLITS[1 - SPLITS.index(split)]}):
        others = task.examples(range(EXAMPLES), **other)
        assert len(contexts(together) & contexts(others)) < 0.1 * EXAMPLES


@every_task
def test_what_a_tokenizer_decodes_it_encodes(task, tmp_path):
    tokenizer = task.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    examples = task.examples(range(EXAMPLES), split="eval")
    ids = [example["context_ids"] + example["question_ids"] for example in examples]
    assert max(map(max, ids)) < len(tokenizer) == len(tokenizer.get_vocab())
    for candidate in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert candidate(candidate.batch_decode(ids))["input_ids"] == ids
        assert candidate.pad_token_id == 0 and candidate.padding_side == "left"
        with pytest.raises(Exception, match="UNK"):
            candidate("unicorns")
