"""What we tell people to run, runs: the presets and the code of the pages."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import demo, finetune_trainer
from examples.experiments.recipe import list_recipes, list_variants, load_recipe, read_recipe
from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.hub_upload.card import model_card, read_metadata


REPOSITORY = Path(__file__).parents[1]
PRESETS = sorted(path.stem for path in (REPOSITORY / "configuration" / "presets").glob("*.json"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
]


def count_parameters(config):
    """By hand, from the shapes in the paper."""
    d, mlp = config.hidden_size, 3 * config.hidden_size * config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = 2 * d * queries + 2 * d * keys
    heads = config.linear_num_value_heads
    keys, values = config.linear_num_key_heads * config.linear_key_head_dim, heads * config.linear_value_head_dim
    delta_net = 2 * d * keys + 3 * d * values  # q, k; v, gate, output
    delta_net += 2 * d * heads + 2 * heads  # alpha and beta; A and dt
    delta_net += (2 * keys + values) * config.linear_conv_kernel_dim + config.linear_value_head_dim
    mixers = sum(attention if kind == "sleep_attention" else delta_net for kind in config.layer_types)
    return mixers + config.num_hidden_layers * (mlp + 2 * d) + 2 * config.vocab_size * d + d


def test_there_are_presets():
    assert {"tiny", "rule110", "depo"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_model(name):
    preset = SleepConfig.load_preset(name)
    assert preset.keys() == {"description", "model"}  # how it is trained is a matter of the experiments
    # A misspelt field would be kept as an attribute that nobody reads.
    assert set(preset["model"]) <= set(SleepConfig.__dataclass_fields__)
    config = SleepConfig.from_preset(name)
    assert {field: getattr(config, field) for field in preset["model"]} == preset["model"]
    with torch.device("meta"):
        model = SleepForCausalLM(config)
        ids = torch.ones(2, 2 * config.window_size + 1, dtype=torch.long)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)
    assert model(ids).logits.shape == (*ids.shape, config.vocab_size)


def test_every_preset_but_the_smallest_has_a_recipe():
    assert {*list_recipes()} == {*PRESETS} - {"tiny"}


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_one_in_every_variant(name):
    assert read_recipe(name).keys() - {"variants"} == {"description", "model", "task", "training", "evaluation"}
    preset = SleepConfig.from_preset(name)
    for variant in [None, *list_variants(name)]:
        recipe = load_recipe(name, variant)
        # The tokenizer's, whether they come from the task or from the file.
        assert (preset.vocab_size, preset.pad_token_id) == (recipe.config.vocab_size, recipe.config.pad_token_id)
        deepest = recipe.task.examples(range(3), split="eval", depth=max(recipe.evaluation.depths))
        batch = recipe.task.collator()(deepest)
        for example, labels in zip(deepest, batch["labels"]):
            assert sum(recipe.task.solve(example), []) == labels[labels >= 0].tolist()


def test_a_variant_may_be_like_another():
    """Of which it has all that it does not change, and so on."""
    injected, dropout, grows = (
        load_recipe("paths-mini", f"N grows{more}").settings for more in (", input injection", ", write dropout", "")
    )
    assert injected == {**dropout, "model": {**dropout["model"], "input_injection": True}}
    assert dropout["training"] == {**grows["training"], "phases": dropout["training"]["phases"]}
    assert dropout["training"]["phases"] != grows["training"]["phases"]
    assert dropout["evaluation"] == {**grows["evaluation"], "passes": [1, 2, 4, 8, 16, 32]}


def test_presets_take_overrides():
    config = SleepConfig.from_preset("tiny", sleep_passes=7, hidden_size=64)
    assert (config.sleep_passes, config.hidden_size, config.head_dim, config.window_size) == (7, 64, 16, 8)


def test_the_readme_shows_code():
    assert len(BLOCKS) > 0


def test_pages_that_people_write_are_short():
    """In bytes; those of the benchmarks are written by a program."""
    sizes = {page: page.stat().st_size for page in PAGES if "benchmarks" not in page.parts}
    too_long = {str(page): size for page, size in sizes.items() if size > (9e3 if page.name == "README.md" else 10e3)}
    assert not too_long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.programs
@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_the_code_of_the_readme_runs(block, tmp_path):
    """Each block by itself, in a process of its own, where the README says it is to be run, but leaving no traces."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-c", block]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


CHECKPOINTS = sorted(path.parent for path in (REPOSITORY / "examples" / "checkpoints").glob("*/config.json"))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_a_shipped_checkpoint_is_weights_config_tokenizer_and_card(folder):
    """No code, which would be there twice; and what its card tells people to run is there."""
    assert not list(folder.glob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    assert not config.keys() & {"auto_map", "modeling_sleep_version", "transformers_range"}  # these are of code
    assert SleepConfig.from_pretrained(folder).use_cache
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == model_card(folder, read_metadata(folder / "README.md"))
    (recipe,) = re.findall(r"^python -m examples\.experiments\.train (\S+)", card, re.M)
    assert recipe in list_recipes()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_can_be_copied(path):
    """It imports nothing that stands beside it."""
    beside = {"examples", *(other.stem for other in path.parent.iterdir())}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.partition(".")[0] not in beside
        elif isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & beside


def test_text_of_ones_own_has_nothing_to_resume(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        finetune_trainer.main(["--resume", "--output", str(tmp_path / "nothing")])
    assert "--resume: there is no checkpoint in" in capsys.readouterr().err


@pytest.mark.programs
def test_text_of_ones_own_with_trainer(tmp_path, capsys):
    """As a command, and what goes on from it in this process."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} says that {i} and {i + 1} make {2 * i + 1}.\n" for i in range(1500)))

    def options(*flags):
        return [*map(str, ("--text", text, *flags)), "--windows", "3", "--batch-size", "4", "--passes", "3"]

    def go_on(*flags):
        capsys.readouterr()
        finetune_trainer.main(options(*flags))
        return capsys.readouterr().out

    folder = tmp_path / "model"
    command = [sys.executable, finetune_trainer.__file__, *options("--output", folder, "--steps", "6")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert len(re.findall("'sleeps_per_step': 2, 'state_norm'", said)) == 6  # between three windows
    assert {"state_change_pass_2", "state_change_pass_3"} <= set(re.findall(r"state_change_pass_\d", said))
    whole, apart = (float(re.search(rf"{how} +(\d+\.\d\d)", said)[1]) for how in ("as a whole", "by window"))
    assert 10 < whole < 1500 and 10 < apart < 1500 and whole != apart
    config = SleepConfig.from_pretrained(folder)
    assert (config.use_cache, config.skip_logits, config.sleep_passes) == (True, False, 3)

    torn = folder / "checkpoint-7"  # as if the machine had stopped while it was written: weights cut, no state yet
    torn.mkdir()
    weights = (folder / "checkpoint-6" / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "'epoch'" in go_on("--output", folder, "--steps", "8", "--resume")
    assert not torn.exists()
    steps = [
        log["step"] for log in json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    ]
    assert steps == list(range(1, 9))
    again = go_on("--model", folder, "--output", tmp_path / "other", "--steps", "2")  # a model that we have
    assert float(re.search(r"as a whole +(\d+\.\d\d)", again)[1]) < whole


def test_the_problems_of_the_demo_are_those_of_the_task():
    """The tokens, the answers, and which problems are for training, which the demo writes down again."""
    task, rng = load_recipe("gsm-mini").task, np.random.default_rng(0)
    tokenizer = task.tokenizer()
    names = demo.names_of(tokenizer)
    assert len(names) == task.names

    for trained, split in ((True, "train"), (False, "eval")):
        theirs = set()
        for example in task.examples(range(2000), split=split):
            theirs.add(kinds_and_numbers(tokenizer.decode(example["context_ids"]).split()))
        for operations in (1, 2, 4, 5, 6):
            for _ in range(20):
                *sentences, question, answer = demo.write_problem(rng, names, operations, trained)
                text = " ".join(sentences)
                ids = tokenizer(f"{text} {question} {answer}")["input_ids"]
                assert tokenizer.pad_token_id not in ids and len(ids) == task.window_size + 4
                example = {
                    "context_ids": ids[: task.window_size],
                    "question_ids": ids[task.window_size :],
                    "answer_mask": [0, 0, 0, 1],
                    "depths": [operations],
                }
                assert task.solve(example) == [ids[-1:]]
                if operations <= task.max_depth:
                    assert kinds_and_numbers(text.split()) in theirs


def kinds_and_numbers(words: list[str]) -> tuple:
    """Of a problem in sentences of five words, whatever its names and order: `given` or `+`, and the number."""
    sentences = [words[i : i + 5] for i in range(0, len(words), 5)]
    return tuple(sorted(("given", s[2]) if s[4] == "given" else (s[3], s[4]) for s in sentences))


@pytest.mark.programs
def test_demo_runs_from_start_to_end(tmp_path):
    command = [sys.executable, REPOSITORY / "examples" / "demo.py", "--output", tmp_path / "demo", "--seed", "3"]
    run = subprocess.run(
        [*command, "--examples", "20", "--finetune-steps", "2"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "[y/N]" not in run.stdout + run.stderr  # it asks for nothing
    assert (tmp_path / "demo" / "accuracy_by_operations.png").stat().st_size > 10_000
    assert "all 123 tokens are the same" in run.stdout
    accuracy = re.search(r"^ +8 +(\d+\.\d)", run.stdout, re.M)
    assert accuracy and float(accuracy[1]) > 90, run.stdout  # one operation with N = 8
