"""A process that has never heard of this package, and what a saved model gives there.

    run("print(sys.argv)", "an argument")

runs a program where `import modeling_sleep` fails, as on a stranger's machine. As it cannot import the package, it
finds the functions of this file in `room`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


ENTRANCE = """
import runpy, sys
room = runpy.run_path({room!r})
room["enter"]({site!r}, {threads})
"""


def enter(site: str, threads: int) -> None:
    """Hide the package from this process, which finds transformers in the folder `site`."""
    sys.path.insert(0, site)
    sys.modules["modeling_sleep"] = None  # importing it fails, of an editable installation, too
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()


def run(program: str, *arguments, say: Callable[[str], None] | None = None, **environment: str) -> None:
    """
    Run a program in the clean room, with an empty cache and, unless `environment` has it otherwise, no network.

    Parameters
    ----------
    program : str
        Its code. `sys` and `room` are there.
    *arguments
        What it finds in `sys.argv`.
    say : callable, optional
        Takes every line that it prints, at once.
    **environment : str
        Variables that it finds. Others of the Hub, of transformers and of Python are taken away.

    Raises
    ------
    RuntimeError
        If it failed; the message is what it said last.
    """
    import torch
    import transformers

    site = str(Path(transformers.__file__).parents[1])
    code = ENTRANCE.format(room=str(Path(__file__).resolve()), site=site, threads=torch.get_num_threads()) + program
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "PYTHON"))}
        with subprocess.Popen(
            [sys.executable, "-I", "-u", "-c", code, *map(str, arguments)],
            cwd=home,
            env={**kept, "HF_HOME": home, "HF_HUB_OFFLINE": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            for line in process.stdout:
                if say is not None:
                    say(line.rstrip("\n"))
        errors.seek(0)
        *_, last = errors.read().strip().splitlines() or ["it said nothing"]
    if process.returncode < 0:  # the system's signal, mostly
        last = f"the process was killed (signal {-process.returncode}). If memory ran out, use a larger machine"
    if process.returncode:
        raise RuntimeError(last)


def outputs_of_folder(folder: str | Path, say: Callable[[str], None] = print, **kwargs) -> dict:
    """
    What must not depend on how a folder was loaded: [`outputs`] of its model, and the tokens of a text.

    Parameters
    ----------
    folder : str | Path
    say : callable
        Takes a line on what is done.
    **kwargs
        For `from_pretrained`.

    Returns
    -------
    dict[str, torch.Tensor]
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    tensors = {}
    if (Path(folder) / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
        text = tokenizer.decode(list(range(min(len(tokenizer), 100)))) or "a"  # words of its own
        tensors["tokens of a text"] = torch.tensor(tokenizer(text)["input_ids"])
    (name,) = (name for name, target in config.auto_map.items() if target.endswith(f".{config.architectures[0]}"))
    say(f"loading it by {name}")
    model = getattr(transformers, name).from_pretrained(folder, **kwargs)
    if kwargs.get("trust_remote_code") and not type(model).__module__.startswith("transformers_modules."):
        raise AssertionError(f"{type(model)} is not the folder's own class.")
    # An N that sleeps; a model of attention layers alone has only one.
    passes = 1 if set(config.layer_types) == {"sleep_attention"} else max(2, config.sleep_passes)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, 2 * config.window_size + 3), generator=generator)
    say(f"reading {ids.shape[1]:,} tokens in windows of {config.window_size:,}, N = {passes}")
    return {**tensors, **outputs(model, ids, passes)}


def outputs(model, ids, passes: int) -> dict:
    """
    What a model gives of `ids`, (batch, length) of several windows, with N = `passes`.

    Returns
    -------
    dict[str, torch.Tensor]
        Logits or hidden states; of a model that generates, also logits behind a nap and greedy tokens across a
        window's end.
    """
    import torch

    with torch.no_grad():
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
