"""Where the tasks of this folder have their data from: made for the model's own tokenizer, nothing is downloaded.

lm-evaluation-harness calls these functions with its `--metadata` and `--model_args`, so that both can be given there:

    window_size    L of the texts (default: the model's, or 64 where it has none)
    questions      how many questions, or texts (default 100)
    between        windows of filler before the questions, one number for all (default: 0 to 7 in turn)
    split, seed    of `modeling_sleep.teach.facts` (default "eval" and 0)
"""

import itertools
from types import SimpleNamespace

import datasets
from transformers import AutoConfig, AutoTokenizer

from modeling_sleep.teach.chat import Chat
from modeling_sleep.teach.evaluate import evaluation_units, names
from modeling_sleep.teach.natural_text import natural_text


WINDOWS = 8  # of an ordinary text


def facts(questions: int = 100, between: int | None = None, split: str = "eval", seed: int = 0, **options):
    """Questions for facts behind 1 to 8 sleeps: the `context`, how the answer has `begun`, its `value`, ..."""
    chat, window_size = chat_of(**options)
    rows, distance = [], {} if between is None else {"between": between}
    for unit in evaluation_units(split, seed, chat, window_size, questions, **distance):
        story = list(itertools.chain(*unit.story))
        for question in unit.questions:
            answer = question.answers["question"]
            rows.append(
                {
                    "context": chat.tokenizer.decode(story + question.prompt),
                    "begun": answer.text[: answer.text.rindex(question.value)].rstrip(),
                    "question": question.text,
                    "value": question.value,
                    "candidates": list(question.candidates),
                    "since": question.since,
                }
            )
    return {"test": datasets.Dataset.from_list(rows)}


def ordinary(questions: int = 100, split: str = "eval", **options):
    """Texts of the manual of Python, eight windows each."""
    chat, window_size = chat_of(**options)
    texts = (natural_text(chat, split, WINDOWS * window_size, index) for index in range(questions))
    return {"test": datasets.Dataset.from_list([{"text": chat.tokenizer.decode(ids).strip()} for ids in texts])}


def chat_of(
    pretrained: str | None = None, tokenizer: str | None = None, window_size: int | None = None, **_
) -> tuple[Chat, int]:
    """How the model chats, and L."""
    if not isinstance(pretrained, str) and not isinstance(tokenizer, str):
        raise ValueError(
            "The texts are made for a tokenizer, and none is named: give `pretrained=` or `tokenizer=` in "
            '`--model_args`, or `TaskManager(metadata={"tokenizer": ...})` from Python.'
        )
    if window_size is None:
        config = AutoConfig.from_pretrained(pretrained, trust_remote_code=True) if pretrained else None
        window_size = getattr(config, "window_size", 64)
    return Chat(AutoTokenizer.from_pretrained(tokenizer or pretrained)), window_size


def facts_right(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the answer names the value, and nothing else of its kind before it."""
    question = SimpleNamespace(text=doc["question"], value=doc["value"], candidates=tuple(doc["candidates"]))
    return {"right": float(names(results[0], question))}


def choices(doc: dict) -> list[str]:
    return [f" {candidate}" for candidate in doc["candidates"]]
