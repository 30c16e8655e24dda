"""`pinned_tokens=True`: the system's turn keeps its keys, wherever a text is given to be read."""

import pytest
import torch
from helpers import assert_same_memory, tensors_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from modeling_sleep import SleepConfig, SleepForCausalLM, SleepMemory
from modeling_sleep.memory.conversation import Conversation
from modeling_sleep.system_turn_sleep import system_turn


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "marked": MARKED,
    "with a default": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    + MARKED,
    "with a first token": "{{ bos_token }}" + MARKED,
    "with tools": MARKED.replace(
        "{{ m['content'] }}", "{{ m['content'] }}{% if loop.first and tools %}{{ tools }}{% endif %}"
    ),
    "never without a user": "{% if messages | length == 1 and messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no user') }}{% endif %}" + MARKED,
    "within the user's turn": "{% if messages[0]['role'] == 'system' %}[INST] <<SYS>>\n{{ messages[0]['content'] }}\n"
    "<</SYS>>\n\n{% else %}[INST] {% endif %}{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}"
    "{% endfor %} [/INST]",
    "not to be told": "{% for m in messages %}{% if not loop.first %}\n\n{% endif %}{{ m['content'] }}{% endfor %}",
    "without a system": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}",
}
L = 32
CHAT = [{"role": "system", "content": "Be brief, été."}, {"role": "user", "content": "Hello!\n\nWho are you?"}]


@pytest.fixture(scope="module")
def core():
    """Of bytes, and of marks that are one token."""
    marks = ["<s>", "<|im_start|>", "<|im_end|>", "<pad>"]
    words = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return core


@pytest.fixture
def tokenizer(core, request):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATES[getattr(request, "param", "marked")]
    return tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SleepConfig.from_preset(
        "tiny", vocab_size=300, window_size=L, initializer_range=0.3, pad_token_id=3, eos_token_id=None
    )
    return SleepForCausalLM(config).eval()


def templated(tokenizer, chat=CHAT, **options) -> torch.Tensor:
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", **options)["input_ids"]


@pytest.mark.parametrize(
    "tokenizer, expected",
    [
        ("marked", "<|im_start|>system\nBe brief, été.<|im_end|>\n"),
        ("with a default", "<|im_start|>system\nBe brief, été.<|im_end|>\n"),
        ("with a first token", "<s><|im_start|>system\nBe brief, été.<|im_end|>\n"),
        ("never without a user", "<|im_start|>system\nBe brief, été.<|im_end|>\n<|im_start|>user\n"),
        ("within the user's turn", "[INST] <<SYS>>\nBe brief, été.\n<</SYS>>\n\n"),
    ],
    indirect=["tokenizer"],
)
def test_the_turn_is_found(tokenizer, expected):
    ids = templated(tokenizer)
    assert tokenizer.decode(ids[0, : system_turn(tokenizer, ids)]) == expected


@pytest.mark.parametrize("tokenizer", ["with a default"], indirect=True)
def test_a_message_that_the_template_puts_there_counts(tokenizer):
    ids = templated(tokenizer, CHAT[1:])
    assert tokenizer.decode(ids[0, : system_turn(tokenizer, ids)]) == "<|im_start|>system\nBe good.<|im_end|>\n"


@pytest.mark.parametrize("tokenizer", ["with tools"], indirect=True)
def test_tools_belong_to_the_turn(tokenizer):
    ids = templated(tokenizer, tools=[{"type": "function", "function": {"name": "look"}}])
    turn = tokenizer.decode(ids[0, : system_turn(tokenizer, ids)])
    assert "look" in turn and turn.endswith("<|im_end|>\n")


@pytest.mark.parametrize("tokenizer", ["not to be told", "without a system"], indirect=True)
def test_a_template_that_does_not_tell_is_refused(tokenizer):
    with pytest.raises(
        ValueError, match="does not tell a system's message from what the user says. Give their number"
    ):
        system_turn(tokenizer, torch.ones(1, 3, dtype=torch.long))


def test_what_cannot_be_told_is_refused(model, tokenizer):
    ids = templated(tokenizer)
    with pytest.raises(ValueError, match="needs the model's `tokenizer`"):
        model.generate(ids, pinned_tokens=True, max_new_tokens=1)
    with pytest.raises(ValueError, match="does not begin with the system's turn .* but with '<|im_start|>user"):
        model.generate(templated(tokenizer, CHAT[1:]), pinned_tokens=True, tokenizer=tokenizer, max_new_tokens=1)
    with pytest.raises(ValueError, match="in `input_ids`, and there are none"):
        embeds = model.get_input_embeddings()(ids)
        model.generate(inputs_embeds=embeds, pinned_tokens=True, tokenizer=tokenizer, max_new_tokens=1)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="with a chat template"):
        model.generate(ids, pinned_tokens=True, tokenizer=tokenizer, max_new_tokens=1)
    with pytest.raises(ValueError, match="got True. `True` is for `generate`"):
        model(ids, pinned_tokens=True)


@pytest.mark.parametrize("given", ["call", "generation config", "memory"])
def test_generation_pins_the_turn(model, tokenizer, given):
    ids = templated(tokenizer)
    number = len(templated(tokenizer, CHAT[:1])[0]) - len(tokenizer("<|im_start|>assistant\n")["input_ids"])
    options = dict(max_new_tokens=40, do_sample=False, return_dict_in_generate=True)
    expected = model.generate(ids, pinned_tokens=number, **options)
    assert expected.past_key_values.layers[0].common.pinned == number < L
    if given == "generation config":
        config = GenerationConfig(**options)
        config.pinned_tokens = True
        ours = model.generate(ids, config, tokenizer=tokenizer)
    else:
        memory = {"past_key_values": SleepMemory(config=model.config)} if given == "memory" else {}
        ours = model.generate(ids, pinned_tokens=True, tokenizer=tokenizer, **memory, **options)
    assert ours.sequences.equal(expected.sequences)
    assert not ours.sequences.equal(model.generate(ids, **options).sequences)


def test_rows_have_turns_of_one_length(model, tokenizer):
    users = [[CHAT[0], {"role": "user", "content": text}] for text in ("Hello!", "And who are you, please?")]
    batch = tokenizer.apply_chat_template(users, padding=True, return_tensors="pt", return_dict=True)
    options = dict(max_new_tokens=4, tokenizer=tokenizer, pinned_tokens=True, return_dict_in_generate=True)
    number = system_turn(tokenizer, templated(tokenizer))
    for inputs in (batch, {"input_ids": batch["input_ids"]}):
        pinned = model.generate(**inputs, **options).past_key_values.layers[0].common.pinned_tokens
        assert pinned == number
    users[1] = [{"role": "system", "content": "Be"}, users[1][1]]
    batch = tokenizer.apply_chat_template(users, padding=True, return_tensors="pt", return_dict=True)
    with pytest.raises(ValueError, match=r"turns of \[12, 26\] tokens, and so many are pinned of all rows alike"):
        model.generate(**batch, **options)


def test_a_text_that_has_begun_keeps_what_is_pinned(model, tokenizer):
    options = dict(max_new_tokens=2, tokenizer=tokenizer, pinned_tokens=True)
    memory = model.read(templated(tokenizer), tokenizer, pinned_tokens=True, progress=False)
    assert memory.state.pinned_tokens == system_turn(tokenizer, templated(tokenizer))
    new = tokenizer("more", return_tensors="pt")["input_ids"]
    expected = model.generate(new, past_key_values=memory, max_new_tokens=2)
    assert model.generate(new, past_key_values=memory, **options).equal(expected)
    with pytest.raises(ValueError, match="began with nothing pinned"):
        model.generate(new, past_key_values=model.read(new, progress=False), **options)


def test_reading_finds_it_in_a_text_and_in_its_first_piece(model, tokenizer):
    text = tokenizer.apply_chat_template(CHAT[:1] + [{"role": "user", "content": "word " * 20}], tokenize=False)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    expected = model.read(ids, pinned_tokens=system_turn(tokenizer, ids), progress=False)
    short = [{"role": "system", "content": "Be."}, *CHAT[1:]]
    for inputs in (text, ids):
        assert_same_memory(
            tensors_of(model.read(inputs, tokenizer, pinned_tokens=True, progress=False)), tensors_of(expected), 0
        )
    chunks = model.read(iter([templated(tokenizer, short)]), tokenizer, pinned_tokens=True, progress=False)
    assert chunks.state.pinned_tokens == system_turn(tokenizer, templated(tokenizer, short)) == 13


@pytest.mark.parametrize("question", ["a", "a" * L])
def test_a_conversation_pins_what_its_system_says(model, tokenizer, question):
    options = dict(system="Be.", max_new_tokens=4, do_sample=False)
    ours = Conversation(model, tokenizer, pinned_tokens=True, **options)
    theirs = Conversation(model, tokenizer, pinned_tokens=13, **options)
    for said in (question, "b"):
        assert ours.say(said) == theirs.say(said)
    assert ours.memory.state.pinned == 13
    assert_same_memory(tensors_of(ours.memory), tensors_of(theirs.memory), 0)
