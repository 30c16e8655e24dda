"""A conversation with a model that sleeps: what was said is in its memory, and nowhere else."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

from ..generation_sleep import chosen
from ..memory_sleep import SleepMemory
from ..nap_sleep import Sleep, SleepEvent
from ..system_turn_sleep import pinned_by
from ..window_sleep import largest
from .idle import IdleNap
from .turns import turn_ids


class Conversation:
    """
    Turn after turn, each read once. No transcript is kept.

    Parameters
    ----------
    model : SleepForCausalLM
    tokenizer : PreTrainedTokenizerBase
        The model's own; with a chat template, turns are templated.
    system : str, optional
        What the system says first.
    sleep_passes : int or Sleep, optional
        N. Default: that of the generation config, or else `config.sleep_passes`.
    pinned_tokens : int or True, optional
        How many of the first tokens keep their keys for good. True: those of the system's turn, by the chat template.
        Default: that of the generation config, or else `config.pinned_tokens`.
    nap_before_turns : bool, optional
        Whether to sleep before each turn of the user, so that it begins a window, as questions did where the memory
        was taught (`modeling_sleep.teach`).
    idle_from : float, optional
        How full the window must be, as a share of L, for `idle` to nap over it.
    sleep_callback : callable, optional
        Called with a [`SleepEvent`] after every sleep of an answer.
    **options
        Of `generate`: `max_new_tokens`, `do_sample`, ...
    """

    def __init__(
        self,
        model,
        tokenizer,
        system: str | None = None,
        sleep_passes: int | Sleep | None = None,
        pinned_tokens: int | bool | None = None,
        nap_before_turns: bool = False,
        idle_from: float = 0.5,
        sleep_callback: Callable[[SleepEvent], None] | None = None,
        **options,
    ):
        if (options.get("num_return_sequences") or 1) > 1:
            raise ValueError("A conversation has one answer to each turn: leave `num_return_sequences` out.")
        self.model, self.tokenizer, self.system = model, tokenizer, system
        # As `generate` finds them, as long turns are read before they are answered.
        configs = (options.get("generation_config"), model.generation_config)
        self.sleep_passes = chosen("sleep_passes", sleep_passes, *configs)
        self.pinned_tokens = chosen("pinned_tokens", pinned_tokens, *configs)
        self.nap_before_turns, self.idle_from = nap_before_turns, idle_from
        self.sleep_callback, self.options = sleep_callback, options
        self.nap_ahead: IdleNap | None = None
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing remembered."""
        self.wake()
        self.memory = SleepMemory(config=self.model.config)

    @property
    def turns(self) -> int:
        """How often the user has spoken."""
        return self.memory.notes.get("turns", 0)

    def say(self, content: str, streamer: BaseStreamer | None = None, progress: bool = False) -> str:
        """
        The answer to what the user says; both are remembered.

        Ctrl-C while the answer is made leaves the memory as it was before the turn.

        Parameters
        ----------
        content : str
        streamer : BaseStreamer, optional
            Hears the answer word by word.
        progress : bool, optional
            Whether to show a bar if the model has to sleep over what it is told.
        """
        self.wake()
        if self.nap_before_turns and largest(self.memory.state.stored):
            self.nap()
        memory = self.memory
        ids = turn_ids(self.tokenizer, content, memory.notes.get("last_token"), self.turns == 0, self.system)
        ids = ids.to(self.model.device)
        if not ids.shape[1]:
            raise ValueError("There is nothing to say: the tokenizer makes no token of it.")
        # Said with the first tokens.
        pinned = None if memory.rows else pinned_by(self.pinned_tokens, memory.state, self.tokenizer, ids)
        if largest(memory.state.stored) + ids.shape[1] > self.model.config.window_size and ids.shape[1] > 1:
            options = dict(past_key_values=memory, sleep_passes=self.sleep_passes, pinned_tokens=pinned)
            read = self.model.read(ids[:, :-1], sleep_callback=self.sleep_callback, progress=progress, **options)
            if read.interrupted:
                raise KeyboardInterrupt
            memory, ids, pinned = read, ids[:, -1:], None
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=memory,
            sleep_passes=self.sleep_passes,
            sleep_callback=self.sleep_callback,
            pinned_tokens=pinned,
            streamer=streamer,
            return_dict_in_generate=True,
            **self.options,
        )
        turns = self.turns + 1
        self.memory = output.past_key_values
        self.memory.notes |= {"turns": turns, "last_token": int(output.sequences[0, -1])}
        return self.tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True).strip()

    def nap(self, sleep_passes: int | Sleep | None = None) -> None:
        """Sleep now, over as much as there is in the window."""
        self.wake()
        fork = self.memory.fork()
        self.memory = self.model.sleep(fork, self.sleep_passes if sleep_passes is None else sleep_passes)

    def idle(self) -> IdleNap | None:
        """Nobody asks anything: begin to nap, if there is enough to nap over. The next call of anything ends it."""
        self.wake()
        if largest(self.memory.state.stored) >= self.idle_from * self.model.config.window_size:
            self.nap_ahead = IdleNap(self.model, self.memory, self.sleep_passes)
        return self.nap_ahead

    def wake(self) -> float:
        """End an idle nap. Returns the seconds of sleep that are over and done with, 0 if there are none."""
        nap, self.nap_ahead = self.nap_ahead, None
        memory = None if nap is None else nap.wake()
        if memory is None:
            return 0.0
        self.memory = memory
        return nap.seconds

    def save(self, path: str | Path) -> None:
        """Save what is remembered."""
        self.wake()
        self.memory.save(path, self.model)

    def load(self, path: str | Path) -> None:
        """
        Go on with what was saved.

        Raises
        ------
        ValueError
            As [`SleepMemory.load`], or if it has several rows.
        """
        self.wake()
        memory = SleepMemory.load(path, self.model)
        if memory.rows > 1:
            raise ValueError(
                f"{path} holds {memory.rows} rows, and a conversation is one of them: save it with `row=...`."
            )
        self.memory = memory


class Sessions:
    """
    Conversations by name, each a file in one folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        """Where the session `name` is, or will be."""
        if not re.fullmatch(r"\w[\w .-]*", name):
            raise ValueError(f"A session's name is made of letters, digits, spaces, dots and dashes, got {name!r}.")
        return self.folder / f"{name}.memory"

    def names(self) -> list[str]:
        """Of all sessions that were saved."""
        return sorted(path.stem for path in self.folder.glob("*.memory"))
