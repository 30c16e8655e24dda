"""Push, against a Hub on this machine (hub_server.py) and with the Hub's own client as it is."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from modeling_sleep import SleepForCausalLM
from modeling_sleep.hub_upload import clean_room
from modeling_sleep.hub_upload import push as push_module
from modeling_sleep.hub_upload.__main__ import main
from modeling_sleep.hub_upload.card import PLACE
from modeling_sleep.hub_upload.contents import code_files, list_files
from modeling_sleep.hub_upload.export import export
from modeling_sleep.hub_upload.push import HubError, explain_hub_errors, is_as_pushed, stamp


SHIPPED = Path(__file__).parents[1] / "examples" / "checkpoints" / "rule110-demo"
IDS = torch.randint(1, 36, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hub():
    with HubServer(tokens={"anna-writes": "anna", "bob-writes": "bob"}) as server:
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
    # From 5.24 on, transformers keeps one client, with the endpoint of its first use.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
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
    with mock.patch.dict("os.environ", HF_TOKEN=token), redirect_stdout(io.StringIO()) as said:
        push_module.push(folder, repo, **options)
    return said.getvalue()


def states(said):
    return dict(reversed(line.split()[:2]) for line in said.splitlines() if re.match("new|there|deleted|kept", line))


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].flip(0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# A push.


@pytest.mark.programs
def test_a_push_is_verified_and_one_commit(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "anna-writes")
    command = ["push", str(folder), "anna/first", "--message", "Good morning"]
    assert main([*command, "--private"]) == 0
    said = capsys.readouterr().out
    assert "ok      loads without the package" in said and "no such repository yet" in said
    assert states(said) == dict.fromkeys(list_files(folder), "new")
    assert hub.repositories["anna/first"].private
    assert len(hub.repositories["anna/first"].commits) == 2  # the first of all, and this
    assert hub.messages[hub.head("anna/first")] == "Good morning"
    expected = {name: path.read_bytes() for name, path in list_files(folder).items()}
    assert {name: content for name, content in hub.files("anna/first").items() if name[0] != "."} == expected
    card = expected["README.md"].decode()
    assert PLACE not in card and card.count('from_pretrained("anna/first", trust') == 2 and is_as_pushed(card)

    assert "all of it is there already" in push(folder, "anna/first")
    assert len(hub.repositories["anna/first"].commits) == 2


@pytest.mark.programs
def test_the_four_commands_of_the_page(hub, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "HUB.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python -m modeling_sleep.hub_upload (.+?)(?: +#.*)?$", page, re.M)
    assert [command.split()[0] for command in commands] == ["export", "verify", "push", "push"]
    export_, verify_, dry_run, push_ = (command.replace("USER/NAME", "anna/named").split() for command in commands)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED, "outputs/finetune-trainer")
    for command in (export_, verify_):
        assert main(command) == 0, capsys.readouterr().err

    # What would be sent is said, and nothing is written.
    before, seen = Path("my-model/README.md").read_bytes(), len(hub.requests)
    capsys.readouterr()
    assert "--dry-run" in dry_run and main(dry_run) == 0  # who only looks needs no token
    said = capsys.readouterr().out
    assert re.search(r"^new +model.safetensors +568,464 bytes$", said, re.M)
    assert said.endswith("nothing was written\n")
    assert not hub.writes(seen) and Path("my-model/README.md").read_bytes() == before

    monkeypatch.setenv("HF_TOKEN", "anna-writes")
    assert main(push_) == 0, capsys.readouterr().err
    assert hub.files("anna/named").keys() == {".gitattributes", *list_files(Path("my-model"))}


def test_nothing_is_sent_that_fails_a_check(hub, folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "anna-writes")
    (folder / "training_args.bin").write_bytes(b"")
    seen = len(hub.requests)
    assert main(["push", str(folder), "anna/unsafe"]) == 1
    assert "nothing is sent" in capsys.readouterr().err and len(hub.requests) == seen


def test_code_weights_and_pickles_that_are_gone_are_deleted(hub, folder):
    push(folder, "anna/again")
    first = hub.head("anna/again")
    stale = ["old_sleep.py", "pytorch_model.bin", "chat_template.jinja", "additional_chat_templates/tools.jinja"]
    others = ["thesis.pdf", "loss[1].png", "onnx/model.bin"]
    hub.edit("anna/again", dict.fromkeys(stale + others, b"x"))
    change_weights(folder)
    said = states(push(folder, "anna/again"))
    assert {name for name, state in said.items() if state == "deleted"} == set(stale)
    files = hub.files("anna/again")
    assert files.keys() == {".gitattributes", *others, *list_files(folder)}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.repositories["anna/again"].commits) == 4  # the first of all, two pushes, one edit
    assert hub.files("anna/again", first)["model.safetensors"] != files["model.safetensors"]  # is there still


def test_what_should_be_private_is_not_made_public(hub, folder):
    push(folder, "anna/public")
    change_weights(folder)
    before = hub.head("anna/public")
    with pytest.raises(ValueError, match="anna/public is there already, and everybody can see it"):
        push(folder, "anna/public", private=True)
    assert hub.head("anna/public") == before
    push(folder, "anna/secret", private=True)
    push(folder, "anna/secret", private=True, message="again")


def test_a_branch_begins_as_main(hub, folder):
    push(folder, "anna/branches")
    before = hub.head("anna/branches")
    change_weights(folder)
    push(folder, "anna/branches", revision="v2")
    files, v2 = hub.files("anna/branches"), hub.files("anna/branches", "v2")
    assert [name for name in v2 if v2[name] != files.get(name)] == ["model.safetensors"]
    assert hub.head("anna/branches") == before


# Cards that were edited on the Hub.


def test_an_edited_card_is_kept_and_said(hub, folder):
    push(folder, "anna/card")
    edited = hub.files("anna/card")["README.md"].replace(b"# rule110-demo", b"# My life's work")
    hub.edit("anna/card", {"README.md": edited})
    change_weights(folder)
    said = push(folder, "anna/card")
    assert "kept    README.md was edited on the Hub" in said
    assert hub.files("anna/card")["README.md"] == edited
    assert hub.files("anna/card")["model.safetensors"] == (folder / "model.safetensors").read_bytes()

    push(folder, "anna/card", force_card=True)
    assert is_as_pushed(hub.files("anna/card")["README.md"].decode())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nBy hand, but here.\n")
    push(folder, "anna/card")  # what is there is ours, so no flag is needed
    assert b"By hand, but here" in hub.files("anna/card")["README.md"]


def test_a_stamp_holds_as_long_as_nothing_changes():
    card = stamp("---\na: 1\n---\n\nText.\n\n\n")
    assert is_as_pushed(card) and stamp(card) == card
    for edited in (card.replace("Text", "text"), card + "more", card.replace("\n", "\r\n"), card[:-80], ""):
        assert not is_as_pushed(edited)


def test_a_card_edited_while_we_push_is_not_lost(hub, folder, monkeypatch):
    push(folder, "anna/race")
    change_weights(folder)
    edits = []

    def look_up(*arguments):
        found = push_module_look_up(*arguments)
        edits.append(hub.edit("anna/race", {"README.md": b"---\nlicense: mit\n---\nEdited meanwhile.\n"}))
        return found

    push_module_look_up = push_module.look_up
    monkeypatch.setattr(push_module, "look_up", look_up)
    with pytest.raises(HubError, match="committed to the repository meanwhile"):
        push(folder, "anna/race")
    assert [hub.head("anna/race")] == edits


# What goes wrong.


@pytest.mark.parametrize(
    "repo, token, message",
    [
        ("anna/forbidden", "bob-writes", "This token may not write there.*rights to create"),
        ("anna/forbidden", "made-up", "does not know this token"),
        ("anna/theirs", "bob-writes", "This token may not write there.*rights to write"),
    ],
)
def test_who_may_not_write_is_told(hub, folder, repo, token, message):
    if "anna/theirs" not in hub.repositories:
        push(folder, "anna/theirs")
    before = hub.head("anna/theirs")
    change_weights(folder)
    with pytest.raises(HubError, match=message):
        push(folder, repo, token=token)
    assert "anna/forbidden" not in hub.repositories and hub.head("anna/theirs") == before


def test_what_can_be_known_at_once_is_said_before_the_checks(hub, exported, capsys):
    seen = len(hub.requests)
    assert main(["push", str(exported), "anna/first"]) == 1
    said, error = capsys.readouterr()
    assert "No token was found. Log in" in error and not said
    for name in (f"{hub.endpoint}/anna/first", "anna/for/bidden", "first"):
        assert main(["push", str(exported), name]) == 2
        assert "A name looks like USER/NAME, without https://" in capsys.readouterr().err
    assert len(hub.requests) == seen


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="could not be reached.*unset the `HF_HUB_OFFLINE`"):
        push(folder, "anna/offline")


def test_a_hub_that_is_not_there_is_said(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="could not be reached"):
        push(folder, "anna/nowhere")


def hub_error(status, message):
    """What the Hub's client raises for such an answer."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return huggingface_hub.errors.HfHubHTTPError(message, response=response)


def test_the_reason_is_said_and_signatures_are_not():
    message = r"broke off.*Run the command again.*503 for https://s3.example/lfs/x\)$"
    with pytest.raises(HubError, match=message), explain_hub_errors():
        raise RuntimeError("503 for https://s3.example/lfs/x?X-Signature=abc&Expires=1\nMore")
    refused = hub_error(409, "a repository of this name is there")
    with pytest.raises(HubError, match=r"^The Hub refused\. \(.*a repository of this name"), explain_hub_errors():
        raise refused
    with pytest.raises(HubError, match="^The Hub could not be reached, or broke off"), explain_hub_errors():
        raise hub_error(503, "busy")
    for ours in (ValueError("of ours"), FileNotFoundError("of ours")):
        with pytest.raises(type(ours), match="^of ours$"), explain_hub_errors():
            raise ours


@pytest.mark.programs
def test_what_was_downloaded_is_verified_and_can_go_to_another_name(hub, folder, tmp_path, capsys):
    """As `hf download --local-dir` leaves it, with its own notes in the folder."""
    push(folder, "anna/fetched")
    out = tmp_path / "fetched"
    huggingface_hub.snapshot_download("anna/fetched", local_dir=out)
    assert (out / ".cache" / "huggingface").is_dir()
    assert main(["verify", str(out)]) == 0, capsys.readouterr().out
    assert main(["export", str(out), str(tmp_path / "exported")]) == 0
    assert ".cache" not in capsys.readouterr().out

    push(out, "bob/fork", token="bob-writes")
    card = hub.files("bob/fork")["README.md"].decode()
    assert card.count('from_pretrained("bob/fork", trust') == 2 and "anna/" not in card and is_as_pushed(card)
    assert not [name for name in hub.files("bob/fork") if name.startswith(".cache")]


# Strangers: no package, an empty cache, only the repository's name.

STRANGER = """
import json
import torch, transformers
from safetensors.torch import load_file, save_file

ids = load_file(sys.argv[1])["ids"]
logits = {}
for name, (repo, revision) in json.loads(sys.argv[3]).items():
    options = {"trust_remote_code": True, "revision": revision}
    assert transformers.AutoTokenizer.from_pretrained(repo, **options)("0 1 <query>")["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(repo, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        logits[name] = model(ids, sleep_passes=3).logits
save_file(logits, sys.argv[2])
"""


@pytest.mark.programs
def test_a_stranger_needs_the_name_alone(hub, folder, tmp_path):
    """From the Hub, unlike from a folder, transformers asks of every file whether all that it imports is there."""

    def logits():
        with torch.no_grad():
            return SleepForCausalLM.from_pretrained(folder)(IDS, sleep_passes=3).logits

    expected = {"pinned": logits()}
    push(folder, "anna/stranger")
    wanted = {"pinned": ("anna/stranger", hub.head("anna/stranger")), "newest": ("anna/stranger", "main")}
    change_weights(folder)
    push(folder, "anna/stranger")
    expected["newest"] = logits()
    model, tokenizer = SleepForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.push_to_hub("anna/by-model", private=True, token="anna-writes")  # as Trainer does, too
    tokenizer.push_to_hub("anna/by-model", token="anna-writes")
    expected["by itself"], wanted["by itself"] = logits(), ("anna/by-model", "main")
    files = hub.files("anna/by-model")
    assert hub.repositories["anna/by-model"].private
    assert {name: files[name] for name in code_files()} == {n: p.read_bytes() for n, p in code_files().items()}

    ids, found = tmp_path / "ids.safetensors", tmp_path / "found.safetensors"
    save_file({"ids": IDS}, ids)
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "anna-writes"}
    clean_room.run(STRANGER, ids, found, json.dumps(wanted), HF_HUB_DISABLE_XET="1", **environment)
    found = load_file(found)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert not torch.allclose(found["pinned"], found["newest"])
