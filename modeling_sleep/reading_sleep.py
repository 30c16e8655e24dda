"""Reading a text of any length into a memory: `model.read`, which can be watched, stopped and taken up again."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging

from .checks_sleep import check_input_ids
from .memory_sleep import MemoryMixin, SleepMemory
from .nap_sleep import Sleep, SleepEvent, check_sleep_passes
from .system_turn_sleep import pinned_by
from .window_sleep import largest


logger = logging.get_logger(__name__)

# Where windows can be read side by side, about so many tokens are read between two looks at the progress bar; where
# not, one window. An interruption loses no more.
TOKENS_AT_ONCE = 1024

Chunk = str | torch.Tensor | list[int]


class ReadingMixin(MemoryMixin):
    """Adds `read()` to a model."""

    @torch.no_grad()
    def read(
        self,
        inputs: Chunk | Iterable[Chunk],
        tokenizer=None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        skip: int = 0,
        sleep_passes: int | Sleep | None = None,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        pinned_tokens: int | bool | None = None,
        progress: bool = True,
        total: int | None = None,
    ) -> SleepMemory:
        """
        Read a text, and return what is remembered of it.

        Ctrl-C ends the reading, not the program: what was read so far is returned, with `interrupted` set. To go on,
        give the same text again, with the memory as `past_key_values` and `skip=memory.tokens`.

        Parameters
        ----------
        inputs : str, torch.Tensor, list[int] or an iterable of these
            A text, its tokens, (length,) or (batch, length), or an iterator of chunks of it, of which only one at a
            time is in memory. Chunks of text are tokenised one by one, so let them end where a word or a line ends.
        tokenizer : PreTrainedTokenizerBase, optional
            The model's own; texts need it. Special tokens that begin a text are added to the first chunk of a new one.
        past_key_values : Cache, optional
            What was read before. It stays as it is: what is returned is a fork of it.
        attention_mask : torch.Tensor, optional
            (batch, length), 0 at padding, for `inputs` that are one tensor.
        skip : int, optional
            How many of the first tokens of `inputs` to leave out, because they have been read.
        sleep_passes : int or Sleep, optional
            N. Default: `config.sleep_passes`.
        sleep_callback : callable, optional
            Called with a [`SleepEvent`] after every sleep.
        pinned_tokens : int or True, optional
            How many of a new text's first tokens keep their keys for good. True: those of the system's turn, by the
            chat template of `tokenizer`. Default: `config.pinned_tokens`.
        progress : bool, optional
            Whether to show a bar with tokens per second, sleeps, and when it will end.
        total : int, optional
            For the bar, about how many tokens `inputs` has, those to skip included, where it is an iterator.

        Returns
        -------
        SleepMemory

        Raises
        ------
        ValueError
            If there is a text and no tokenizer, there is nothing to read, or tokens are not the model's.
        """
        model, config = self.base_model, self.config
        sleep = check_sleep_passes(sleep_passes, config)
        memory = SleepMemory(config=config) if past_key_values is None else self.memory_of(past_key_values)
        memory.interrupted, memory.sleep_passes = False, sleep.passes
        if isinstance(inputs, Mapping):
            raise ValueError("`inputs` is what a tokenizer returned: give its `input_ids`, and its `attention_mask`.")
        whole = isinstance(inputs, (str, torch.Tensor)) or (isinstance(inputs, list) and _is_ids(inputs))
        if attention_mask is not None and not isinstance(inputs, torch.Tensor):
            raise ValueError("`attention_mask` belongs to `inputs` that are one tensor, (batch, length).")
        chunks = _tokens_of([inputs] if whole else inputs, tokenizer, begins=not memory.rows)
        if whole:
            chunks = [next(chunks)]
            check_input_ids(chunks[0], config)
            if attention_mask is not None and attention_mask.shape != chunks[0].shape:
                raise ValueError(
                    f"`attention_mask` must have the shape of `inputs`, {tuple(chunks[0].shape)}, got "
                    f"{tuple(attention_mask.shape)}."
                )
        total = chunks[0].shape[1] if whole else total
        bar = logging.tqdm(
            total=total, initial=skip, unit=" tokens", unit_scale=True, disable=not progress, desc="reading"
        )
        size = config.window_size
        first = size - largest(memory.state.stored) or size
        if memory.state.has_begun:
            pinned_tokens = pinned_by(pinned_tokens, memory.state, tokenizer, None)
        # How many the system's turn has, the text's first tokens will tell.
        pins = True if pinned_tokens is True else model._pin(memory.state, pinned_tokens).pinned_tokens
        at_once = min(model._windows_at_once(sleep, sleep_callback, pins, {}), max(1, TOKENS_AT_ONCE // size))
        options = dict(sleep_passes=sleep, sleep_callback=sleep_callback)
        is_empty = True
        try:
            with bar:
                column = skip
                for ids in _pieces(chunks, skip, first, size * at_once):
                    is_empty = False
                    if not whole:  # else all have been looked at
                        check_input_ids(ids, config)
                    length = ids.shape[1]
                    mask = None if attention_mask is None else attention_mask[:, column : column + length]
                    if not memory.state.has_begun and pinned_tokens is not None:
                        begin, whole_mask = (chunks[0], attention_mask) if whole else (ids, None)
                        options["pinned_tokens"] = pinned_by(pinned_tokens, memory.state, tokenizer, begin, whole_mask)
                    # On a fork, as an interruption may come anywhere: a name is bound at once or not at all.
                    fork = memory.fork()
                    model(ids.to(self.device), attention_mask=mask, past_key_values=fork, **options)
                    memory = fork
                    column += length
                    bar.update(length)
                    bar.set_postfix(sleeps=largest(memory.sleeps), refresh=False)
        except KeyboardInterrupt:
            memory.interrupted = True
            logger.warning(
                f"The reading was interrupted: {largest(memory.tokens)} tokens are remembered. To go on, read the "
                "same text with this memory as `past_key_values` and `skip` as the number of its tokens read so far."
            )
            return memory
        if is_empty and not skip:
            raise ValueError("There is nothing to read: `inputs` holds no token.")
        return memory


def _is_ids(inputs: list) -> bool:
    return bool(inputs) and not isinstance(inputs[0], (str, torch.Tensor, list))


def _tokens_of(chunks: Iterable[Chunk], tokenizer, begins: bool) -> Iterator[torch.Tensor]:
    """(batch, length) of token ids, chunk by chunk."""
    for chunk in chunks:
        if isinstance(chunk, str):
            if tokenizer is None:
                raise ValueError("To read a text, give the model's `tokenizer`, too; or give tokens.")
            chunk = tokenizer(chunk, add_special_tokens=begins, verbose=False)["input_ids"]
        ids = torch.as_tensor(chunk)
        if ids.ndim not in (1, 2) or (ids.is_floating_point() and ids.numel()):
            raise ValueError(
                "`inputs` must be a text, token ids of shape (length,) or (batch, length), or an iterator of these, "
                f"got {type(chunk).__name__} of shape {tuple(ids.shape)} and {ids.dtype}."
            )
        ids = (ids.unsqueeze(0) if ids.ndim == 1 else ids).long()
        if ids.shape[1]:
            begins = False
        yield ids


def _pieces(chunks: Iterable[torch.Tensor], skip: int, first: int, size: int) -> Iterator[torch.Tensor]:
    """The same tokens without the first `skip`: `first` of them, so that a window is full, then pieces of `size`."""
    waiting, length = None, first
    for ids in chunks:
        skipped = min(skip, ids.shape[1])
        skip, ids = skip - skipped, ids[:, skipped:]
        waiting = ids if waiting is None else torch.cat([waiting, ids], dim=1)
        while waiting.shape[1] >= length:
            yield waiting[:, :length]
            waiting, length = waiting[:, length:], size
    if waiting is not None and waiting.shape[1]:
        yield waiting
