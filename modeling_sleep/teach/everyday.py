"""Questions and wishes that have nothing to do with what was told: the model is to answer them as without a memory.

A memory that is asked for facts alone learns that whoever asks wants a fact, and says "The answer is" when it should
name three colours. So it is taught with these as well, behind stories.
"""

from typing import NamedTuple

import torch

from ..heads_sleep import SleepForCausalLM
from .chat import Chat, gap
from .lessons import Lesson
from .states import Read, StateCache


ANSWER = 16  # tokens of the original's answer, at most
STORIES = 8  # behind whose last windows it is asked
MEASURED = (
    "What is the capital of France?",
    "What is 2+3?",
    "Who wrote Hamlet?",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "What is the opposite of cold?",
    "Name three colours.",
    "What is water made of?",
)
TAUGHT = (
    "What is the capital of Italy?", "What is the capital of Japan?", "What is the largest ocean?", "What is 7+5?",
    "What is 10-4?", "How much is 3 times 6?", "Who painted the Mona Lisa?", "Who discovered gravity?",
    "Who wrote the Odyssey?", "Write a sentence about the mountains.", "Write two lines about winter.",
    "Write a short poem about a tree.", "How many days does a week have?", "How many months are in a year?",
    "How many wheels does a bicycle have?", "What is the opposite of tall?", "What is the opposite of early?",
    "What is another word for happy?", "Name two fruits.", "Name three countries in Europe.", "Name four animals.",
    "List three kitchen tools.", "What is bread made of?", "What is glass made of?", "What do bees make?",
    "What does a doctor do?", "Where do penguins live?", "When is the new year?", "Why is the sky blue?",
    "Why do leaves fall in autumn?", "How do birds fly?", "How do I boil an egg?", "How can I sleep better?",
    "Can you help me?", "Hello!", "Hi, how are you?", "Good morning.", "Thank you very much.", "Who are you?",
    "What can you do?", "Tell me a joke.", "Tell me a story.", "Tell me something about the moon.",
    "Explain what a noun is.", "Explain gravity to a child.", "What is a computer?", "What is an atom?",
    "What is democracy?", "What is the difference between a lake and a river?", "Is the sun a star?",
    "Do fish sleep?", "Are tomatoes fruits?", "Translate 'good night' into French.", "Say 'thank you' in Spanish.",
    "Spell the word 'necessary'.", "Give me an example of a metaphor.", "Give me a recipe for pancakes.",
    "Give me advice for an exam.", "Suggest a name for a cat.", "Suggest a title for a book about trains.",
    "Complete the sentence: The early bird", "Finish this proverb: Better late than", "Write an e-mail to a friend.",
    "Write a line of Python that prints 'hello'.", "Summarise the story of Cinderella.", "What should I cook tonight?",
    "What is your favourite season?", "What is the weather like in summer?", "How long is a kilometre?",
    "How hot is boiling water?", "How old is the universe?", "Which planet is the biggest?",
    "Which metal is liquid at room temperature?", "Which language is spoken in Brazil?", "What year follows 1999?",
    "What comes after Monday?", "What colour do blue and yellow make?", "Describe a sunset.", "Describe an elephant.",
    "Describe how to tie a shoe.",
)  # fmt: skip


class Plain(NamedTuple):
    """A window that asks for nothing that was told, and where its answer begins."""

    read: Read
    begin: int


@torch.no_grad()
def everyday_reads(cache: StateCache, learned: list[Lesson], chat: Chat) -> list[Plain]:
    """
    `TAUGHT`, each behind the last window of a story and followed by what the model begins to answer when it has read
    nothing else. Those that do not fit into a window with it are left out.
    """
    model, size = cache.model, cache.model.config.window_size
    begins = chat.asks + gap(chat.asks)
    prompts = [
        (chat.ids(chat.opening + x + chat.to_assistant), chat.ids(begins + x + chat.to_assistant)) for x in TAUGHT
    ]
    fitting = [(alone, prompt) for alone, prompt in prompts if max(len(alone), len(prompt)) + ANSWER <= size]
    asking = [prompt + ids for (_, prompt), ids in zip(fitting, begun_answers(model, chat, [x for x, _ in fitting]))]
    found = []
    for number, lesson in enumerate(learned[:STORIES]):
        rows = range(number, len(fitting), min(STORIES, len(learned)))
        _, reads = cache.read([lesson.story[-1].ids], [asking[row] for row in rows])
        found += [Plain(read, len(fitting[row][1])) for row, (read,) in zip(rows, reads, strict=True)]
    return found


def begun_answers(model: SleepForCausalLM, chat: Chat, prompts: list[list[int]]) -> list[list[int]]:
    """The first `ANSWER` tokens that the model writes, greedily, fewer where it ends before."""
    if not prompts:
        return []
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(x)) + x for x in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in prompts], device=model.device)
    ends = chat.ends(model)
    written = model.generate(
        ids, attention_mask=mask, max_new_tokens=ANSWER, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    answers = []
    for row in written[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers
