"""The picture on the card of a taught memory: what a story changes in S, and where questions read what was told."""

from pathlib import Path

import torch
from transformers.utils import logging

from ..memory.picture import draw, shares, trace
from .chat import Chat
from .facts import unit


logger = logging.get_logger(__name__)

NAME = "memory.png"
WINDOWS, FACTS = 12, 12
QUESTIONS = 14  # of the story, at most, so that the picture can be read


def draw_memory(model, chat: Chat, seed: int, folder: Path) -> dict:
    """
    Draw the first story of these sizes, in wordings of training with other names and values.

    Parameters
    ----------
    model : SleepForCausalLM
    chat : Chat
    seed : int
    folder : Path
        Of the PNG.

    Returns
    -------
    dict
        As "picture", what the card says of it: its file, how many questions there are, and for how many the window
        that told the answer is the one that is read most. Nothing without matplotlib, which is no reason to lose what
        was taught.
    """
    story = unit("known", seed, 0, chat, model.config.window_size, windows=WINDOWS, facts=FACTS)
    asked = sorted(story.questions, key=lambda question: question.window)[:QUESTIONS]
    answers = [question.answers["general"] for question in asked]
    firsts = [chat.behind_space(answer.ids, answer.value[0]) for answer in answers]
    begun = [question.prompt + answer.ids[:first] for question, answer, first in zip(asked, answers, firsts)]
    device, told = model.device, [question.window for question in asked]
    result = trace(
        model, torch.tensor(story.story, device=device).view(1, -1), [torch.tensor([x], device=device) for x in begun]
    )
    found = shares(result.reading.mean(1)).argmax(-1).tolist()
    title = f"A memory over {WINDOWS} sleeps, N = {model.config.sleep_passes}"
    try:
        draw(result, folder / NAME, title, [question.text for question in asked], told=told)
    except ImportError as error:
        logger.warning(f"The card goes without a picture of the memory. {error}")
        return {}
    found = sum(x == y for x, y in zip(found, told))
    return {"picture": {"file": NAME, "windows": WINDOWS, "questions": len(asked), "found": found}}
