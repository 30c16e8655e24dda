"""The turns of a conversation as tokens: a memory has read what came before, so only the new turn is templated."""

import torch


ANSWER = "8f14e45fceea167a"  # stands for what the model has said


def turn_ids(
    tokenizer, content: str, last_token: int | None = None, begins: bool = True, system: str | None = None
) -> torch.Tensor:
    """
    What a model is to read of the next turn, as far as it has not read it yet.

    A template may put something between an answer and the next turn (in ChatML the end of the message, and a line
    break). It is what stands behind the answer when the whole is templated. Of it, the end of the message is left out
    if the model has said it by itself.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With or without a chat template; without one, `content` stands by itself.
    content : str
        What the user says.
    last_token : int, optional
        What the memory has read last.
    begins : bool, optional
        Whether this is the first turn.
    system : str, optional
        The system's message, which begins the first turn.

    Returns
    -------
    torch.Tensor
        (1, length) of token ids.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _ids(tokenizer(content, add_special_tokens=begins)["input_ids"])
    chat = [] if system is None else [{"role": "system", "content": system}]
    question = {"role": "user", "content": content}
    if begins:
        return _ids(_encoded(tokenizer, _templated(tokenizer, [*chat, question])))
    # The system's message is read already, but some templates put one of their own where there is none.
    chat += [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}, question]
    _, _, rest = _templated(tokenizer, chat).partition(ANSWER)
    ids = _encoded(tokenizer, rest)
    return _ids(ids[1:] if ids and ids[0] == last_token else ids)


def _templated(tokenizer, chat: list[dict]) -> str:
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def _encoded(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _ids(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], dtype=torch.long)
