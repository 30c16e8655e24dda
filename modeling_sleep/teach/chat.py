"""How a chat is put into tokens, and where in them the words of an answer stand."""

import dataclasses
import functools
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase


SPACES = ("Ġ", "▁", " ")  # tokens that are a space, as tokenizers write them


@dataclasses.dataclass(frozen=True)
class Answer:
    """
    An answer in a full sentence, with the token that ends it.

    Parameters
    ----------
    text : str
    ids : list of int
        Its tokens.
    given : int
        So many of them are given to the model; the rest it must find.
    value : (int, int)
        Which of them are the value, as it was told.
    """

    text: str
    ids: list[int]
    given: int
    value: tuple[int, int]


class Chat:
    """
    How a tokenizer's template puts a chat into tokens; without a template, plain questions and answers.

    Raises
    ------
    ValueError
        If the tokenizer cannot say where in a text its tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ValueError("Labelling values needs a fast tokenizer, which knows where in the text a token stands.")
        self.tokenizer = tokenizer
        self.encode = functools.lru_cache(100_000)(self._encode)
        if tokenizer.chat_template is None:
            self.opening, self.user, self.asks = "", "\n\nQuestion:", "\n\nQuestion:"
            self.to_assistant, self.end = "\nAnswer:", "\n"
        else:
            chat = [{"role": role, "content": f"<{role}{n}>"} for n in (0, 1) for role in ("user", "assistant")]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            self.opening, rest = text.split("<user0>")
            self.to_assistant, rest = rest.split("<assistant0>")
            to_user, rest = rest.split("<user1>")
            self.end = rest.split("<assistant1>")[1]
            self.user, self.asks = to_user.removeprefix(self.end), "\n\n"
        self.to_user = self.end + self.user

    def _encode(self, text: str, behind: str = ".") -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a text behind another one, and from which character of the text to which each goes."""
        before = self.tokenizer(behind, add_special_tokens=False)["input_ids"]
        encoded = self.tokenizer(behind + text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"][: len(before)] != before:  # they grow together; so let the text stand by itself
            before, behind = [], ""
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(begin - len(behind), end - len(behind)) for begin, end in encoded["offset_mapping"]]
        return encoded["input_ids"][len(before) :], offsets[len(before) :]

    def ids(self, text: str) -> list[int]:
        return list(self.encode(text)[0]) if text else []

    def ends(self, model: PreTrainedModel) -> list[int]:
        """Tokens at which an answer of the model is over: that of the template, and those that the model knows of."""
        eos = model.generation_config.eos_token_id
        known = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return list({self.ids(self.end)[0], *known})

    def answer(self, text: str, span: tuple[int, int], given: bool, is_spaced: bool = True) -> Answer:
        """
        The tokens of an answer whose value stands from one character to another. A space that is a token of its own
        belongs to the value if it was told so (`is_spaced`), and is to be found in any case.
        """
        lead = gap(self.to_assistant)
        ids, offsets = self.encode(lead + text + (self.end.rstrip() or "\n"), self.to_assistant)
        first, end = self.value_at(ids, offsets, span[0] + len(lead), span[1] + len(lead))
        value = first if is_spaced else self.behind_space(ids, first), end
        return Answer(text, ids, first if given else 0, value)

    def is_space(self, token: int) -> bool:
        return self.tokenizer.convert_ids_to_tokens(token) in SPACES

    def behind_space(self, ids: Sequence[int], first: int) -> int:
        """The same place, or the next one if a space stands there."""
        return first + self.is_space(ids[first])

    def value_at(
        self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], begin: int, end: int
    ) -> tuple[int, int]:
        """
        The tokens that have some of the characters from `begin` to `end`, and the space before them where it is a
        token of its own, as it is before a number: what finds "95" must find its space first.
        """
        touched = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
        first = touched[0]
        return first - (first > 0 and self.is_space(ids[first - 1])), touched[-1] + 1

    def spoken(self, text: str) -> str:
        """What the assistant says, its turn not ended."""
        return self.to_assistant + gap(self.to_assistant) + text

    def following(self, text: str) -> str:
        """What the user asks when the assistant has spoken, up to where the assistant begins again."""
        return self.to_user + gap(self.to_user) + text + self.to_assistant


def gap(ended: str) -> str:
    """What stands between a text that ended so and the next word."""
    return " " if ended and not ended[-1].isspace() else ""
