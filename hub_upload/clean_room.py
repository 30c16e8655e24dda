"""A process that has never heard of this package, and what a saved model gives there.

    run("print(sys.argv)", "an argument")

runs a program where `import modeling_sleep` fails, as on a stranger's machine. This file is what runs there, so the
program has what is defined and imported in it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers


def run(program: str, *arguments, **environment: str) -> None:
    """
    Run a program in the clean room, with an empty cache and, unless `environment` has it otherwise, no network.

    It finds `arguments` in `sys.argv`, and of the variables of the Hub, of transformers and of Python only those of
    `environment`. If it fails, what it said last is the message of a `RuntimeError`.
    """
    python, room = [sys.executable, "-s", "-P", "-u"], Path(__file__).resolve()
    site = str(Path(transformers.__file__).parents[1])  # so that it is the transformers of this process
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON"))}
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [*python, room, program, str(torch.get_num_threads()), *map(str, arguments)],
            cwd=home,
            env={**kept, "PYTHONPATH": site, "HF_HOME": home, "HF_HUB_OFFLINE": "1", **environment},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    if done.returncode:
        killed = f"the process was killed (signal {-done.returncode}). If memory ran out, use a larger machine"
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise RuntimeError(last if done.returncode > 0 else killed)


def outputs_of_folder(folder: str | Path, **kwargs) -> dict[str, torch.Tensor]:
    """The tokens of a text and [`outputs`] of a model: they must not depend on how it is loaded (`kwargs`)."""
    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    tensors = {}
    if (Path(folder) / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
        text = tokenizer.decode(list(range(min(len(tokenizer), 100)))) or "a"  # words of its own
        tensors["tokens of a text"] = torch.tensor(tokenizer(text)["input_ids"])
    (name,) = (name for name, target in config.auto_map.items() if target.endswith(f".{config.architectures[0]}"))
    print(f"...     loading it by {name}", flush=True)
    model = getattr(transformers, name).from_pretrained(folder, **kwargs)
    if kwargs.get("trust_remote_code") and not type(model).__module__.startswith("transformers_modules."):
        raise AssertionError(f"{type(model)} is not the folder's own class.")
    # An N that sleeps; a model of attention layers alone has only one.
    passes = 1 if set(config.layer_types) == {"sleep_attention"} else max(2, config.sleep_passes)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, 2 * config.window_size + 3), generator=generator)
    print(f"...     reading {ids.shape[1]:,} tokens in windows of {config.window_size:,}, N = {passes}", flush=True)
    return {**tensors, **outputs(model, ids, passes)}


@torch.no_grad()
def outputs(model, ids: torch.Tensor, passes: int) -> dict[str, torch.Tensor]:
    """
    What a model gives of `ids`, (batch, length) of several windows: logits or hidden states.

    Of a model that generates, also logits behind a nap of N = `passes`, and greedy tokens across a window's end.
    """
    read = model(input_ids=ids, attention_mask=torch.ones_like(ids), sleep_passes=passes)
    tensors = {name: read[name].contiguous() for name in ("logits", "last_hidden_state") if name in read}
    if not model.can_generate():
        return tensors
    if passes > 1:
        cache = model.sleep(read.past_key_values, sleep_passes=passes)
        tensors["logits behind a nap"] = model(ids[:, :3], past_key_values=cache).logits.contiguous()
    prompt = ids[:, : max(1, model.config.window_size - 2)]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "sleep_passes": passes}
    tensors["greedy tokens"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return tensors


if __name__ == "__main__":
    _, program, threads, *sys.argv[1:] = sys.argv
    sys.modules["modeling_sleep"] = None  # importing it fails, of an editable installation, too
    torch.set_num_threads(int(threads))
    exec(program)
