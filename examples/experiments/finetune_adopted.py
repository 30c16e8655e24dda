"""Give sleep to a pretrained model and teach it to use it, in two stages, with `Trainer` and PEFT.

    python -m examples.experiments.finetune_adopted --model HuggingFaceTB/SmolLM2-135M-Instruct --output adopted

    stage 1    the memory learns, all else stays as it is (arXiv 2605.26099, section 4): the memory layers that were
               inserted, or a hybrid's own Gated DeltaNet
    stage 2    the memory goes on, with LoRA on all others; merged at the end

The number of passes N is drawn anew for every step. Texts are those of `natural_texts.py`: facts and word problems
whose answers lie behind sleeps, and ordinary text, so that the model does not forget how to read. The same command
goes on where an interrupted one stopped; `--minutes 9` ends a slice by itself.

Before and after, the model is compared with the pretrained one by lm-evaluation-harness (`pip install ".[eval]"`), on
the tasks of docs/YARDSTICKS.md: facts behind sleeps, in other words than those of training, and ordinary text. Either
reads once whole and once cut to its last window: the difference is what its memory is worth, the rest is that it has
got used to such texts. `--examples 0` measures nothing, and needs no harness.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

from modeling_sleep import SleepForCausalLM
from modeling_sleep.adopt_sleep import ATTENTION_FAMILIES
from modeling_sleep.from_causal_lm import number_or_places

from ..yardsticks.harness import check_harness, measure
from . import figures
from .natural_texts import NaturalTexts
from .progress import use_loss_bar
from .recipe import draw_passes
from .resume import last_checkpoint
from .train import SleepTrainer, StopAfter


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SUSTAINED_TFLOPS = 50  # of a GPU; a guess
LORA_MODULES = r".*\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def memory_of(model: SleepForCausalLM) -> dict[str, torch.nn.Module]:
    """What holds the fast weights, by name: the layers that were inserted, or a hybrid's own Gated DeltaNet."""
    places = model.config.memory_layers
    if places:
        return {f"layers.{i}": model.model.layers[i] for i in places}
    places = [i for i, layer_type in enumerate(model.config.layer_types) if layer_type == "linear_attention"]
    return {f"layers.{i}.linear_attn": model.model.layers[i].linear_attn for i in places}


def train_memory(model: SleepForCausalLM):
    """Stage 1: leave nothing to be trained but the memory."""
    model.requires_grad_(False)
    for module in memory_of(model).values():
        module.requires_grad_(True)
    return model


def add_lora(model: SleepForCausalLM, rank: int):
    """Stage 2: LoRA on attention and MLPs; the memory is trained and saved in full."""
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES)
    config.modules_to_save = [*memory_of(model)]
    return get_peft_model(model, config)


def train(model, texts: NaturalTexts, mixture: dict[str, float], steps: int, learning_rate: float, output: Path, args):
    """Train what requires gradients, from the last checkpoint if there is one. Returns whether all steps are done."""
    arguments = TrainingArguments(
        output_dir=str(output), max_steps=steps, per_device_train_batch_size=args.batch_size,
        learning_rate=learning_rate, lr_scheduler_type="cosine", warmup_steps=min(20, steps // 5), weight_decay=0.01,
        logging_steps=5, save_steps=max(1, steps // 5), save_total_limit=1, seed=args.seed, report_to="none",
        bf16=torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(), disable_tqdm=False,
    )  # fmt: skip
    model.config.skip_logits = True  # whole texts of logits would take more memory than the rest of a step
    trainer = SleepTrainer(
        model,
        arguments,
        train_dataset=texts.dataset(steps * args.batch_size, "train", **mixture),
        data_collator=texts.collator(),
        callbacks=[StopAfter(args.deadline)] if args.deadline is not None else [],
        passes_at=functools.partial(draw_passes, passes=args.train_passes),
    )
    use_loss_bar(trainer)
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    model.config.use_cache, model.config.skip_logits = True, False  # Trainer turned the cache off
    return trainer.state


def print_row(reader: str, result: dict):
    facts = "  ".join(f"{cell['since']}: {100 * cell['right'] / cell['total']:5.1f} %" for cell in result["facts"])
    print(f"   {reader:<34}{result['perplexity']:8.2f}   {facts}", flush=True)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Give sleep to a pretrained model and teach it to use it.")
    parser.add_argument("--model", required=True, help="a pretrained causal LM: name on the Hub or folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, its curves and its figures")
    parser.add_argument("--window-size", type=int, default=64, help="L")
    parser.add_argument("--windows", type=int, default=4, help="windows of a text at most")
    parser.add_argument("--memory-layers", type=int, nargs="+", help="how many, or which places (default: 10 %%)")
    parser.add_argument("--loop-span", type=int, nargs=2, help="layers passed N times (default: all)")
    parser.add_argument("--train-passes", type=int, nargs="+", default=[1, 2], help="N is drawn from these")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 4], help="N of the evaluation")
    parser.add_argument("--steps", type=int, nargs=2, default=[240, 0], help="of the two stages")
    parser.add_argument("--learning-rate", type=float, nargs=2, default=[2e-3, 2e-4], help="of the two stages")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--mixture", type=float, nargs=3, default=[0.6, 0.0, 0.4], help="facts, problems, ordinary")
    parser.add_argument("--examples", type=int, default=60, help="questions and texts to evaluate, 0 for none")
    parser.add_argument("--minutes", type=float, help="end this slice after so long, with a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.examples:
        check_harness()
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "minutes")}
    args.deadline = time.monotonic() + 60 * args.minutes if args.minutes else None  # of both stages
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # Whatever the file has: in bfloat16 many of an optimizer's steps are lost in rounding, of gates and norms all.
    original = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(DEVICE).eval()
    texts = NaturalTexts(tokenizer, args.window_size, windows=args.windows, seed=args.seed)
    mixture = {kind: share for kind, share in zip(("facts", "problems", "ordinary"), args.mixture) if share > 0}
    model = SleepForCausalLM.from_causal_lm(
        original,
        window_size=args.window_size,
        memory_layers=number_or_places(args.memory_layers),
        loop_span=args.loop_span,
        sleep_passes=max(args.train_passes),
        memory="gated_delta" if original.config.model_type in ATTENTION_FAMILIES else None,
    )
    if not Path(args.model).exists():
        model.config.adopted_from = args.model
    memory = memory_of(model)
    size = sum(p.numel() for module in memory.values() for p in module.parameters())
    print(
        f"{model.num_parameters():,} parameters, {size:,} of them in the memory ({', '.join(memory)}), "
        f"{'new' if model.config.memory_layers else 'which the model had'}; windows of {args.window_size} tokens",
        cost(model, args),
        f"   {'':34}perplexity   facts right, by sleeps since",
        sep="\n",
    )

    report = args.output / "adoption.json"
    results = {"settings": settings, "readers": {}, "losses": {}}
    if report.exists():
        results = json.loads(report.read_text())
    if results["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"error: {args.output} holds a run with other settings. Choose another --output.")
    args.output.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(results, indent=1) + "\n")

    def show(reader: str, model, **options):
        """Evaluate once; a run that goes on knows what it has measured."""
        if not args.examples:
            return
        if reader not in results["readers"]:
            results["readers"][reader] = measure(
                model, tokenizer, args.model, args.window_size, args.examples, args.batch_size, **options
            )
            report.write_text(json.dumps(results, indent=1) + "\n")
        print_row(reader, results["readers"][reader])

    show("original, whole cache", original)
    show("original, cut to a window", original, cut=True)
    del original
    show("with sleep, not trained", model, passes=max(args.train_passes))
    for number, (steps, learning_rate) in enumerate(zip(args.steps, args.learning_rate), start=1):
        if not steps:
            continue
        learner = train_memory(model) if number == 1 else add_lora(model, args.rank)
        state = train(learner, texts, mixture, steps, learning_rate, args.output / f"stage-{number}", args)
        losses = [(log["step"], log["loss"]) for log in state.log_history if "loss" in log]
        results["losses"][f"stage {number}"] = losses
        if state.global_step < steps:
            print(f"   stage {number}: {state.global_step} of {steps} steps. The same command goes on from here.")
            return 0
        model = learner if number == 1 else learner.merge_and_unload()
        show(f"stage {number}, cut to a window", model, cut=True)
        for passes in args.passes:
            show(f"stage {number}, N = {passes}", model, passes=passes)
    model.requires_grad_(True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    report.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, args.output / "adoption.png")
    print(f"saved to {args.output}")
    return 0


def cost(model: SleepForCausalLM, args: argparse.Namespace) -> str:
    """What training takes at most: texts of full length, 6 operations per parameter, token and pass."""
    tokens = sum(args.steps) * args.batch_size * args.windows * args.window_size
    passes = sum(args.train_passes) / len(args.train_passes)
    flops = 6 * model.num_parameters() * tokens * passes
    hours = flops / (SUSTAINED_TFLOPS * 1e12) / 3600
    rate = f"{hours:.2g} GPU hours at {SUSTAINED_TFLOPS} sustained TFLOP/s"
    return f"training: at most {tokens:,} tokens, {flops:.1e} FLOPs: {rate}"


def plot(results: dict, path: Path):
    """Loss over steps, perplexity, and facts right over sleeps."""
    figure, (curve, bars, lines) = figures.figure(3, (15, 3.8))
    for (stage, losses), dashes in zip(results["losses"].items(), ("-", "--")):
        if losses:
            curve.plot(*zip(*losses), label=stage, color="black", linestyle=dashes)
    figures.finish(curve, xlabel="step", ylabel="loss", title=f"training, {', '.join(results['losses'])}")
    readers = results["readers"]
    perplexities = [result["perplexity"] for result in readers.values()]
    figures.bars(bars, list(readers), {"": perplexities}, "perplexity of a word")
    bars.set_title("ordinary text")
    for number, (reader, result) in enumerate(readers.items()):
        cells = result["facts"]
        shares = [100 * cell["right"] / cell["total"] for cell in cells]
        trained = "original" not in reader and "not trained" not in reader
        dashes = "-" if trained else "--"
        figures.line(lines, [cell["since"] for cell in cells], shares, reader, number, linestyle=dashes)
    labels = dict(xlabel="sleeps since the fact was told", ylabel="answers right, %", title="facts")
    figures.finish(lines, ylim=(-3, 103), **labels)
    lines.xaxis.get_major_locator().set_params(integer=True)
    figures.legend(figure)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
