"""Recall over the number of pairs and the bytes of the state, for models trained from nothing, as zoology measures it.

    python -m examples.yardsticks.recall mqar --models sleep attention --passes 1 2 4 --rows docs/results/mqar.jsonl

    sleep         attention and Gated DeltaNet, its window cleared every L tokens, N passes in training and in the test
    attention     Llama, all keys kept
    sliding       Mistral with a window of L
    qwen3_next    Gated DeltaNet and gated attention of transformers, all keys kept
    olmo_hybrid   the same of another family
    mamba2        Mamba 2 alone

What is notable:
- two layers, each with an MLP as wide as the model; zoology's models have none, but a short convolution instead
- a run is a model, a width, a learning rate and a seed; it is one row, with the accuracy and the bytes of the state at
  every length of the test. Rows that are in the file are not trained again
- `--scale 1 --epochs 32` is zoology's amount of training: 180,000 examples, 22,500 steps of 256. It wants a GPU
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from packaging.version import Version
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.outputs_sleep import CACHE

from ..experiments.benchmarks.models import OLDEST
from .readers import held
from .recall_data import KINDS, TEST, TRAIN, VOCABULARY, Segment, draw
from .rows import Rows


MODELS = ("sleep", "attention", "sliding", "qwen3_next", "olmo_hybrid", "mamba2")
HEADS = 2
KEY = (
    "task",
    "model",
    "passes",
    "window_size",
    "width",
    "learning_rate",
    "epochs",
    "scale",
    "batch_size",
    "vocabulary",
    "seed",
)


def build(name: str, width: int, window_size: int, longest: int, vocabulary: int) -> torch.nn.Module:
    """A fresh model of two layers."""
    common = dict(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=2, pad_token_id=None)
    common |= dict(bos_token_id=None, eos_token_id=None)
    stack = common | dict(num_attention_heads=HEADS, num_key_value_heads=HEADS, intermediate_size=width)
    hybrid = dict(layer_types=["full_attention", "linear_attention"])
    hybrid |= dict(linear_num_key_heads=HEADS, linear_num_value_heads=HEADS)
    hybrid |= dict(linear_key_head_dim=width // HEADS, linear_value_head_dim=width // HEADS)
    long = dict(max_position_embeddings=longest)
    if name == "sleep":
        return SleepForCausalLM(SleepConfig(**stack, window_size=window_size))
    if name == "attention":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**stack, **long))
    if name == "sliding":
        config = transformers.MistralConfig(**stack, **long, sliding_window=window_size)
        return transformers.MistralForCausalLM(config)
    if name == "qwen3_next":
        config = transformers.Qwen3NextConfig(**stack, **long, **hybrid, head_dim=width // HEADS, num_experts=0)
        return transformers.Qwen3NextForCausalLM(config)
    if name == "olmo_hybrid":
        return transformers.OlmoHybridForCausalLM(transformers.OlmoHybridConfig(**stack, **long, **hybrid))
    config = transformers.Mamba2Config(
        **common, num_heads=2 * HEADS, head_dim=width // HEADS, n_groups=1, state_size=64
    )
    return transformers.Mamba2ForCausalLM(config)


def batches(
    task: str, segments: list[Segment], batch_size: int, vocabulary: int, seed: int
) -> list[dict[str, torch.Tensor]]:
    """All examples in batches, each of one length."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for segment in segments:
        examples = draw(task, segment.pairs, segment.length, segment.examples, generator, vocabulary)
        rows = zip(*(tensor.split(batch_size) for tensor in examples.values()))
        found += [dict(zip(examples, row)) | {"pairs": segment.pairs} for row in rows]
    return found


def asked(model, batch: dict, device: torch.device, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Logits where something is asked, and what is wanted there: (asked, vocabulary), (asked,).

    Elsewhere the head is not computed: of a small model with a large vocabulary it would be most of the work.
    """
    ids, labels = (batch[name].to(device) for name in ("input_ids", "labels"))
    hidden_states = model.base_model(input_ids=ids, use_cache=False, **options)[0]
    wanted = labels[:, 1:]
    return model.lm_head(hidden_states[:, :-1][wanted != -100]), wanted[wanted != -100]


def train(model, data: list[dict], epochs: int, learning_rate: float, seed: int, **options) -> float:
    """Train on all batches, in another order each epoch. Returns the mean loss of the last epoch."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1)
    steps = epochs * len(data)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 10), steps)
    model.train()
    with tqdm(total=steps, desc="training", leave=False) as bar:
        for _ in range(epochs):
            total = 0.0
            for place in torch.randperm(len(data), generator=generator).tolist():
                loss = cross_entropy(*asked(model, data[place], device, **options))
                loss.backward()
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += loss.item()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return total / len(data)


@torch.no_grad()
def accuracy(model, data: list[dict], **options) -> dict[int, float]:
    """By the number of pairs, the share of answers that are right."""
    device = next(model.parameters()).device
    right, count = {}, {}
    model.eval()
    for batch in data:
        logits, wanted = asked(model, batch, device, **options)
        pairs = batch["pairs"]
        right[pairs] = right.get(pairs, 0) + (logits.argmax(-1) == wanted).sum().item()
        count[pairs] = count.get(pairs, 0) + len(wanted)
    return {pairs: right[pairs] / count[pairs] for pairs in right}


@torch.no_grad()
def state_bytes(model, length: int, **options) -> int:
    """What a model holds of a text of so many tokens; one that sleeps with its window full, which is the most."""
    if isinstance(model, SleepForCausalLM):
        length -= length % model.config.window_size
    ids = torch.zeros(1, length, dtype=torch.long, device=next(model.parameters()).device)
    if isinstance(model, SleepForCausalLM):
        return model.read(ids, progress=False, **options).nbytes
    output = model(input_ids=ids, use_cache=True)
    return held(output.cache_params if "cache_params" in output else output[CACHE])


def runs(args) -> Iterator[dict]:
    """What the options ask for, one row each, as far as it is known before."""
    for width in args.widths:
        for name in args.models:
            for passes in args.passes if name == "sleep" else [None]:
                for learning_rate in args.learning_rates:
                    for seed in args.seeds:
                        yield {
                            "yardstick": "recall", "task": args.task, "model": name, "passes": passes,
                            "window_size": args.window_size if name in ("sleep", "sliding") else None,
                            "width": width, "learning_rate": learning_rate, "epochs": args.epochs,
                            "scale": args.scale, "batch_size": args.batch_size, "vocabulary": args.vocabulary,
                            "seed": seed,
                        }  # fmt: skip


def segments(task: str, whole: list[Segment], scale: float, most: int) -> list[Segment]:
    """
    A share of zoology's examples.

    `forgetting` tells half of the pairs twice, and `compositional` has three tokens for each and square numbers of
    them: their texts are longer where that is needed.
    """
    longer = {"mqar": 4, "forgetting": 5, "compositional": 6}[task]
    found = []
    for segment in whole:
        pairs = segment.pairs if task != "compositional" else round(segment.pairs**0.5) ** 2
        if pairs <= most:
            length = max(segment.length, longer * pairs)
            found.append(Segment(pairs, length + length % 2, max(1, int(scale * segment.examples))))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Associative recall from nothing, over pairs and bytes of state.")
    parser.add_argument("task", choices=KINDS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["sleep", "attention", "sliding"])
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4], help="N, of `sleep`")
    parser.add_argument("--window-size", type=int, default=32, help="L, of `sleep` and `sliding`")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="d, which sets the state's size")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3.2e-3, 1e-2, 3.2e-2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--scale", type=float, default=1.0, help="of zoology's numbers of examples")
    parser.add_argument("--most-pairs", type=int, default=256, help="leave out what has more")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="tokens; fewer are learned sooner")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=Path, required=True, help="file to which the rows are added")
    args = parser.parse_args(argv)
    if "olmo_hybrid" in args.models and Version(transformers.__version__) < Version(OLDEST):
        parser.error(f"olmo_hybrid needs transformers {OLDEST}: before, masks ask its cache what it cannot say.")
    tested = segments(args.task, TEST, args.scale, args.most_pairs)
    longest, rows, data = max(s.length for s in tested), Rows(args.rows, KEY), None
    for row in runs(args):
        if rows.has(row):
            continue
        if data is None:
            trained = segments(args.task, TRAIN, args.scale, args.most_pairs)
            data = batches(args.task, trained, args.batch_size, args.vocabulary, seed=0)
            tests = batches(args.task, tested, max(1, args.batch_size // 8), args.vocabulary, seed=10)
        torch.manual_seed(row["seed"])
        model = build(row["model"], row["width"], args.window_size, longest, args.vocabulary).to(args.device)
        options = {} if row["passes"] is None else {"sleep_passes": row["passes"]}
        began = time.perf_counter()
        loss = train(model, data, args.epochs, row["learning_rate"], row["seed"], **options)
        row |= {"parameters": sum(p.numel() for p in model.parameters()), "loss": loss}
        row["accuracy"] = accuracy(model, tests, **options)
        row["bytes"] = {s.pairs: state_bytes(model, s.length, **options) for s in tested}
        rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
        shares = "  ".join(f"{pairs}: {100 * share:.1f} %" for pairs, share in row["accuracy"].items())
        how = "" if row["passes"] is None else f", N = {row['passes']}"
        print(f"{row['model'] + how:16} d = {row['width']}, lr {row['learning_rate']:g}: {shares}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
