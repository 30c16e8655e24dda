"""`pinned_tokens=True`: how many of a text's first tokens are the system's turn of a chat.

The chat template says what stands before the system's message and behind it. So the turn is found in the tokens that
are given, and nobody needs to know what the message says. It ends where the template ends a chat of that message
alone, or, if it takes no such chat, where the user's first words begin.
"""

import torch

from .cache_sleep import SleepState


SYSTEM, USER = "3b9ac9ff5e1d70a2", "c4ca4238a0b92382"  # stand for what the two say
HINT = "Give their number, `pinned_tokens=...`, or leave it out."


def pinned_by(pinned_tokens, state: SleepState, tokenizer, input_ids, attention_mask=None) -> int | None:
    """
    `pinned_tokens` as a number: `True` is the system's turn with which `input_ids` begin, and later in a text what it
    began with.

    Raises
    ------
    ValueError
        As [`system_turn`], or if the text of `state` has begun and nothing is pinned of it.
    """
    if pinned_tokens is not True:
        return pinned_tokens
    if state.has_begun:
        if not state.pinned_tokens:
            raise ValueError(
                "`pinned_tokens=True`, but the text of `past_key_values` began with nothing pinned: it can only be "
                "chosen with a text's first tokens."
            )
        return state.pinned_tokens
    if input_ids is None or input_ids.is_floating_point():
        raise ValueError(f"`pinned_tokens=True` finds the system's turn in `input_ids`, and there are none. {HINT}")
    return system_turn(tokenizer, input_ids, attention_mask)


def system_turn(tokenizer, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> int:
    """
    The number of tokens of the system's turn with which every row begins.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With the chat template by which the rows were made.
    input_ids : torch.Tensor
        (batch, length).
    attention_mask : torch.Tensor, optional
        (batch, length), 0 at padding. Default: padding is where the tokenizer's padding token stands.

    Raises
    ------
    ValueError
        If there is no tokenizer with a chat template, the template does not tell where the system's turn ends, a row
        does not begin with one, or those of the rows differ in length.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "`pinned_tokens=True` pins the system's turn of a chat: it needs the model's `tokenizer`, with a chat "
            f"template. {HINT}"
        )
    before, behind, end = _marks(tokenizer)
    is_token = attention_mask
    if is_token is None:
        is_token = input_ids != (-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    numbers = {
        _tokens_of(tokenizer, row[mask.to(row.device) != 0].tolist(), before, behind, end)
        for row, mask in zip(input_ids, is_token, strict=True)
    }
    if len(numbers) > 1:
        raise ValueError(
            f"`pinned_tokens=True`: the rows begin with system turns of {sorted(numbers)} tokens, and so many are "
            f"pinned of all rows alike. {HINT}"
        )
    return numbers.pop()


def _marks(tokenizer) -> tuple[str, str, str]:
    """What stands before the system's message, what between it and the user's, and how much of this is its end."""
    system, user = ({"role": role, "content": text} for role, text in (("system", SYSTEM), ("user", USER)))
    before, found, rest = _templated(tokenizer, [system, user]).partition(SYSTEM)
    behind, found_user, _ = rest.partition(USER)
    user_alone = _templated(tokenizer, [user]).partition(USER)[0]
    if not (before and behind and found and found_user) or before == user_alone:
        raise ValueError(
            "`pinned_tokens=True`: the chat template does not tell a system's message from what the user says. " + HINT
        )
    end = _templated(tokenizer, [system]).partition(SYSTEM)[2]
    return before, behind, end if end and behind.startswith(end) else behind


def _templated(tokenizer, chat: list[dict]) -> str:
    """The chat as text; nothing if the template does not take it."""
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:
        # By name: from the Hub, a file must not import what not everybody has. Whoever renders a template has it.
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        return ""


def _tokens_of(tokenizer, ids: list[int], before: str, behind: str, end: str) -> int:
    """How many of a row's first tokens it takes to write down its system turn."""

    def text_of(number: int) -> str:
        return tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False)

    text, bos = text_of(len(ids)), tokenizer.bos_token or ""
    begin = text.find(before)
    place = text.find(behind, begin + len(before))
    if begin < 0 or place < 0 or (text[:begin].replace(bos, "") if bos else text[:begin]).strip():
        raise ValueError(
            f"`pinned_tokens=True`: a text does not begin with the system's turn of the chat template, {before!r} ... "
            f"{behind!r}, but with {text[:60]!r}. {HINT}"
        )
    number = 1
    while len(text_of(number)) < place + len(end.rstrip()):
        number += 1
    while number < len(ids) and len(text_of(number + 1)) <= place + len(end):  # tokens of white space
        number += 1
    return number
