"""Read once, ask often: a memory beside the kept cache of a model with full attention of the same width and depth.

    python examples/prefix_reuse.py                                    # minutes on a CPU
    python examples/prefix_reuse.py --tokens 100000
    python examples/prefix_reuse.py --tokens 1000 1000000 --questions 1 --memory-only

Both models have random weights, as only time and bytes are looked at. Each reads a text once and answers all questions
from what it keeps. The memory is asked as it is, and `generate` works on a fork. The other model's cache grows with
every question; it is copied before (as it must be where questions come at once or in processes of their own), or
cropped afterwards (which does, where they come one by one). Seconds are of the processor, on one thread.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from modeling_sleep import SleepConfig, SleepForCausalLM, SleepMemory


SIZE = dict(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=4,
    eos_token_id=None,
)
QUESTION, ANSWER = 16, 8  # tokens


def make_models(window_size: int) -> tuple:
    torch.manual_seed(0)
    ours = SleepForCausalLM(SleepConfig(**SIZE, window_size=window_size, sleep_passes=2)).eval()
    theirs = LlamaForCausalLM(LlamaConfig(**SIZE, max_position_embeddings=10**7, bos_token_id=None)).eval()
    return ours, theirs


def timed(function) -> tuple:
    """What it returns, and the seconds that it took."""
    began = time.process_time()
    result = function()
    return result, time.process_time() - began


def row(name: str, tokens: int, *numbers) -> str:
    return "| " + " | ".join([f"{tokens:,}", name, *numbers]) + " |"


@torch.no_grad()
def measure_ours(model, text: torch.Tensor, questions: torch.Tensor, folder: Path) -> tuple:
    memory, reading = timed(lambda: model.read(text, progress=False))
    options = dict(max_new_tokens=ANSWER, do_sample=False)
    _, asking = timed(lambda: [model.generate(q, past_key_values=memory, **options) for q in questions.split(1)])
    path = folder / "memory"
    memory.save(path, model)
    _, loading = timed(lambda: SleepMemory.load(path, model))
    return reading, asking, memory.nbytes, path.stat().st_size, loading


@torch.no_grad()
def measure_theirs(model, text: torch.Tensor, questions: torch.Tensor, folder: Path) -> tuple:
    cache = DynamicCache(config=model.config)
    _, reading = timed(lambda: [model.model(piece, past_key_values=cache) for piece in text.split(1024, dim=1)])
    length = text.shape[1]

    def ask(question, cache):
        model.generate(
            torch.cat([text, question], dim=1), past_key_values=cache, max_new_tokens=ANSWER, do_sample=False
        )

    _, copying = timed(lambda: [ask(q, copy.deepcopy(cache)) for q in questions.split(1)])

    def ask_and_crop(question):
        ask(question, cache)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]

    _, cropping = timed(lambda: [ask_and_crop(q) for q in questions.split(1)])
    tensors = [x for layer in cache.layers for x in (layer.keys.clone(), layer.values.clone())]
    path = folder / "cache"
    torch.save(tensors, path)
    _, loading = timed(lambda: torch.load(path))
    return reading, copying, cropping, sum(x.nbytes for x in tensors), path.stat().st_size, loading


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 16000], help="lengths of the text")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--window-size", type=int, default=512, metavar="L")
    parser.add_argument("--memory-only", action="store_true", help="without the model with full attention")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    ours, theirs = make_models(options.window_size)
    SleepMemory(config=ours.config).save(Path(tempfile.mkdtemp()) / "first", ours)  # the digest of the weights
    print(
        f"{options.questions} questions of {QUESTION} tokens, answers of {ANSWER}; L = {options.window_size}, N = 2\n"
    )
    print("| tokens of the text | model | read, s | all questions, s | held, MB | file, MB | load, ms |")
    print("|---|---|---|---|---|---|---|")
    for tokens in options.tokens:
        text = torch.randint(0, SIZE["vocab_size"], (1, tokens))
        questions = torch.randint(0, SIZE["vocab_size"], (options.questions, QUESTION))
        with tempfile.TemporaryDirectory() as folder:
            reading, asking, held, file, loading = measure_ours(ours, text, questions, Path(folder))
            numbers = (
                f"{reading:.1f}",
                f"{asking:.1f}",
                f"{held / 1e6:.2f}",
                f"{file / 1e6:.2f}",
                f"{loading * 1e3:.0f}",
            )
            print(row("memory", tokens, *numbers), flush=True)
            if options.memory_only:
                continue
            reading, copying, cropping, held, file, loading = measure_theirs(theirs, text, questions, Path(folder))
            shared = (f"{held / 1e6:.2f}", f"{file / 1e6:.2f}", f"{loading * 1e3:.0f}")
            print(row("full attention, copied", tokens, f"{reading:.1f}", f"{copying:.1f}", *shared))
            print(row("full attention, cropped", tokens, f"{reading:.1f}", f"{cropping:.1f}", *shared), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
