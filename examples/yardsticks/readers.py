"""The same pretrained model read in four ways, and what each takes.

    whole        the original, with all its cache
    sliding      the original with a sliding window: every layer attends to the last `kept` tokens
    truncated    the original, which is given the last `kept` tokens of the text
    sleep        a model with sleep

What is notable:
- all read the text in pieces, so that no long text takes more memory than its cache; then they write greedily
- `sliding` is transformers' Mistral with the original's weights, which is the same stack but for its window. With
  `kept` below the text's length nothing older is held, though layer after layer hears of older tokens
- `equal_bytes` says how many tokens the originals may keep for the bytes of a memory
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_sleep import SleepForCausalLM
from modeling_sleep.outputs_sleep import CACHE


READERS = ("whole", "sliding", "truncated", "sleep")
PIECE = 1024  # tokens that an original reads at once


@dataclasses.dataclass(frozen=True)
class Answer:
    """
    What was written behind a text.

    Parameters
    ----------
    text : str
    read, written : int
        Tokens.
    read_ms, written_ms : float
        Milliseconds for each of these.
    nbytes : int
        Of all that is held of the text.
    """

    text: str
    read: int
    written: int
    read_ms: float
    written_ms: float
    nbytes: int


class Reader:
    """
    A model and the way in which it reads.

    Parameters
    ----------
    name : str
        One of `READERS`.
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    kept : int, optional
        Of `sliding` and `truncated`, in tokens.
    passes : int, optional
        N, of `sleep`.

    Raises
    ------
    ValueError
        If `kept` is too small, or the model cannot have a sliding window.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        kept: int | None = None,
        passes: int | None = None,
    ):
        if kept is not None and kept < 2:
            raise ValueError(f"`kept` must be at least 2 tokens, one to read and one to go on from, got {kept}.")
        self.name, self.tokenizer, self.kept, self.passes = name, tokenizer, kept, passes
        self.model = slid(model, kept) if name == "sliding" else model

    @property
    def fields(self) -> dict:
        """What a row says of it."""
        window = self.model.config.window_size if self.name == "sleep" else None
        return {"reader": self.name, "kept": self.kept, "passes": self.passes, "window_size": window}

    @property
    def described(self) -> str:
        return self.name + "".join(f", {n} {x}" for n, x in (("passes", self.passes), ("kept", self.kept)) if x)

    @torch.no_grad()
    def answer(self, ids: Sequence[int], max_new_tokens: int) -> Answer:
        """What the model writes behind these tokens, greedily."""
        if self.name == "truncated":
            ids = ids[-self.kept :]
        model, device = self.model, self.model.device
        text = torch.tensor([list(ids)], device=device)
        options = {} if self.passes is None else {"sleep_passes": self.passes}
        began = now(device)
        if self.name == "sleep":
            # All but the last token: `generate` begins with a token that it has not read.
            cache = model.read(text[:, :-1], progress=False, **options)
            given, mask = text[:, -1:], None
        else:
            cache = DynamicCache(config=model.config)
            for piece in text[:, :-1].split(PIECE, dim=1):
                model(piece, logits_to_keep=1, **{CACHE: cache})
            given, mask = text, torch.ones_like(text)
        read, nbytes = now(device), held(cache)
        new = model.generate(
            given, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
            pad_token_id=self.tokenizer.eos_token_id, **{CACHE: cache}, **options,
        )[0, given.shape[1] :]  # fmt: skip
        written = now(device)
        return Answer(
            text=self.tokenizer.decode(new, skip_special_tokens=True),
            read=len(ids),
            written=len(new),
            read_ms=1000 * (read - began) / max(1, len(ids) - 1),
            written_ms=1000 * (written - read) / len(new),
            nbytes=nbytes,
        )


def now(device: torch.device) -> float:
    """Seconds, of which only differences mean something, once the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def held(cache) -> int:
    """Bytes of a memory, or of the keys, values and states of any other cache."""
    if hasattr(cache, "nbytes"):
        return cache.nbytes
    tensors = []
    for layer in cache.layers:
        tensors += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for name in ("conv_states", "recurrent_states"):
            tensors += getattr(layer, name, {}).values()
    return sum({x.data_ptr(): x.nbytes for x in tensors if isinstance(x, torch.Tensor)}.values())


def slid(model: PreTrainedModel, window: int) -> PreTrainedModel:
    """
    The same weights with a sliding window of so many tokens.

    Raises
    ------
    ValueError
        If the model is no plain Llama or Mistral.
    """
    if model.config.model_type not in ("llama", "mistral") or getattr(model.config, "attention_bias", False):
        raise ValueError(
            f"A sliding window is put on Llama and Mistral without biases, and this is a {model.config.model_type!r}: "
            "leave the reader `sliding` out."
        )
    settings = {k: v for k, v in model.config.to_dict().items() if k in MistralConfig().to_dict()}
    settings |= {"sliding_window": window, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    with torch.device("meta"):
        sliding = MistralForCausalLM(MistralConfig(**settings))
    sliding.load_state_dict(model.state_dict(), assign=True)
    sliding.tie_weights()
    # What is no parameter, the frequencies of the rotation, is not in the state.
    sliding.model.rotary_emb = type(sliding.model.rotary_emb)(sliding.config).to(model.device)
    sliding.generation_config = model.generation_config
    return sliding.to(model.device).eval()


@torch.no_grad()
def equal_bytes(original: PreTrainedModel, sleeping: SleepForCausalLM) -> int:
    """How many tokens' keys and values of the original take the bytes of a memory with a full window, rounded up."""
    window = sleeping.config.window_size
    memory = sleeping.read(torch.zeros(1, 2 * window, dtype=torch.long, device=sleeping.device), progress=False)
    cache = original(torch.zeros(1, 1, dtype=torch.long, device=original.device), use_cache=True)[CACHE]
    return -(-memory.nbytes // held(cache))


def add_arguments(parser) -> None:
    """The options of all programs that compare readers."""
    parser.add_argument("model", help="a pretrained model with sleep, a folder or a name on the Hub")
    parser.add_argument("--original", help="the pretrained model without sleep; the readers but `sleep` need it")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4], help="N, of `sleep`")
    parser.add_argument(
        "--kept",
        type=int,
        nargs="+",
        help="tokens that `sliding` and `truncated` keep (default: the bytes of a memory)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))


def readers(args, tokenizer: PreTrainedTokenizerBase) -> Iterator[Reader]:
    """Those that the options ask for. What they need is loaded once, before the first."""
    options = {"dtype": getattr(torch, args.dtype)}
    asks_original = set(args.readers) - {"sleep"}
    if asks_original and not args.original:
        raise SystemExit(
            f"error: {', '.join(sorted(asks_original))}: which model? Give --original, or --readers sleep."
        )
    original = sleeping = None
    if asks_original:
        original = AutoModelForCausalLM.from_pretrained(args.original, **options).to(args.device).eval()
    if "sleep" in args.readers or (asks_original - {"whole"} and not args.kept):
        sleeping = SleepForCausalLM.from_pretrained(args.model, **options).to(args.device).eval()
    for name in args.readers:
        if name == "sleep":
            for passes in args.passes:
                yield Reader(name, sleeping, tokenizer, passes=passes)
        elif name == "whole":
            yield Reader(name, original, tokenizer)
        else:
            for kept in args.kept or [equal_bytes(original, sleeping)]:
                yield Reader(name, original, tokenizer, kept=kept)
