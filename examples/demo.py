"""Watch a small model sleep, in five steps and about two minutes on a CPU (`make demo`).

1. load the shipped checkpoint the way anyone would load it from the Hub
2. answer fresh Rule 110 problems with N = 1, 2 and 4 passes per window: table, one problem in pictures, plot
3. generate far beyond the window and watch the cache stay bounded
4. fine-tune with a plain `Trainer`
5. save, and reload in a fresh process that does not know this repository
"""

import argparse
import json
import math
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from progress import use_loss_bar
from tasks.rule110 import (
    CELL_ID,
    answer,
    answer_start,
    build_tokenizer,
    evolve,
    exact_match_by_steps,
    make_dataset,
    make_examples,
    render,
)
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


CHECKPOINT = Path(__file__).parent / "checkpoints" / "rule110-mini"
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


def load(checkpoint: Path):
    """Step 1: model and tokenizer, with nothing but transformers."""
    headline("1. Load the checkpoint with AutoModelForCausalLM")
    if not (checkpoint / "config.json").is_file():
        sys.exit(f"No checkpoint in {checkpoint}. Train one: python examples/train_rule110.py --output {checkpoint}")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    if tokenizer.get_vocab() != build_tokenizer().get_vocab():
        sys.exit(f"The checkpoint in {checkpoint} has another vocabulary than the Rule 110 task.")
    config = model.config
    print(f"   {type(model).__name__}, {model.num_parameters():,} parameters, layers {' + '.join(config.layer_types)}")
    print(f"   reads in windows of L = {config.window_size} tokens; by default N = {config.sleep_passes} passes each")
    return model, tokenizer


def half_width(share: float, count: int) -> float:
    """Half the width of the 95 % Wilson interval, which unlike the normal one is not zero for 0 of n or n of n."""
    z = 1.96
    return z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)


def solve(model, num_examples: int, seed: int, output: Path):
    """Step 2: accuracy by rollout and N, one problem in pictures, and the plot."""
    headline("2. Answer fresh Rule 110 problems")
    print("   The model reads a row of cells. Then the row is forgotten, only the fast weights remain, and the model")
    print("   is asked for the row after t steps. Before it forgets, it passes over the row N times.\n")
    width = model.config.window_size - 1
    bar = tqdm(STEPS, desc="   solving", unit="t", leave=False)
    accuracy = exact_match_by_steps(model, bar, PASSES, num_examples, width=width, seed=seed)

    print(f"   Whole row right, in % of {num_examples} problems (± half of the 95 % interval)\n")
    print("   " + "N".rjust(2) + "".join(f"t = {t}".rjust(14) for t in STEPS))
    for n, by_steps in accuracy.items():
        cells = [f"{100 * by_steps[t]:5.1f} ± {100 * half_width(by_steps[t], num_examples):3.1f}" for t in STEPS]
        print("   " + str(n).rjust(2) + "".join(cell.rjust(14) for cell in cells))
    draw_problem(model, seed, width)
    path = output / "accuracy_by_rollout.png"
    plot(accuracy, num_examples, path)
    print(f"\n   plot: {path}")


def draw_problem(model, seed: int, width: int, t: int = 4):
    """Show the automaton's rows and what the model says comes t steps later."""
    example = make_examples([0], t=t, width=width, seed=seed, split="eval")["input_ids"]
    prompt, target = np.split(example, [answer_start(width=width)], axis=1)
    cells = example[0, 1 : width + 1] - CELL_ID

    print(f"\n   One of them, t = {t}:\n")
    for step in range(t + 1):
        name = "read, then forgotten" if step == 0 else "the right answer" if step == t else "never shown"
        print(f"     {'step ' + str(step):<8}{render(evolve(cells, step) + CELL_ID)}   {name}")
    print()
    for n in PASSES:
        answered = answer(model, torch.from_numpy(prompt), width, sleep_passes=n)[0].numpy()
        wrong = int((answered != target[0]).sum())
        print(f"     {'N = ' + str(n):<8}{render(answered)}   {f'{wrong} cells wrong' if wrong else 'right'}")


def plot(accuracy: dict[int, dict[int, float]], num_examples: int, path: Path):
    """Accuracy over t, one line per N."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for n, by_steps in accuracy.items():
        shares = list(by_steps.values())
        axes.errorbar(
            list(by_steps),
            [100 * share for share in shares],
            yerr=[100 * half_width(share, num_examples) for share in shares],
            marker="o",
            capsize=3,
            label=f"N = {n}" + (" (no replay)" if n == 1 else ""),
        )
    axes.set(
        title="Rule 110 after the row is forgotten",
        xlabel="automaton steps t",
        ylabel="whole row right (%)",
        ylim=(-3, 103),
        xticks=list(STEPS),
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="passes per window", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


def outgrow_window(model, seed: int, windows: int = 20):
    """Step 3: generate `windows` windows past L and show what is remembered along the way."""
    headline(f"3. Generate {windows} windows past L: the cache stays bounded")
    config = model.config
    prompt = make_examples([0], t=4, width=config.window_size - 1, seed=seed, split="eval")["input_ids"]
    prompt = torch.from_numpy(prompt[:, : config.window_size]).to(model.device)  # one full window
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


def finetune(model, seed: int, folder: Path, steps: int, batch_size: int = 64, t_max: int = 7):
    """Step 4: more steps of the automaton than the checkpoint has seen, with a stock trainer."""
    headline(f"4. Fine-tune on t = 1..{t_max} with a plain Trainer")
    width = model.config.window_size - 1
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=250,
            learning_rate=1e-3,
            warmup_steps=5,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,
            prediction_loss_only=True,
            dataloader_pin_memory=False,
            seed=seed,
        ),
        train_dataset=make_dataset(steps * batch_size, t_max=t_max, width=width, seed=seed, split="train"),
        eval_dataset=make_dataset(1000, t=t_max, width=width, seed=seed, split="eval"),
    )
    use_loss_bar(trainer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"   loss at t = {t_max}, N = {model.config.sleep_passes}: {before:.3f} before, {after:.3f} after")


def reload(model, tokenizer, seed: int, folder: Path):
    """Step 5: save, and let a process that has only the folder generate the same tokens."""
    headline("5. Save, and reload in a fresh process")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"   {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.is_file()))}")

    prompt = make_examples([1], t=4, width=model.config.window_size - 1, seed=seed, split="eval")["input_ids"]
    prompt = torch.from_numpy(prompt[:, : model.config.window_size + 1])
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
    solve(model, args.examples, seed, args.output)
    outgrow_window(model, seed)
    finetune(model, seed, args.output / "finetuned", args.finetune_steps)
    reload(model, tokenizer, seed, args.output / "finetuned")
    print(f"\nDone in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
