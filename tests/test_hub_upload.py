"""Export, card and checks: what goes out is the model with its code, and nothing else."""

import functools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders import tiny_model, word_tokenizer
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.dynamic_module_utils import get_imports

import modeling_sleep
from modeling_sleep import (
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
    base_terms,
    from_causal_lm,
)
from modeling_sleep.base_terms import metadata_of_base
from modeling_sleep.hub_upload import clean_room
from modeling_sleep.hub_upload.__main__ import main
from modeling_sleep.hub_upload.card import PLACE, model_card
from modeling_sleep.hub_upload.contents import AUTO_MAP, code_files
from modeling_sleep.hub_upload.export import export
from modeling_sleep.hub_upload.verify import check_files, difference, verify


REPOSITORY = Path(__file__).parents[1]
SHIPPED = REPOSITORY / "examples" / "checkpoints" / "rule110-demo"
WITHOUT_CODE = {"README.md", "config.json", "generation_config.json", "model.safetensors"}


small_model = functools.partial(tiny_model, initializer_range=0.2)


def complaints(folder):
    return {what: complaint for what, complaint in check_files(folder) if complaint}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped checkpoint; for reading only."""
    out = tmp_path_factory.mktemp("exported") / "rule110-demo"
    assert main(["export", str(SHIPPED), str(out)]) == 0
    return out


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


# Export.


def test_the_shipped_checkpoint_goes_out_with_code(exported):
    ours, theirs = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (exported, SHIPPED))
    assert ours.keys() == {*theirs, *code_files()}
    for name in theirs.keys() - {"README.md", "config.json", "generation_config.json"}:
        assert ours[name] == theirs[name], name
    config, shipped = (json.loads(files["config.json"]) for files in (ours, theirs))
    assert config["auto_map"] == AUTO_MAP and "auto_map" not in shipped
    assert config["modeling_sleep_version"] == modeling_sleep.__version__
    assert {name: ours[name] for name in code_files()} == {n: path.read_bytes() for n, path in code_files().items()}


def test_the_code_imports_what_everybody_has():
    """From the Hub, unlike from a folder, transformers asks of every file whether all that it imports is there."""
    brought = {"torch", "transformers", "huggingface_hub", "numpy", "packaging", "safetensors"}
    for name, path in code_files().items():
        assert not set(get_imports(path)) - brought - sys.stdlib_module_names, name


def test_the_code_is_what_save_pretrained_writes(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == code_files().keys()


def test_what_a_run_leaves_behind_stays_behind(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    model = small_model(use_cache=False)
    model.save_pretrained(run, max_shard_size="20KB")
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "run.json",
        "trainer_state.json",
        "old_sleep.py",
    ):
        (run / name).write_text("{}")
    for name in ("checkpoint-10", "logs", "runs"):
        (run / name).mkdir()
        (run / name / "optimizer.pt").write_text("")
    (run / "cache_sleep.py").write_text("raise AssertionError('code of an older version')")
    (run / "loss_by_step.png").write_bytes((REPOSITORY / "docs" / "wake_and_sleep.svg").read_bytes())
    assert main(["export", str(run), str(out)]) == 0
    said = capsys.readouterr().out
    for name in ("checkpoint-10", "training_args.bin", "optimizer.pt", "run.json", "old_sleep.py", "use_cache"):
        assert name in said
    assert {path.name for path in out.iterdir()} == {*WITHOUT_CODE, *code_files(), "loss_by_step.png"}
    assert not complaints(out)
    assert "![loss by step](loss_by_step.png)" in (out / "README.md").read_text()
    loaded = SleepForCausalLM.from_pretrained(out)
    assert loaded.config.use_cache
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert (run / "optimizer.pt").exists()  # the source is only read


def test_pickled_weights_become_safetensors(tmp_path):
    model = small_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "run")
    torch.save(load_file(tmp_path / "run" / "model.safetensors"), tmp_path / "run" / "pytorch_model.bin")
    (tmp_path / "run" / "model.safetensors").unlink()
    export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*WITHOUT_CODE, *code_files()}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in weights.items()) and len(weights) > 20


def test_every_template_of_a_chat_goes_along(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "run")
    assert "additional_chat_templates left out" not in export(tmp_path / "run", tmp_path / "out")
    assert not complaints(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_folder_of_links_is_exported_as_files(tmp_path):
    """As those of the Hub's cache are."""
    (tmp_path / "snapshot").mkdir()
    for path in SHIPPED.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    export(tmp_path / "snapshot", tmp_path / "out")
    assert not complaints(tmp_path / "out")


def test_an_export_says_what_it_replaces(copy, tmp_path):
    set_config(modeling_sleep_version="9.0.0")(copy)
    append("README.md", "\nA line of mine.\n")(copy)
    notes = "\n".join(export(copy, tmp_path / "out"))
    assert f"that of modeling_sleep {modeling_sleep.__version__}; in {copy} it was that of 9.0.0" in notes
    assert "README.md is rendered anew" in notes
    assert export(tmp_path / "out", tmp_path / "again") == []


def test_a_licence_is_given_by_who_may_and_never_made_up(tmp_path, capsys):
    small_model().save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "none")]) == 0
    assert "the card names no licence, as none is known" in capsys.readouterr().out
    assert ModelCard.load(tmp_path / "none" / "README.md").data.license is None
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "mit"), "--license", "mit"]) == 0
    assert "names no licence" not in capsys.readouterr().out
    assert ModelCard.load(tmp_path / "mit" / "README.md").data.license == "mit"
    assert export(tmp_path / "mit", tmp_path / "again") == []  # it is known now
    assert ModelCard.load(tmp_path / "again" / "README.md").data.license == "mit"


def test_a_model_loaded_from_elsewhere_is_no_longer_of_there(tmp_path):
    model = small_model()
    model.config.auto_map = {"AutoConfig": "anna/model--configuration_sleep.SleepConfig", "AutoThing": "x.Y"}
    model.save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert not complaints(tmp_path / "out")


def nothing(folder):
    pass


def adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def only_checkpoints(folder):
    small_model().save_pretrained(folder / "checkpoint-10")


def llama(folder):
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)


def broken_json(folder):
    (folder / "config.json").write_text('{"model_type": "sleep"')


def class_of_ones_own(folder):
    small_model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["AmnesiacForCausalLM"]}))


def no_weights(folder):
    small_model().save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def another_run_s_weights(folder):
    small_model(num_hidden_layers=2).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    small_model().save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_another_width(folder):
    small_model(intermediate_size=64).save_pretrained(folder)
    set_config(intermediate_size=128)(folder)


def half_a_download(folder):
    small_model().save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def field_out_of_range(folder):
    small_model().save_pretrained(folder)
    set_config(window_size=0)(folder)


def adapter_beside_a_model(folder):
    small_model().save_pretrained(folder)
    adapter(folder)


def card_that_is_no_yaml(folder):
    small_model().save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags: [sleep\n---\n")


def tokenizer_with_code(folder):
    small_model().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["my.Tokenizer", null]}}')


@pytest.mark.parametrize(
    "make, message",
    [
        (nothing, "holds no saved model: there is no config.json"),
        (adapter, r"holds an adapter, not a model. Merge it first: `peft_model.merge_and_unload"),
        (only_checkpoints, "no config.json. Did you mean .*checkpoint-10"),
        (llama, "holds a model of type 'llama', not one that sleeps"),
        (broken_json, "config.json cannot be read as JSON"),
        (class_of_ones_own, r"names \['AmnesiacForCausalLM'\] .* does not travel with the model"),
        (no_weights, "no file named model.safetensors"),
        (another_run_s_weights, "are not those of its config.json.*missing_keys"),
        (weights_of_another_width, "are not those of its config.json.*mismatched_keys"),
        (half_a_download, "cannot be loaded .SafetensorError.*Save it again"),
        (field_out_of_range, r"`window_size` \(L\) must be at least 1"),
        (adapter_beside_a_model, "holds an adapter, not a model. Merge it first"),
        (card_that_is_no_yaml, "metadata of .*README.md cannot be read.*Mend it"),
        (tokenizer_with_code, "tokenizer in .* brings code of its own"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_exported_says_so_and_leaves_nothing(tmp_path, capsys, make, message):
    (tmp_path / "run").mkdir()
    make(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err, re.S)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_in_the_way_stays(copy, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def refused(out, message, *flags):
        assert main(["export", str(SHIPPED), str(out), *flags]) == 2
        assert message in capsys.readouterr().err

    refused(SHIPPED, "is the folder that is exported", "--overwrite")
    refused(copy, "is not empty. Give another folder, or --overwrite")
    (copy / "thesis.tex").write_text("years of work")
    refused(copy, "holds what no export wrote (thesis.tex)", "--overwrite")
    refused(copy / "thesis.tex", "is a file")
    assert (copy / "thesis.tex").read_text() == "years of work"
    (copy / "thesis.tex").unlink()
    (copy / "LICENSE").symlink_to(tmp_path / "elsewhere")
    refused(copy, "holds what no export wrote (LICENSE)", "--overwrite")
    (copy / "LICENSE").unlink()
    (copy / "model-00001-of-00002.safetensors").write_text("of an earlier export")
    assert main(["export", str(SHIPPED), str(copy), "--overwrite"]) == 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


# The card.


def test_the_card_is_rendered_from_the_results(exported):
    results = json.loads((SHIPPED / "results.json").read_text())
    card = ModelCard.load(exported / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", "apache-2.0")
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["sleep", "fast-weights", "rule110"]
    assert card.data.model_name == "rule110-demo"
    measured = [
        (r.metric_args["sleep_passes"], r.metric_args["depth"], r.metric_value) for r in card.data.eval_results
    ]
    assert measured == [(row["passes"], row["depth"], row["exact_match"]) for row in results["counts"]]
    assert {(r.dataset_type, r.metric_type) for r in card.data.eval_results} == {("rule110", "exact_match")}

    rows = re.findall(r"^\| (\d+)(.*?) \| (.* %) \|$", card.text, re.M)
    assert [(int(n), never) for n, never, _ in rows] == [(1, ""), (2, ""), (4, ""), (8, ", never trained")]
    shown = [float(share) for *_, shares in rows for share in re.findall(r"([\d.]+) %", shares)]
    assert shown == pytest.approx([100 * row["exact_match"] for row in results["counts"]], abs=0.051)
    for part in (results["command"], results["commit"], results["description"], "L = 13", "8,000 steps of 128"):
        assert part in card.text
    assert "![results](results.png)" in card.text
    assert "Trained with N = 1, 2, 4** and no other. Beyond N = 4" in card.text
    assert "@article{lee2026sleep" in card.text


def test_the_use_on_the_card_runs_and_is_five_lines(exported, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", (exported / "README.md").read_text(), re.M | re.S)
    assert len(code.splitlines()) == 5 and code.count("trust_remote_code=True") == 2
    # With the package's classes: remote code in this process would stay for the tests that follow.
    exec(code.replace(PLACE, str(exported)).replace(", trust_remote_code=True", ""), {})
    assert re.fullmatch(r"t=1 [01 ]+<query> ?[01 ]+", capsys.readouterr().out.strip())


def test_without_results_the_card_says_that_nothing_was_measured(tmp_path):
    small_model(SleepForTokenClassification).save_pretrained(tmp_path / "run")
    metadata = {"license": "mit", "base_model": "anna/base", "datasets": ["anna/texts"], "language": "la"}
    (tmp_path / "run" / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n\n99.9 % of all things\n")
    export(tmp_path / "run", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "None are recorded: measure" in card.text and "%" not in card.text
    assert "What N it was trained for is not recorded" in card.text
    assert card.data.eval_results is None and card.data.pipeline_tag == "token-classification"
    assert {name: card.data.get(name) for name in metadata} == metadata
    (code,) = re.findall(r"^```python\n(.*?)^```", card.text, re.M | re.S)
    exec(code.replace(PLACE, str(tmp_path / "out")).replace(", trust_remote_code=True", ""), {})


def test_the_card_names_the_variant(copy):
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps({**results, "variant": "N=4"}))
    assert "\n# rule110-demo, N=4\n" in model_card(copy)


def test_of_another_card_what_strangers_can_use_is_kept(copy, monkeypatch):
    monkeypatch.chdir(copy.parent)  # where `copy` itself would be a repository's name
    known = ModelCardData(
        base_model=["anna/base", "copy", "runs/long/path"], tags=["sleep", "trl"], license="other", license_name="mine"
    )
    data = ModelCard(model_card(copy, known)).data
    assert data.base_model == "anna/base" and data.tags == ["sleep", "fast-weights", "rule110", "trl"]
    assert (data.license, data.license_name) == ("other", "mine")
    (copy / "README.md").write_text(f"---\n{known.to_yaml()}\n---\n")
    export(copy, copy.parent / "mit", license="mit")
    data = ModelCard.load(copy.parent / "mit" / "README.md").data
    assert (data.license, data.license_name) == ("mit", None)


# Cards of models that were given sleep.


@pytest.fixture
def base(tmp_path):
    """A pretrained model as one downloads it, with the terms of who made it."""
    folder = tmp_path / "base"
    llama(folder)
    word_tokenizer(f"w{i}" for i in range(8)).save_pretrained(folder)
    metadata = {"license": "other", "license_name": "dawn", "license_link": "LICENSE", "base_model": "anna/ancestor"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}tags: [chat]\n---\n\nA model.\n")
    (folder / "LICENSE").write_text("Sleep well.")
    return folder


def adopt(base, out):
    assert from_causal_lm.main([str(base), str(out), "--window-size", "4"]) == 0
    return ModelCard.load(out / "README.md")


def test_the_terms_of_a_folder_go_along_from_adoption_to_export(base, tmp_path, capsys):
    card = adopt(base, tmp_path / "sleep")
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "dawn", "LICENSE")
    assert card.data.base_model == "anna/ancestor"
    export(tmp_path / "sleep", tmp_path / "out")
    exported = ModelCard.load(tmp_path / "out" / "README.md")
    assert exported.data.to_dict() == card.data.to_dict()
    assert (tmp_path / "out" / "LICENSE").read_text() == "Sleep well."
    assert "names no licence" not in capsys.readouterr().out


def test_a_folder_that_names_no_licence_gives_none(base, tmp_path, capsys):
    (base / "README.md").unlink()
    card = adopt(base, tmp_path / "sleep")
    assert card.data.license is None and card.data.base_model is None
    assert "note: the card names no licence, as none is known" in capsys.readouterr().out
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    assert from_causal_lm.main([str(base), str(tmp_path / "other")]) == 1
    assert "The metadata of" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_the_base_of_a_folder_is_where_it_was_loaded_from(base, tmp_path):
    for origin, expected in (("anna/base", "anna/base"), (str(tmp_path), "anna/ancestor"), ("base", "anna/ancestor")):
        set_config(_name_or_path=origin)(base)
        assert metadata_of_base(str(base)).base_model == expected


def test_the_terms_of_a_model_on_the_hub(base, tmp_path, monkeypatch):
    known = metadata_of_base("anna/base")  # offline: its name is all that is known
    assert (known.base_model, known.license) == ("anna/base", None)
    monkeypatch.setattr(base_terms, "hf_hub_download", lambda repo, name, revision: base / name)
    known = metadata_of_base("anna/base")
    assert (known.base_model, known.license_name) == ("anna/base", "dawn")
    assert known.license_link == "https://huggingface.co/anna/base/blob/main/LICENSE"

    small_model(adopted_from="anna/base").save_pretrained(tmp_path / "run")
    (note,) = export(tmp_path / "run", tmp_path / "out")
    assert "That of anna/base binds: look there" in note
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.base_model) == (None, "anna/base")


def test_a_memory_that_was_never_trained_is_said_on_the_card(base, tmp_path):
    assert "**Its memory is untrained.**" in adopt(base, tmp_path / "sleep").text
    model = SleepForCausalLM.from_pretrained(tmp_path / "sleep")
    (place,) = model.config.memory_layers
    (weight,) = (w for name, w in model.named_parameters() if re.search(rf"layers.{place}\..*o_proj.weight", name))
    torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "sleep")
    export(tmp_path / "sleep", tmp_path / "out")
    assert "untrained" not in (tmp_path / "out" / "README.md").read_text()


# The checks.


@pytest.mark.programs
def test_an_exported_checkpoint_passes_in_a_process_without_the_package(exported, capsys):
    assert main(["verify", str(exported)]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = [line for line in lines if not line.startswith("...")]
    assert len(checks) == 9 and all(line.startswith("ok ") for line in checks), lines
    for part in ("without the package", "logits", "logits behind a nap", "greedy tokens", "tokens of a text"):
        assert any(part in line for line in checks)
    assert lines[4].startswith("...     loading it by AutoModelForCausalLM")  # before it takes long


@pytest.mark.programs
def test_a_classifier_passes_too(tmp_path, capsys):
    small_model(SleepForSequenceClassification, num_labels=3).save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert verify(tmp_path / "out")
    assert "logits, shape (1, 3), are those of the package" in capsys.readouterr().out


@pytest.mark.parametrize("cls", [SleepModel, SleepForTokenClassification])
def test_other_kinds_have_all_files_too(tmp_path, cls):
    small_model(cls).save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert not complaints(tmp_path / "out")
    tensors = clean_room.outputs_of_folder(tmp_path / "out")
    assert tensors.keys() == {"last_hidden_state" if cls is SleepModel else "logits"}


def write(name, text):
    def change(folder):
        (folder / name).write_text(text)

    return change


def append(name, text):
    def change(folder):
        (folder / name).write_text((folder / name).read_text() + text)

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def set_config(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config = {name: value for name, value in {**config, **fields}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def link_to_elsewhere(folder):
    (folder / "LICENSE").symlink_to("/etc/passwd")
    (folder / "more").symlink_to(folder.parent)


def stale_shard(folder):
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")


def shard_that_did_not_arrive(folder):
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate("ab", 1)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    save_file({"a": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")


PRIVATE_KEY = "-----BEGIN RSA PRIVATE " + "KEY-----"  # in pieces, as others look for it in these files


@pytest.mark.parametrize(
    "change, what, complaint",
    [
        (write("trainer_state.json", "{}"), "nothing else", "remove trainer_state.json"),
        (write("training_args.bin", ""), "nothing else", "remove training_args.bin"),
        (lambda f: (f / "logs").mkdir() or write("logs/a.txt", "")(f), "nothing else", "logs/a.txt"),
        (link_to_elsewhere, "nothing else, and no links", "remove LICENSE, more"),
        (stale_shard, "nothing else", "remove model-00001-of-00002.safetensors"),
        (shard_that_did_not_arrive, "all files that are needed", "model-00002-of-00002.safetensors missing"),
        (remove("layers_sleep.py"), "all files that are needed", "layers_sleep.py missing: export it again"),
        (remove("model.safetensors"), "all files that are needed", "model.safetensors missing"),
        (remove("README.md"), "all files that are needed", "README.md missing"),
        (append("cache_sleep.py", "# mine\n"), "code, and what", "^cache_sleep.py: not as in"),
        (set_config(modeling_sleep_version="0.0.9"), "code, and what", "names version 0.0.9: export it again"),
        (set_config(auto_map={"AutoModel": "a.B"}), "code, and what", "^config.json: not as in"),
        (
            append("README.md", f"token = hf_{'a1B2' * 9}\n"),
            "nothing private",
            "a token or a key, which must be revoked",
        ),
        (append("results.json", f"\nAKIA{'Z7' * 8}"), "nothing private", "results.json line .* a token or a key"),
        (append("results.json", f"\nsk-proj-{'a1B2' * 9}"), "nothing private", "a token or a key"),
        (append("README.md", PRIVATE_KEY), "nothing private", "README.md line .* a token or a key"),
        (write("plot.png", "\x89PNG tEXt Source /home/anna/x.py"), "nothing private", "plot.png line 1"),
        (append("results.json", '"/home/anna/runs"'), "nothing private", "a path of somebody's machine"),
        (append("results.json", r'"C:\\Users\\anna"'), "nothing private", "a path of somebody's machine"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_what_should_not_go_out_is_found(copy, change, what, complaint):
    change(copy)
    found = {name: text for name, text in complaints(copy).items() if name.startswith(what)}
    assert found and re.search(complaint, "".join(found.values())), complaints(copy)
    assert f"hf_{'a1B2' * 9}" not in str(complaints(copy))  # what is secret is not printed


def test_addresses_are_no_paths_and_words_are_not_private(copy):
    append("README.md", "https://example.org/home/page, path/to/home/x, hf_hub_download, C:\\ user\n")(copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"/home/anna": 99}
    write("tokenizer.json", json.dumps(tokenizer))(copy)
    assert not complaints(copy)


def test_code_that_is_not_ours_is_not_run(copy, tmp_path, capsys):
    append("modeling_sleep.py", f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")(copy)
    assert main(["verify", str(copy)]) == 1
    assert "not run" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cannot_compute_fails(copy, capsys):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    weights["model.layers.1.linear_attn.A_log"].fill_(float("nan"))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(copy)]) == 1
    assert re.search("^FAILED .*(not finite|NaN|not numbers)", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    "found, message",
    [
        ([1.0, 2.0], ""),
        ([1.0, 2.000001], ""),
        ([1.0, 2.001], "differ by"),
        ([1.0, float("nan")], "not numbers"),
        ([1.0], "got"),
        (None, "got None"),
    ],
)
def test_differences_are_seen(found, message):
    said = difference(None if found is None else torch.tensor(found), torch.tensor([1.0, 2.0]))
    assert message in said and bool(said) == bool(message)


def test_verify_says_what_is_not_a_model(copy, capsys):
    write("README.md", "---\ntags: [\n---\n")(copy)
    assert main(["verify", str(copy)]) == 2
    assert "The metadata of" in capsys.readouterr().err
    (copy / "config.json").unlink()
    assert main(["verify", str(copy)]) == 2
    assert "holds no saved model" in capsys.readouterr().err


# Version honesty.


def test_later_fields_are_kept(copy):
    set_config(dream_depth={"rem": 3}, modeling_sleep_version="9.0.0")(copy)
    config = AutoConfig.from_pretrained(copy)
    assert (config.dream_depth, config.modeling_sleep_version) == ({"rem": 3}, "9.0.0")
    assert AutoModelForCausalLM.from_pretrained(copy)(torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()
    export(copy, copy.parent / "out")
    config = json.loads((copy.parent / "out" / "config.json").read_text())
    assert (config["dream_depth"], config["modeling_sleep_version"]) == ({"rem": 3}, modeling_sleep.__version__)


# The command line.


@pytest.mark.parametrize("command", [[], ["export"], ["verify"], ["push"]])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and "Exit codes: 0" in said and len(said.splitlines()) > 8
