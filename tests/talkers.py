"""Who can hold a conversation: a small model, a pretrained one with its memory, a tokenizer with a template for chats.

And a port to be served on.
"""

import functools
import socket

import torch
from builders import tiny_model, word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_sleep import SleepForCausalLM


L = 8
WORDS = ["<unk>", "<end>", "system", "user", "assistant", "you", "are", "?", "8f14e45fceea167a", "begin"]
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}begin system you are <end> {% endif %}"
    "{% for m in messages %}begin {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}begin assistant {% endif %}"
)


def make_tokenizer():
    words = WORDS + [f"w{i}" for i in range(64 - len(WORDS))]
    return word_tokenizer(words, unk_token="<unk>", eos_token="<end>", chat_template=TEMPLATE)


OPTIONS = dict(window_size=L, initializer_range=0.3, sleep_passes=2, pad_token_id=None, eos_token_id=1)
make_model = functools.partial(tiny_model, **OPTIONS)


def make_taught(folder, tokenizer):
    """Two folders, as `save_pretrained` leaves them: of a pretrained model, and of a memory for it that reads."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    ends = dict(bos_token_id=None, eos_token_id=1, pad_token_id=None)
    original = LlamaForCausalLM(LlamaConfig(**sizes, **ends, initializer_range=0.3))
    original.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, sleep_passes=2, read_out=0.5)
    model.save_pretrained(folder / "memory", memory_only=True)
    return str(folder / "base"), str(folder / "memory")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
