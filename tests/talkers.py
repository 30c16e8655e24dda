"""Who can hold a conversation: a small model and a tokenizer with a template for chats; and a port to be served on."""

import functools
import socket

from builders import tiny_model, word_tokenizer


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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
