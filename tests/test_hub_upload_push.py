"""Push and pull, against a Hub on this machine (hub_server.py) and with the Hub's own client as it is."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import Account, HubServer
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.hub_upload import clean_room
from modeling_sleep.hub_upload import push as push_module
from modeling_sleep.hub_upload.__main__ import main
from modeling_sleep.hub_upload.card import PLACE
from modeling_sleep.hub_upload.contents import code_files, list_files
from modeling_sleep.hub_upload.export import export
from modeling_sleep.hub_upload.hub import HubError, explanation
from modeling_sleep.hub_upload.pull import pull


SHIPPED = Path(__file__).parents[1] / "examples" / "checkpoints" / "rule110-demo"
IDS = torch.randint(1, 36, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hub():
    tokens = {"anna-writes": Account("anna"), "anna-reads": Account("anna", "read"), "bob-writes": Account("bob")}
    with HubServer(tokens) as server:
        yield server


@pytest.fixture(autouse=True)
def online(hub, monkeypatch, tmp_path):
    """The client of this process looks at our Hub, without a token, for one test: elsewhere tests are offline."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    yield
    huggingface_hub.utils.close_session()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "rule110-demo"
    export(SHIPPED, out)
    return out


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "folder"))


def push(folder, repo, token="anna-writes", **options):
    """What the command does behind the checks; returns what it says."""
    said = []
    push_module.push(folder, repo, token=token, say=said.append, **options)
    return "\n".join(said)


def states(said):
    return dict(reversed(line.split()[:2]) for line in said.splitlines() if re.match("new|changed|same|deleted", line))


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def run(program, *arguments, hub, home, token=None, isolated=False):
    """A program in a process of its own, whose Hub is ours and whose cache is empty."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", **({"HF_TOKEN": token} if token else {})}
    code = textwrap.dedent(program)
    command = [sys.executable, *(["-I"] if isolated else []), "-c", code, *map(str, arguments)]
    home.mkdir(exist_ok=True)
    process = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


# A push.


def test_a_push_is_verified_and_one_commit(hub, exported, capsys):
    assert (
        main(["push", str(exported), "first", "--private", "--token", "anna-writes", "--message", "Good morning"]) == 0
    )
    said, bars = capsys.readouterr()
    assert "ok      loads without the package" in said and "no such repository yet" in said
    assert re.search(r"model.safetensors: 100%.* 568k/568k", bars)
    assert set(states(said).values()) == {"new"} and states(said).keys() == list_files(exported).keys()
    api = HfApi(token="anna-writes")
    assert [commit.title for commit in api.list_repo_commits("anna/first")] == ["Good morning", "initial commit"]
    assert api.model_info("anna/first").private
    assert set(api.list_repo_files("anna/first")) == {".gitattributes", *list_files(exported)}

    files = hub.files("anna/first")
    for name, path in list_files(exported).items():
        if name != "README.md":
            assert files[name] == path.read_bytes(), name
    card, local = files["README.md"].decode(), (exported / "README.md").read_text()
    assert PLACE in local and PLACE not in card and 'from_pretrained("anna/first"' in card
    assert push_module.STAMP.sub("", card).strip() == local.replace(PLACE, "anna/first").strip()

    seen = len(hub.requests)
    assert "all of it is there already" in push(exported, "anna/first")
    assert not hub.writes(seen)


def test_the_four_commands_of_the_readme(hub, tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python -m modeling_sleep.hub_upload (.+?)(?: +#.*)?$", readme, re.M)
    assert [command.split()[0] for command in commands] == ["export", "verify", "push", "push"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "anna-writes")
    shutil.copytree(SHIPPED, "outputs/finetune-trainer")
    for command in commands:
        assert "anna/named" not in hub.repositories  # until the last
        assert main(command.replace("USER/NAME", "anna/named").split()) == 0, capsys.readouterr().err
    assert hub.files("anna/named").keys() == {".gitattributes", *list_files(Path("my-model"))}


def test_nothing_is_sent_that_fails_a_check(hub, folder, capsys):
    (folder / "training_args.bin").write_bytes(b"")
    seen = len(hub.requests)
    assert main(["push", str(folder), "anna/unsafe", "--token", "anna-writes"]) == 1
    assert "nothing was sent" in capsys.readouterr().err and len(hub.requests) == seen


def test_a_dry_run_writes_nothing(hub, folder):
    seen = len(hub.requests)
    said = push(folder, "anna/dry", dry_run=True)
    assert re.search(r"^new +model.safetensors +568,464 bytes$", said, re.M)
    assert re.search(r"^dry run: 18 files, [\d,]+ bytes would go up; nothing was written$", said, re.M)
    assert not hub.writes(seen) and "anna/dry" not in hub.repositories
    push(folder, "anna/dry")
    change_weights(folder)
    (folder / "results.json").unlink()
    (folder / "plot.png").write_bytes(b"\x89PNG\0")
    seen = len(hub.requests)
    # Who only looks needs no token.
    found = states(push(folder, "anna/dry", token=None, dry_run=True))
    assert (found["model.safetensors"], found["plot.png"], found["config.json"]) == ("changed", "new", "same")
    assert not hub.writes(seen)


def test_only_what_changed_is_sent_and_old_code_goes(hub, folder):
    push(folder, "anna/again")
    first = hub.repositories["anna/again"].find("main")
    hub.edit("anna/again", "old_sleep.py", b"x = 1\n")
    hub.edit("anna/again", "pytorch_model.bin", b"x")
    hub.edit("anna/again", "thesis.pdf", b"x")
    hub.edit("anna/again", "chat_template.jinja", b"of an earlier tokenizer")
    hub.edit("anna/again", "additional_chat_templates/tools.jinja", b"of an earlier tokenizer")
    hub.edit("anna/again", "loss.png", b"x")
    change_weights(folder)
    seen = len(hub.requests)
    said = push(folder, "anna/again")
    assert {name: state for name, state in states(said).items() if state != "same"} == {
        "model.safetensors": "changed", "old_sleep.py": "deleted", "pytorch_model.bin": "deleted",
        "chat_template.jinja": "deleted", "additional_chat_templates/tools.jinja": "deleted",
    }  # fmt: skip
    assert "kept    thesis.pdf" in said and len(hub.uploads(seen)) == 1
    files = hub.files("anna/again")
    assert {"thesis.pdf", "loss.png", ".gitattributes"} <= files.keys() and not {
        "old_sleep.py",
        "pytorch_model.bin",
    } & files.keys()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(HfApi().list_repo_commits("anna/again")) == 9  # two pushes, six edits, the first of all
    # What was there before is there still, under its commit.
    assert hub.files("anna/again", first.oid)["model.safetensors"] != files["model.safetensors"]


def test_what_should_be_private_is_not_made_public(hub, folder):
    push(folder, "anna/public")
    before = hub.repositories["anna/public"].branches["main"]
    change_weights(folder)
    with pytest.raises(ValueError, match="anna/public is there already, and everybody can see it"):
        push(folder, "anna/public", private=True)
    assert hub.repositories["anna/public"].branches["main"] == before
    push(folder, "anna/secret", private=True)
    push(folder, "anna/secret", private=True, message="again")


def test_who_does_not_say_gets_the_default_of_the_account(hub, folder, monkeypatch):
    monkeypatch.setattr(hub, "private_by_default", True)
    push(folder, "anna/by-default")
    assert hub.repositories["anna/by-default"].private


def test_branches(hub, folder):
    push(folder, "anna/branches")
    assert "made the branch v1, equal to main" in push(folder, "anna/branches", revision="v1")
    change_weights(folder)
    push(folder, "anna/branches", revision="v2")
    main_files, v2 = hub.files("anna/branches"), hub.files("anna/branches", "v2")
    assert [name for name in v2 if v2[name] != main_files[name]] == ["model.safetensors"]
    assert {branch.name for branch in HfApi().list_repo_refs("anna/branches").branches} == {"main", "v1", "v2"}


# Cards that were edited on the Hub.


def test_an_edited_card_is_kept_and_said(hub, folder):
    push(folder, "anna/card")
    edited = hub.files("anna/card")["README.md"].replace(b"# rule110-demo", b"# My life's work")
    hub.edit("anna/card", "README.md", edited)
    change_weights(folder)
    said = push(folder, "anna/card")
    assert "kept    README.md was edited on the Hub" in said and states(said)["model.safetensors"] == "changed"
    assert hub.files("anna/card")["README.md"] == edited

    said = push(folder, "anna/card", force_card=True)
    assert "README.md was edited on the Hub, or not made by this tool: it is overwritten" in said
    card = hub.files("anna/card")["README.md"].decode()
    assert "# rule110-demo" in card and push_module.is_as_pushed(card)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nBy hand, but here.\n")
    assert states(push(folder, "anna/card"))["README.md"] == "changed"  # ours, so no flag is needed


@pytest.mark.parametrize("card", ["---\nlicense: mit\n---\n", "", "---\r\nlicense: mit\r\n---\r\nA card.\r\n"])
def test_a_card_of_others_is_kept(hub, folder, card):
    repo = f"anna/others-{len(card)}"
    HfApi(token="anna-writes").create_repo(repo)
    hub.edit(repo, "README.md", card.encode())
    assert "kept    README.md" in push(folder, repo)
    assert hub.files(repo)["README.md"] == card.encode()


def test_a_stamp_holds_as_long_as_nothing_changes():
    card = push_module.stamp("---\na: 1\n---\n\nText.\n\n\n")
    assert push_module.is_as_pushed(card) and push_module.stamp(card) == card
    for edited in (card.replace("Text", "text"), card + "more", card.replace("\n", "\r\n"), card[:-80], ""):
        assert not push_module.is_as_pushed(edited)


def test_a_card_edited_while_we_push_is_not_lost(hub, folder):
    push(folder, "anna/race")
    change_weights(folder)
    edits = []

    def say(line):
        if not edits:  # after we have looked, before we commit
            edits.append(hub.edit("anna/race", "README.md", b"---\nlicense: mit\n---\nEdited meanwhile.\n"))

    with pytest.raises(HubError, match="committed to the repository meanwhile.* Nothing was published"):
        push_module.push(folder, "anna/race", token="anna-writes", say=say)
    assert hub.repositories["anna/race"].branches["main"] == edits[0]


# What goes wrong.


@pytest.mark.parametrize(
    "repo, token, message",
    [
        ("anna/forbidden", "anna-reads", "This token may not write there"),
        ("anna/forbidden", "bob-writes", "This token may not write there"),
        ("anna/forbidden", "made-up", "does not know this token"),
        ("anna/forbidden", None, "No token was found. Log in"),
        ("anna/theirs", "bob-writes", "This token may not write there"),
        ("anna/for/bidden", "anna-writes", "Repo id must"),
    ],
)
def test_who_may_not_write_is_told(hub, folder, repo, token, message):
    if "anna/theirs" not in hub.repositories:
        HfApi(token="anna-writes").create_repo("anna/theirs", private=True)
    with pytest.raises((ConnectionError, ValueError), match=message):
        push(folder, repo, token=token)
    assert "anna/forbidden" not in hub.repositories and hub.files("anna/theirs").keys() == {".gitattributes"}


def test_what_can_be_known_at_once_is_said_before_the_checks(hub, exported, capsys):
    seen = len(hub.requests)
    assert main(["push", str(exported), "anna/first"]) == 1
    said, error = capsys.readouterr()
    assert "No token was found. Log in" in error and not said
    with pytest.raises(SystemExit) as end:
        main(["push", str(exported), f"{hub.endpoint}/anna/first", "--token", "anna-writes"])
    assert end.value.code == 2 and "A name looks like USER/NAME" in capsys.readouterr().err
    assert len(hub.requests) == seen


def test_the_reason_of_a_broken_upload_is_said_and_signatures_are_not():
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = OSError("Server error '503' for url 'https://s3.example/lfs/x?X-Signature=abc&Expires=1'\nMore")
    said = explanation(error)
    assert "to the Hub: Server error '503' for url 'https://s3.example/lfs/x'. Run the command again" in said
    assert not explanation(ValueError("of ours"))


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        push(folder, "anna/offline")


def test_a_hub_that_is_not_there_is_said(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="could not be reached"):
        push(folder, "anna/nowhere")


@pytest.fixture
def sharded(tmp_path):
    torch.manual_seed(0)
    model = SleepForCausalLM(SleepConfig.from_preset("tiny"))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    for name in ("README.md", "results.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture
def impatient(monkeypatch):
    """The client waits for seconds before it tries again; here it does not."""

    class Time:
        sleep = staticmethod(lambda seconds: None)

    monkeypatch.setattr(huggingface_hub.utils._http, "time", Time)


def hash_of(path):
    return push_module.file_hash(path, is_lfs=True)


def test_a_cut_connection_is_taken_up_again(hub, folder, impatient):
    oid = hash_of(folder / "model.safetensors")
    hub.cut[oid], seen = 2, len(hub.requests)
    push(folder, "anna/cut")
    assert hub.uploads(seen).count(oid) == 3
    assert hub.files("anna/cut")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_broken_push_publishes_nothing_and_goes_on_where_it_was(hub, sharded, impatient, tmp_path):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    broken = hash_of(shards[1])
    hub.cut[broken] = 6
    with pytest.raises(ConnectionError, match="broke off.*files that have arrived.*Nothing was published"):
        push(sharded, "anna/broken")
    assert hub.files("anna/broken").keys() == {".gitattributes"}
    assert HfApi().list_repo_files("anna/broken") == [".gitattributes"]  # nor has it for those who look

    arrived, seen = set(hub.repositories["anna/broken"].lfs), len(hub.requests)
    assert broken not in arrived and arrived
    push(sharded, "anna/broken")
    assert set(hub.uploads(seen)) == {hash_of(shard) for shard in shards} - arrived
    files = hub.files("anna/broken")
    assert all(files[shard.name] == shard.read_bytes() for shard in shards)

    # One file again: the pieces and their index go with the commit that brings it.
    export(sharded, tmp_path / "whole")
    push(tmp_path / "whole", "anna/broken")
    names = hub.files("anna/broken").keys()
    assert {name for name in names if "safetensors" in name} == {"model.safetensors"}


def test_a_commit_that_fails_publishes_nothing(hub, folder):
    push(folder, "anna/fails")
    before = hub.repositories["anna/fails"].branches["main"]
    change_weights(folder)
    (folder / "results.json").write_text("{}")
    hub.fail_commits = [(403, "Private repository storage limit reached"), (500, "Internal error")]
    with pytest.raises(HubError, match="The Hub says: .*storage limit reached.*Nothing was published"):
        push(folder, "anna/fails")
    with pytest.raises(ConnectionError, match="The Hub answered 500.*Run the command again"):
        push(folder, "anna/fails")
    assert hub.repositories["anna/fails"].branches["main"] == before
    seen = len(hub.requests)
    push(folder, "anna/fails")
    assert hub.uploads(seen) == []  # the weights had arrived
    assert hub.files("anna/fails")["results.json"] == b"{}"


# Pull.


def test_a_pull_is_verified(hub, exported, tmp_path, capsys):
    push(exported, "anna/pull")
    commit = hub.repositories["anna/pull"].branches["main"]
    hub.edit("anna/pull", "config.json", b"{}")
    out = tmp_path / "pulled"
    assert main(["pull", "anna/pull", str(out), "--revision", commit]) == 0
    said = capsys.readouterr().out
    assert f"fetched anna/pull at commit {commit}" in said and "ok      loads without the package" in said
    for name, path in list_files(exported).items():
        assert name == "README.md" or (out / name).read_bytes() == path.read_bytes()
    assert list_files(out).keys() == {".gitattributes", *list_files(exported)}
    assert "all of it is there already" not in push(out, "anna/pull")  # config.json was edited
    assert hub.files("anna/pull") == hub.files("anna/pull", commit)  # what was pulled can be pushed

    assert main(["pull", "anna/pull", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_was_pulled_goes_to_another_name(hub, exported, tmp_path):
    push(exported, "anna/original")
    pull("anna/original", tmp_path / "out", token="anna-writes")
    push(tmp_path / "out", "bob/fork", token="bob-writes")
    card = hub.files("bob/fork")["README.md"].decode()
    assert card.count('from_pretrained("bob/fork", trust') == 2 and "anna/original" not in card
    assert push_module.is_as_pushed(card)


def test_a_pull_that_broke_off_goes_on(hub, folder, tmp_path, impatient):
    push(folder, "anna/far")
    weights = hash_of(folder / "model.safetensors")
    hub.cut[weights] = 100
    with pytest.raises(HubError, match="could not be reached"):
        pull("anna/far", tmp_path / "out", token="anna-writes")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    there, seen = list_files(tmp_path / "out"), len(hub.requests)
    HfApi(token="anna-writes").create_repo("anna/nothing")
    with pytest.raises(ValueError, match="which anna/nothing does not have"):
        pull("anna/nothing", tmp_path / "out", token="anna-writes")
    hub.cut.clear()
    pull("anna/far", tmp_path / "out", token="anna-writes")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    fetched = {path.rpartition("/")[2] for method, path in hub.requests[seen:] if method == "GET"}
    assert "model.safetensors" in fetched and not fetched & there.keys()
    assert list_files(tmp_path / "out").keys() == {".gitattributes", *list_files(folder)}


def test_a_pull_of_what_is_not_for_us_says_so(hub, folder, tmp_path, capsys):
    push(folder, "anna/gated")
    push(folder, "anna/private", private=True)
    hub.repositories["anna/gated"].gated = True
    assert set(HfApi().list_repo_files("anna/gated")) > {"config.json"}  # everybody may know of it

    def refused(message, repo, *flags):
        assert main(["pull", repo, str(tmp_path / "out"), *flags]) == 1
        assert re.search(message, capsys.readouterr().err)

    refused("gated, and this account has no access", "anna/gated")
    refused("gated, and this account has no access", "anna/gated", "--token", "bob-writes")
    refused("no such repository, or it is private", "anna/private")
    refused("no such repository, or it is private", "anna/private", "--token", "bob-writes")
    refused("no such repository", "anna/never-made", "--token", "anna-writes")
    refused("no such revision", "anna/gated", "--revision", "v9", "--token", "anna-writes")
    refused("does not know this token", "anna/gated", "--token", "made-up")
    hub.repositories["anna/gated"].readers.add("bob")
    pull("anna/gated", tmp_path / "bobs", token="bob-writes")
    assert (tmp_path / "bobs" / "model.safetensors").exists()


# Strangers: no package, an empty cache, only the repository's name.

TRAINER = """
    import sys, torch
    from pathlib import Path
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer, Trainer, TrainingArguments
    from modeling_sleep import SleepForCausalLM
    shipped, out = map(Path, sys.argv[1:])
    model = SleepForCausalLM.from_pretrained(shipped)
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(1, 36, (8, 30))]
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        push_to_hub=True, hub_model_id="anna/by-trainer", save_strategy="steps", save_steps=1, disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(load_file(out / "ids.safetensors")["ids"], sleep_passes=3).logits
    save_file({"logits": logits}, out / "trained.safetensors")
    model.push_to_hub("anna/by-model", private=True)
    tokenizer.push_to_hub("anna/by-model")
"""

STRANGER = """
    import json, runpy, sys
    from pathlib import Path
    site, clean_room, out, wanted = sys.argv[1:]
    sys.path.insert(0, site)
    sys.meta_path.insert(0, runpy.run_path(clean_room)["HidePackage"])
    import torch, transformers
    from safetensors.torch import load_file, save_file
    ids = load_file(Path(out) / "ids.safetensors")["ids"]
    logits = {}
    for name, (repo, revision) in json.loads(wanted).items():
        options = {"trust_remote_code": True, "revision": revision}
        tokenizer = transformers.AutoTokenizer.from_pretrained(repo, **options)
        assert tokenizer("0 1 <query>")["input_ids"]
        model = transformers.AutoModelForCausalLM.from_pretrained(repo, **options)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            logits[name] = model(ids, sleep_passes=3).logits
    save_file(logits, Path(out) / "strangers.safetensors")
"""


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """What Trainer and the model push by themselves, from a process with the package; its folder."""
    out = tmp_path_factory.mktemp("trained")
    save_file({"ids": IDS}, out / "ids.safetensors")
    run(TRAINER, SHIPPED, out, hub=hub, home=out / "home", token="anna-writes")
    return out


def logits_of(folder):
    with torch.no_grad():
        return SleepForCausalLM.from_pretrained(folder)(IDS, sleep_passes=3).logits


def test_a_stranger_needs_the_name_alone(hub, folder, trained):
    push(folder, "anna/pinned")
    commits = [hub.repositories["anna/pinned"].branches["main"]]
    expected = {"first": logits_of(folder)}
    change_weights(folder)
    push(folder, "anna/pinned")
    HfApi(token="anna-writes").create_tag("anna/pinned", tag="v2")
    expected |= {"newest": logits_of(folder), "tag": logits_of(folder)}
    by_trainer = load_file(trained / "trained.safetensors")["logits"]
    expected |= {"trainer": by_trainer, "model": by_trainer}
    wanted = {
        "first": ("anna/pinned", commits[0]),
        "newest": ("anna/pinned", "main"),
        "tag": ("anna/pinned", "v2"),
        "trainer": ("anna/by-trainer", None),
        "model": ("anna/by-model", None),
    }
    site, room = Path(transformers.__file__).parents[1], Path(clean_room.__file__)
    arguments = (site, room, trained, json.dumps({name: [r, v or "main"] for name, (r, v) in wanted.items()}))
    run(STRANGER, *arguments, hub=hub, home=trained / "empty", token="anna-reads", isolated=True)
    found = load_file(trained / "strangers.safetensors")
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.allclose(found["first"], found["newest"])


def test_what_trainer_pushes_has_all_the_code(hub, trained):
    assert hub.repositories["anna/by-model"].private
    for repo in ("anna/by-trainer", "anna/by-model"):
        files = hub.files(repo)
        assert {name: files[name] for name in code_files()} == {n: p.read_bytes() for n, p in code_files().items()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= files.keys()
        assert json.loads(files["generation_config.json"])["use_cache"]  # Trainer turns the config's off


def test_what_trainer_pushed_is_mended_by_a_push(hub, trained, tmp_path):
    """Its pickle goes; its card, which is not ours, stays until we are told."""
    assert "training_args.bin" in hub.files("anna/by-trainer")
    export(trained / "trainer", tmp_path / "out")
    said = push(tmp_path / "out", "anna/by-trainer", force_card=True)
    assert states(said)["training_args.bin"] == "deleted"
    files = hub.files("anna/by-trainer")
    assert files.keys() == {".gitattributes", *list_files(tmp_path / "out")}
    assert json.loads(files["config.json"])["use_cache"]
