"""lm-evaluation-harness reads a model of ours as any other: the same figures at every batch size, and ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_sleep import SleepConfig, SleepForCausalLM


lm_eval = pytest.importorskip("lm_eval", reason='lm-evaluation-harness is not installed: pip install ".[eval]"')
pytest.importorskip("accelerate", reason="lm-evaluation-harness's `hf` models need accelerate")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


pytestmark = pytest.mark.slow

TASKS = Path(__file__).parents[1] / "examples" / "yardsticks" / "tasks"
NAMES = ["sleep_facts", "sleep_facts_choice", "sleep_text"]
L, QUESTIONS = 200, 4
LONGEST = 10 * L  # `auto` reads batches of such texts, to see how large a batch may be


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of bytes, whose S says much."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = SleepConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        window_size=L, sleep_passes=2, initializer_range=0.4, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    SleepForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def harness(folder, batch_size=1, tasks=NAMES, model_args="", **options):
    """What lm-evaluation-harness makes of the model: by task, the responses to each of its documents."""
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder},trust_remote_code=True,dtype=float32{model_args}",
        device="cpu",
        batch_size=batch_size,
        max_batch_size=3,
        tasks=tasks,
        task_manager=TaskManager(
            include_path=str(TASKS),
            include_defaults=False,
            metadata={"pretrained": str(folder), "questions": QUESTIONS, "between": 1},
        ),
        bootstrap_iters=0,
        **options,
    )
    return {
        task: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in results["samples"].items()
    }, results


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    if "sleep_facts" in ours:
        assert ours["sleep_facts"] == theirs["sleep_facts"]
    for task in ours.keys() - {"sleep_facts"}:
        one, other = (torch.tensor(likelihoods(x[task])) for x in (ours, theirs))
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-5)


def likelihoods(responses) -> list[float]:
    return [x[0][0] if isinstance(x[0], tuple | list) else x[0] for response in responses for x in response]


def test_every_batch_size_gives_the_same(folder):
    alone, results = harness(folder)
    assert len(set(map(str, alone["sleep_facts"]))) > 1 and len(alone["sleep_facts"]) == QUESTIONS
    assert {"right,none", "right_stderr,none"} <= results["results"]["sleep_facts"].keys()
    assert_same(harness(folder, 4)[0], alone)
    assert_same(harness(folder, "auto", model_args=f",max_length={LONGEST}")[0], alone)


@torch.no_grad()
def test_its_figures_are_what_the_model_says(folder):
    theirs, results = harness(folder, 4)
    model = SleepForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def likelihood(context, continuation):
        ids = torch.tensor([context + continuation])
        logits = model(ids[:, :-1]).logits[0, len(context) - 1 :].log_softmax(-1)
        return logits.gather(1, torch.tensor(continuation).unsqueeze(1)).sum().item()

    ours = {name: [] for name in NAMES}
    docs = {name: [sample["doc"] for sample in results["samples"][name]] for name in NAMES}
    for doc in docs["sleep_facts"]:
        ids = torch.tensor([encode(doc["context"])])
        assert ids.shape[1] > 2 * L
        written = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        ours["sleep_facts"].append([[tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]]])
    for doc in docs["sleep_facts_choice"]:
        context = encode(doc["context"] + doc["begun"])
        ours["sleep_facts_choice"].append([[(likelihood(context, encode(f" {c}")), 0)] for c in doc["candidates"]])
    for doc in docs["sleep_text"]:
        ours["sleep_text"].append([[likelihood([tokenizer.eos_token_id], encode(doc["text"]))]])
    assert_same(ours, theirs)


def test_n_is_an_argument_of_the_model_or_of_generation(folder):
    two, four = harness(folder)[0], harness(folder, 4, model_args=",sleep_passes=4")[0]
    assert four["sleep_facts"] != two["sleep_facts"] and four["sleep_text"] != two["sleep_text"]
    generated = harness(folder, 4, tasks=["sleep_facts"], gen_kwargs={"sleep_passes": 4})[0]
    assert generated["sleep_facts"] == four["sleep_facts"]


def test_a_model_in_memory_and_a_cut_to_one_window(folder):
    model, tokenizer = SleepForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    kept, cut = (HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **cut) for cut in ({}, {"max_length": L}))
    assert kept.max_length == model.config.n_positions and cut.max_length == L


def test_the_command_of_the_page(folder, tmp_path):
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf"),
        *("--model_args", f"pretrained={folder},trust_remote_code=True,sleep_passes=3", "--device", "cpu"),
        *("--tasks", "sleep_facts,sleep_facts_choice", "--include_path", str(TASKS), "--batch_size", "4"),
        *("--metadata", json.dumps({"questions": 3, "between": 1}), "--gen_kwargs", "sleep_passes=3"),
        *("--output_path", str(tmp_path), "--log_samples"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=TASKS.parents[2])
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["n-samples"]["sleep_facts"]["effective"] == 3
    assert {"right,none"} <= results["results"]["sleep_facts"].keys()
