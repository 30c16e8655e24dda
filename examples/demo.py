"""Watch a small model sleep, in five steps and two minutes on a CPU (`make demo`).

1. load the shipped checkpoint with the Auto classes of transformers
2. answer fresh word problems with N = 1 to 16 passes per window: table, one problem in words, plot
3. generate far beyond the window and watch the cache stay bounded
4. fine-tune with a plain `Trainer`
5. save, and reload in a fresh process that does not know this repository
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    StoppingCriteria,
    StoppingCriteriaList,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

import modeling_sleep  # noqa: F401 (registers the model with the Auto classes)


CHECKPOINT = Path(__file__).parent / "checkpoints" / "word-problems"
PASSES = (1, 2, 4, 8, 16)
OPERATIONS = range(1, 7)
QUANTITIES = 8
TRAINED, TRAINED_PASSES = 4, 12  # the most operations, and the largest N, of the checkpoint's training

RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, prompt, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokens = model.generate(torch.tensor(prompt), **options)
print(json.dumps({"module": type(model).__module__, "tokens": tokens.tolist()}))
"""


def headline(text: str):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def draw_quantities(rng: np.random.Generator, operations: int, trained: bool) -> list[tuple[int | None, int, int]]:
    """
    Draw what a problem defines, in an order in which it could be calculated.

    Returns
    -------
    list of (of, plus, value)
        Quantity `of` plus a number, modulo 3, or the number itself if `of` is None. The last of `operations` is among
        them, and all that it takes.
    """
    deepest = max(operations, TRAINED)
    while True:
        depths = [0, 0, *range(1, deepest + 1), *rng.integers(1, deepest + 2, QUANTITIES - 2 - deepest).tolist()]
        quantities, of_depth = [], {}
        for depth in sorted(depths):
            of = int(rng.choice(of_depth[depth - 1])) if depth else None
            plus = int(rng.integers(1, 3)) if depth else int(rng.integers(3))
            quantities.append((of, plus, (plus + (quantities[of][2] if depth else 0)) % 3))
            of_depth.setdefault(depth, []).append(len(quantities) - 1)
        # The training keeps a quarter of all problems for questions like these: a hash of their numbers, blind to
        # names and order, decides.
        numbers = sorted(plus if of is None else (4 << 32) + plus for of, plus, _ in quantities)
        if (zlib.crc32(repr(numbers).encode()) % 4 == 0) != trained:
            return quantities


def operations_of(quantities: list, i: int) -> int:
    """How many operations quantity i takes."""
    of = quantities[i][0]
    return 0 if of is None else 1 + operations_of(quantities, of)


def write_problem(rng: np.random.Generator, names: list[str], operations: int, trained: bool = False) -> list[str]:
    """Eight sentences in random order, a question of so many operations, and its answer."""
    quantities = draw_quantities(rng, operations, trained)
    names = rng.permutation(names)
    sentences = [
        f"{names[i]} = {plus} , given" if of is None else f"{names[i]} = {names[of]} + {plus}"
        for i, (of, plus, _) in enumerate(quantities)
    ]
    asked = rng.choice([i for i in range(QUANTITIES) if operations_of(quantities, i) == operations])
    sentences = [sentences[i] for i in rng.permutation(QUANTITIES)]
    return [*sentences, f"{names[asked]} ? Answer:", str(quantities[asked][2])]


def names_of(tokenizer) -> list[str]:
    """The words of the tokenizer that name something."""
    return sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word not in ("given", "asked"))


@torch.no_grad()
def count_right(model, ids: torch.Tensor, passes: int) -> int:
    """How many of the problems, (n, tokens), of which the last token is the answer, are answered right."""
    ids = ids.to(model.device)
    logits = model.eval()(ids[:, :-1], sleep_passes=passes, logits_to_keep=1).logits  # (n, 1, vocabulary)
    return (logits[:, -1].argmax(-1) == ids[:, -1]).sum().item()


def load(checkpoint: Path):
    """Step 1: model and tokenizer."""
    headline("1. Load the checkpoint with AutoModelForCausalLM")
    if not (checkpoint / "config.json").is_file():
        sys.exit(
            f"No checkpoint in {checkpoint}. Train it: "
            f'python -m examples.experiments.train gsm-mini --variant "N grows" --output {checkpoint}'
        )
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = model.config
    print(f"   {type(model).__name__}, {model.num_parameters():,} parameters, layers {' + '.join(config.layer_types)}")
    print(f"   reads in windows of L = {config.window_size} tokens; by default N = {config.sleep_passes} passes each")
    return model, tokenizer


def solve(model, tokenizer, num_examples: int, seed: int, output: Path):
    """Step 2: right answers by operations and N, one problem in words, and the plot."""
    headline("2. Answer fresh word problems")
    print("   The model reads eight sentences, each a quantity defined by another. Then they are forgotten, only the")
    print("   fast weights remain, and it is asked for one. Before it forgets, it passes over the sentences N times.")
    print(f"   In training, no answer took more than {TRAINED} operations, and N was at most {TRAINED_PASSES}.\n")
    rng, names = np.random.default_rng(seed), names_of(tokenizer)
    shares = {}  # (3,) each: low, share, high; the 95 % interval of Wilson
    for operations in tqdm(OPERATIONS, desc="   evaluating", unit="operation", leave=False):
        texts = [" ".join(write_problem(rng, names, operations)) for _ in range(num_examples)]
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]
        for n in PASSES:
            result = binomtest(count_right(model, ids, n), len(ids))
            interval = result.proportion_ci(method="wilson")
            shares[n, operations] = 100 * np.array([interval.low, result.statistic, interval.high])

    print(f"   Right answers in % of {num_examples} problems each, by operations (guessing: 33)\n")
    print("   " + "N".rjust(2) + "".join(str(k).rjust(8) for k in OPERATIONS) + "     (± half of the 95 % interval)")
    for n in PASSES:
        widest = max((high - low) / 2 for low, _, high in (shares[n, k] for k in OPERATIONS))
        print(
            "   " + str(n).rjust(2) + "".join(f"{shares[n, k][1]:8.1f}" for k in OPERATIONS) + f"     ± {widest:.1f}"
        )
    show_problem(model, tokenizer, write_problem(rng, names, OPERATIONS[-1]))
    path = output / "accuracy_by_operations.png"
    plot(shares, path)
    print(f"\n   plot: {path}")


def show_problem(model, tokenizer, problem: list[str]):
    """One problem in words, and what every N answers."""
    *sentences, question, right = problem
    print(f"\n   One of them, {OPERATIONS[-1]} operations:\n")
    for left, beside in zip(sentences[::2], sentences[1::2]):
        print(f"     {left:<28}{beside}")
    print(f"\n     {question.removesuffix(' Answer:')}\n")
    prompt = tokenizer(" ".join([*sentences, question]), return_tensors="pt").to(model.device)
    for n in PASSES:
        answer = model.generate(**prompt, max_new_tokens=1, do_sample=False, sleep_passes=n)
        answer = tokenizer.decode(answer[0, -1])
        print(f"     {'N = ' + str(n):<8}{answer}   {'right' if answer == right else 'wrong'}")


def plot(shares: dict[tuple[int, int], np.ndarray], path: Path):
    """Right answers over operations, one line per N, with 95 % intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = (dict(fmt="o:"), dict(fmt="s--"), dict(fmt="^-"), dict(fmt="D-."), dict(fmt="o-", ms=11, mfc="none"))
    for n, look in zip(PASSES, looks):
        low, share, high = np.transpose([shares[n, k] for k in OPERATIONS])
        label = f"N = {n}" + (" (no replay)" if n == 1 else ",\nnever trained" if n > TRAINED_PASSES else "")
        axes.errorbar(OPERATIONS, share, [share - low, high - share], **look, capsize=3, label=label)
    axes.axhline(100 / 3, color="grey", linewidth=0.8, label="guessing")
    axes.axvspan(TRAINED + 0.5, OPERATIONS[-1] + 0.3, color="grey", alpha=0.12, label="never asked\nin training")
    axes.set(
        title="Word problems after they are forgotten",
        xlabel="operations of the answer",
        ylabel="right (%), bars: 95 %",
    )
    axes.set(ylim=(-3, 103), xticks=list(OPERATIONS))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", title="passes per window", frameon=False)
    figure.savefig(path, dpi=150)


def cache_bytes(cache) -> int:
    """Bytes of every tensor that a cache holds, whatever its layers call them."""
    values = [value for layer in cache.layers for value in vars(layer).values()]
    values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


class CacheWatch(StoppingCriteria):
    """Never stops; notes the size of the cache after every token."""

    def __init__(self, cache):
        self.cache = cache
        self.sizes = {}  # tokens seen -> bytes

    def __call__(self, input_ids, scores, **kwargs):
        self.sizes[self.cache.get_seq_length()] = cache_bytes(self.cache)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def outgrow_window(model, prompt: torch.Tensor, windows: int = 10):
    """Step 3: generate `windows` windows past L and show what is remembered along the way."""
    headline(f"3. Generate {windows} windows past L: the cache stays bounded")
    config = model.config
    prompt = prompt[:, : config.window_size].to(model.device)  # one full window
    cache = DynamicCache(config=config)
    watch = CacheWatch(cache)
    with tqdm(total=windows, desc="   sleeping", unit="sleep") as bar:

        def show(event):
            change = f"{event.relative_change[-1]:.2f}" if event.relative_change else "none"
            bar.set_postfix_str(
                f"N = {event.passes}, {1000 * event.seconds:.0f} ms, {event.freed_bytes:,} bytes freed, "
                f"last pass changed S by {change}"
            )
            bar.update()

        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            max_new_tokens=windows * config.window_size + 1,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([watch]),
            sleep_callback=show,
        )
        seconds = time.perf_counter() - start

    attention_layers = config.layer_types.count("sleep_attention")
    token_bytes = 2 * attention_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    print(f"\n   {'':>14}{'bytes in the cache':>36}{'had all keys and':>20}")
    print(f"   {'tokens seen':>14}{'window full':>18}{'after the sleep':>18}{'values been kept':>20}")
    for seen in (window * config.window_size for window in (1, 2, 4, 6, 8, windows)):
        # The sleep comes with the next token, which is then all that the window holds.
        full, slept = watch.sizes[seen], watch.sizes[seen + 1]
        print(f"   {seen:>14,}{full:>18,}{slept:>18,}{seen * token_bytes:>20,}")
    print(f"\n   never more than {max(watch.sizes.values()):,} bytes")
    print(f"   {len(watch.sizes) / seconds:.0f} tokens per second, sleeps included")


def finetune(model, tokenizer, seed: int, folder: Path, steps: int, passes: int = 6, batch_size: int = 64):
    """Step 4: deeper questions than the checkpoint was trained on, in fewer passes, with a stock trainer."""
    headline(f"4. Fine-tune on {OPERATIONS[-1]} operations with N = {passes}, with a plain Trainer")
    rng, names = np.random.default_rng(seed), names_of(tokenizer)
    model.config.sleep_passes = passes  # of every call that does not say otherwise

    def dataset(n: int, trained: bool) -> list[dict]:
        texts = [" ".join(write_problem(rng, names, OPERATIONS[-1], trained)) for _ in range(n)]
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]
        labels = torch.full_like(ids, -100)
        labels[:, -1] = ids[:, -1]  # the answer has a label, and nothing else
        return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]

    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=250,
            learning_rate=1e-3,
            warmup_steps=5,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            prediction_loss_only=True,
            dataloader_pin_memory=False,
            seed=seed,
        ),
        train_dataset=dataset(steps * batch_size, True),
        eval_dataset=dataset(1000, False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"   loss: {before:.3f} before, {after:.3f} after")


def reload(model, tokenizer, prompt: torch.Tensor, folder: Path):
    """Step 5: save, and let a process that has only the folder generate the same tokens."""
    headline("5. Save, and reload in a fresh process")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"   {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.is_file()))}")

    options = {"max_new_tokens": 2 * model.config.window_size, "do_sample": False, "sleep_passes": 4}
    here = model.eval().cpu().generate(prompt, **options)
    with tempfile.TemporaryDirectory() as elsewhere:
        # -I: neither PYTHONPATH nor the working directory is searched. An own cache for remote code, so that the
        # code that runs can only be the folder's.
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": elsewhere,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        arguments = [str(folder.resolve()), json.dumps(prompt.tolist()), json.dumps(options)]
        process = subprocess.run(
            [sys.executable, "-I", "-c", RELOAD, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
    if process.returncode:
        sys.exit(f"The fresh process failed:\n{process.stderr}")
    there = json.loads(process.stdout.splitlines()[-1])
    same = there["tokens"] == here.tolist()
    print(f"   the model's code there: {there['module']}")
    print(f"   here:   {tokenizer.decode(here[0, prompt.shape[1] :][:13])} ...")
    print(f"   there:  {tokenizer.decode(there['tokens'][0][prompt.shape[1] :][:13])} ...")
    print(f"   all {here.shape[1]} tokens are {'the same' if same else 'NOT the same'}")
    if not same:
        sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description="Watch a small model sleep.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for plot and fine-tuned model")
    parser.add_argument("--seed", type=int, help="of the problems (default: another one every time)")
    parser.add_argument("--examples", type=int, default=500, help="problems per number of operations")
    parser.add_argument("--finetune-steps", type=int, default=60)
    # For a model this small, threads wait for each other longer than they save; on a busy machine, much longer.
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    sys.stdout.reconfigure(line_buffering=True)  # in step with the bars on stderr, also in a pipe
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    set_seed(seed)
    args.output.mkdir(parents=True, exist_ok=True)
    print(
        f"A language model that sleeps. Problems drawn with --seed {seed}, whose numbers training never had together."
    )
    model, tokenizer = load(args.checkpoint)
    solve(model, tokenizer, args.examples, seed, args.output)
    *sentences, question, _ = write_problem(np.random.default_rng(seed + 1), names_of(tokenizer), TRAINED)
    prompt = tokenizer(" ".join([*sentences, question]), return_tensors="pt")["input_ids"]
    outgrow_window(model, prompt)
    finetune(model, tokenizer, seed, args.output / "finetuned", args.finetune_steps)
    reload(model, tokenizer, prompt, args.output / "finetuned")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
