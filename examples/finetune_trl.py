"""Fine-tune a model that sleeps on chats with TRL: python examples/finetune_trl.py --output outputs/chat

The user tells three things among small talk, and asks for them. A window holds 16 tokens, a chat up to 100: when a
question comes, most windows have been slept over and forgotten, and what they said is in the fast weights alone.
Before training 0 of 50 chats are answered right, after 500 steps, 3 minutes on one CPU thread, all 50 (--seed 0).
"""

import argparse
import random
import warnings

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, set_seed
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from modeling_sleep import SleepConfig, SleepForCausalLM


SMALL_TALK = ["the sun shines .", "rain falls all day .", "a cat sleeps on the bed .", "the bus came late again ."]
FACTS = [  # said, asked for, answered; with one of these words
    ("my name is {} .", "what is my name ?", "your name is {} .", "Ada Ben Cleo Dan Eve Finn Gus Hana"),
    ("I live in {} .", "where do I live ?", "you live in {} .", "Rome Oslo Lima Cairo Paris Quito Tokyo Delhi"),
    ("I like {} .", "what do I like ?", "you like {} .", "apples bread cheese dates eggs figs grapes honey"),
]
# `assistant_only_loss` learns what stands between `generation` and `endgeneration`. A space before `endgeneration`
# would be part of no token, and all that follows would be learned, too.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<assistant> {% generation %}"
    "{{ message.content }} <end>{% endgeneration %} {% else %}<user> {{ message.content }} <end> {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_chat(rng: random.Random) -> list[dict]:
    """Facts, small talk and a question in one message; after its answer come two more questions."""
    facts = [(*texts, rng.choice(words.split())) for *texts, words in rng.sample(FACTS, len(FACTS))]
    told = [said.format(word) for said, *_, word in facts] + rng.choices(SMALL_TALK, k=rng.randint(0, 6))
    chat = []
    for _, asked, answered, word in facts:
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered.format(word)}]
    chat[0]["content"] = " ".join([*rng.sample(told, len(told)), chat[0]["content"]])
    return chat


def make_model(passes: int) -> tuple[SleepForCausalLM, PreTrainedTokenizerFast]:
    """A new model, whose memory has room for many keys, and a tokenizer of whole words."""
    words = sorted({word for texts in (SMALL_TALK, *FACTS) for text in texts for word in text.format("").split()})
    words = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>", *words]  # TRL tries the template with unknown words
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", unk_token="<unk>", eos_token="<end>", chat_template=CHAT_TEMPLATE)
    inputs = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special)
    sizes = dict(vocab_size=len(words), hidden_size=64, num_hidden_layers=2, initializer_range=0.1, window_size=16)
    memory = dict(linear_num_key_heads=1, linear_key_head_dim=64, linear_allow_neg_eigval=False, sleep_passes=passes)
    return SleepForCausalLM(SleepConfig(**sizes, **memory, pad_token_id=0, eos_token_id=4)), tokenizer


def answer(model, tokenizer, chat: list[dict]) -> str:
    """What the model says in place of the last message."""
    prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_tensors="pt")
    tokens = model.eval().generate(**prompt.to(model.device), max_new_tokens=8, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main():
    parser = argparse.ArgumentParser(description="Fine-tune a model that sleeps on chats with TRL.")
    parser.add_argument("--model", help="folder or name on the Hub, to go on from (default: a new model)")
    parser.add_argument("--output", default="outputs/chat", help="folder for model and tokenizer")
    parser.add_argument("--passes", type=int, default=2, help="N, all passes over a window")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--chats", type=int, default=50, help="chats to answer before and after")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of TRL about transformers
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)  # for a model this small, more would wait for each other
    set_seed(args.seed)
    model, tokenizer = make_model(args.passes)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True, sleep_passes=args.passes)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    rng, batch_size = random.Random(args.seed), 32
    chats = [make_chat(rng) for _ in range(args.chats)]
    dataset = datasets.Dataset.from_list([{"messages": make_chat(rng)} for _ in range(args.steps * batch_size)])
    size = dict(max_steps=args.steps, per_device_train_batch_size=batch_size, seed=args.seed)
    speed = dict(learning_rate=2e-3, lr_scheduler_type="constant_with_warmup", warmup_steps=20, adam_beta2=0.95)
    # TRL's `max_length` of 1024 would cut off the end of long texts, where the answers are. The other two it turns on;
    # a model this small gains nothing by them. `packing` and `padding_free` are what a model that sleeps refuses.
    unlike_trl = dict(max_length=None, bf16=False, gradient_checkpointing=False)
    show = dict(logging_steps=50, report_to="none", save_strategy="no", dataloader_pin_memory=False)
    arguments = SFTConfig(args.output, assistant_only_loss=True, **size, **speed, **unlike_trl, **show)
    trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)
    print(
        f"{model.num_parameters():,} parameters, N = {args.passes} passes over windows of {model.config.window_size}"
    )
    print("", *(f"   {message['role']:<11}{message['content']}" for message in chats[0][:-1]), "", sep="\n")
    for when in ("before", "after"):
        if when == "after":
            trainer.train()
        answers = [answer(model, tokenizer, chat) for chat in chats]
        right = sum(text == chat[-1]["content"] for text, chat in zip(answers, chats))
        print(f"   {when:<11}{answers[0]:<50}{right} of {args.chats} chats answered right", flush=True)
    model.config.use_cache = True  # Trainer turned it off for training
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    model = AutoModelForCausalLM.from_pretrained(args.output, trust_remote_code=True)
    same = sum(answer(model, tokenizer, chat) == text for chat, text in zip(chats, answers))
    print(f"\nSaved to {args.output} and loaded again: {same} of {args.chats} answers are the same.")
    raise SystemExit(same < args.chats)


if __name__ == "__main__":
    main()
