"""Watch a small model sleep, in five steps and about two minutes on a CPU (`make demo`).

1. load the shipped checkpoint with the Auto classes of transformers
2. answer fresh Rule 110 problems with N = 1, 2 and 4 passes per window: table, one problem in pictures, plot
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


CHECKPOINT = Path(__file__).parent / "checkpoints" / "rule110-demo"
PASSES = (1, 2, 4)
STEPS = range(1, 7)

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


def evolve(rows: np.ndarray, steps: int) -> np.ndarray:
    """Rows of cells on a ring, (n, width), after so many steps of Rule 110."""
    for _ in range(steps):
        left, right = np.roll(rows, 1, axis=1), np.roll(rows, -1, axis=1)
        rows = (rows | right) & ~(left & rows & right)
    return rows


def draw_rows(rng: np.random.Generator, n: int, width: int, trained: bool) -> np.ndarray:
    """Random rows, (n, width): those that the checkpoint's training began with, or those that it never did."""
    rows = rng.integers(2, size=(8 * n + 100, width))
    places = 2 ** np.arange(width, dtype=np.uint64)
    key = np.min([np.roll(rows, i, axis=1) @ places for i in range(width)], axis=0).astype(np.uint64)
    # The training keeps a quarter of all rows for questions like these: a hash (splitmix64) of the least of a row's
    # rotations decides.
    key = key + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    kept = (key ^ (key >> np.uint64(31))) % np.uint64(4) == 0
    return rows[kept != trained][:n]


def problems(tokenizer, rows: np.ndarray, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows with `steps` and a row, and windows with the query and the row then: ids and labels, (n, 2 * L) each."""

    def cells(row):
        return " ".join(map(str, row))

    texts = [f"t={steps} {cells(row)} <query> {cells(after)}" for row, after in zip(rows, evolve(rows, steps))]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    labels = ids.clone()
    labels[:, : rows.shape[1] + 2] = -100  # what is asked for has labels, the question has none
    return ids, labels


@torch.no_grad()
def count_right(model, ids: torch.Tensor, passes: int) -> int:
    """How many rows would be generated as a whole: behind its right beginning, each right cell is the likeliest."""
    window = model.config.window_size
    logits = model.eval()(ids.to(model.device), sleep_passes=passes).logits  # (n, 2 * L, vocabulary)
    return (logits[:, window:-1].argmax(-1).cpu() == ids[:, window + 1 :]).all(1).sum().item()


def render(cells) -> str:
    """A row, dark for 1 and light for 0; a question mark for what is no cell."""
    return "".join({"0": "░", "1": "█"}.get(str(cell), "?") for cell in cells)


def load(checkpoint: Path):
    """Step 1: model and tokenizer."""
    headline("1. Load the checkpoint with AutoModelForCausalLM")
    if not (checkpoint / "config.json").is_file():
        sys.exit(
            f"No checkpoint in {checkpoint}. Train it: "
            f"python -m examples.experiments.train rule110-demo --output {checkpoint}"
        )
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    config = model.config
    print(f"   {type(model).__name__}, {model.num_parameters():,} parameters, layers {' + '.join(config.layer_types)}")
    print(f"   reads in windows of L = {config.window_size} tokens; by default N = {config.sleep_passes} passes each")
    return model, tokenizer


def solve(model, tokenizer, num_examples: int, seed: int, output: Path):
    """Step 2: accuracy by rollout and N, one problem in pictures, and the plot."""
    headline("2. Answer fresh Rule 110 problems")
    print("   The model reads a row of cells. Then the row is forgotten, only the fast weights remain, and the model")
    print("   is asked for the row after t steps. Before it forgets, it passes over the row N times.\n")
    rows = draw_rows(np.random.default_rng(seed), num_examples, model.config.window_size - 1, trained=False)
    shares = {}  # (3,) each: low, share, high; the 95 % interval of Wilson
    for t in tqdm(STEPS, desc="   evaluating", unit="t", leave=False):
        ids, _ = problems(tokenizer, rows, t)
        for n in PASSES:
            result = binomtest(count_right(model, ids, n), len(ids))
            interval = result.proportion_ci(method="wilson")
            shares[n, t] = 100 * np.array([interval.low, result.statistic, interval.high])

    print(f"   Whole row right, in % of {len(rows)} problems (± half of the 95 % interval)\n")
    print("   " + "N".rjust(2) + "".join(f"t = {t}".rjust(14) for t in STEPS))
    for n in PASSES:
        cells = [f"{share:5.1f} ± {(high - low) / 2:3.1f}" for low, share, high in (shares[n, t] for t in STEPS)]
        print("   " + str(n).rjust(2) + "".join(cell.rjust(14) for cell in cells))
    draw_problem(model, tokenizer, rows[:1])
    path = output / "accuracy_by_rollout.png"
    plot(shares, path)
    print(f"\n   plot: {path}")


def draw_problem(model, tokenizer, row: np.ndarray, t: int = 4):
    """Show the automaton's rows and what the model says comes t steps later."""
    width, (ids, _) = row.shape[1], problems(tokenizer, row, t)
    prompt = ids[:, : width + 2].to(model.device)  # up to the query
    print(f"\n   One of them, t = {t}:\n")
    for step in range(t + 1):
        name = "read, then forgotten" if step == 0 else "the right answer" if step == t else "never shown"
        print(f"     {'step ' + str(step):<8}{render(evolve(row, step)[0])}   {name}")
    print()
    for n in PASSES:
        answer = model.generate(prompt, max_new_tokens=width, min_new_tokens=width, do_sample=False, sleep_passes=n)
        answer = tokenizer.decode(answer[0, width + 2 :]).split()
        wrong = sum(a != str(b) for a, b in zip(answer, evolve(row, t)[0]))
        print(f"     {'N = ' + str(n):<8}{render(answer)}   {f'{wrong} cells wrong' if wrong else 'right'}")


def plot(shares: dict[tuple[int, int], np.ndarray], path: Path):
    """Accuracy over t, one line per N, with 95 % intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, look in zip(PASSES, ("o:", "s--", "^-")):
        low, share, high = np.transpose([shares[n, t] for t in STEPS])
        label = f"N = {n}" + (" (no replay)" if n == 1 else "")
        axes.errorbar(STEPS, share, [share - low, high - share], fmt=look, capsize=3, label=label)
    axes.set(title="Rule 110 after the row is forgotten", xlabel="automaton steps t", ylabel="whole row right (%)")
    axes.set(ylim=(-3, 103), xticks=list(STEPS))
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


def outgrow_window(model, prompt: torch.Tensor, windows: int = 20):
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
    for seen in (window * config.window_size for window in (1, 2, 5, 10, 15, windows)):
        # The sleep comes with the next token, which is then all that the window holds.
        full, slept = watch.sizes[seen], watch.sizes[seen + 1]
        print(f"   {seen:>14,}{full:>18,}{slept:>18,}{seen * token_bytes:>20,}")
    print(f"\n   never more than {max(watch.sizes.values()):,} bytes")
    print(f"   {len(watch.sizes) / seconds:.0f} tokens per second, sleeps included")


def finetune(model, tokenizer, seed: int, folder: Path, steps: int, batch_size: int = 64, t_max: int = 7):
    """Step 4: more steps of the automaton than the checkpoint has seen, with a stock trainer."""
    headline(f"4. Fine-tune on t = 1..{t_max} with a plain Trainer")
    rng, width = np.random.default_rng(seed), model.config.window_size - 1

    def dataset(n: int, t: int, trained: bool) -> list[dict]:
        pairs = zip(*problems(tokenizer, draw_rows(rng, n, width, trained), t))
        return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]

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
        train_dataset=[row for t in range(1, t_max + 1) for row in dataset(steps * batch_size // t_max, t, True)],
        eval_dataset=dataset(1000, t_max, False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"   loss at t = {t_max}, N = {model.config.sleep_passes}: {before:.3f} before, {after:.3f} after")


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
    parser.add_argument("--examples", type=int, default=500, help="problems per t")
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
        f"A language model that sleeps. Problems drawn with --seed {seed}, from rows that training never began with."
    )
    model, tokenizer = load(args.checkpoint)
    solve(model, tokenizer, args.examples, seed, args.output)
    rows = draw_rows(np.random.default_rng(seed + 1), 1, model.config.window_size - 1, trained=False)
    prompt = problems(tokenizer, rows, 4)[0][:, : model.config.window_size + 1]  # up to the query
    outgrow_window(model, prompt)
    finetune(model, tokenizer, seed, args.output / "finetuned", args.finetune_steps)
    reload(model, tokenizer, prompt, args.output / "finetuned")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
