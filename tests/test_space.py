"""The page of examples/space: what it says, shows, saves and refuses, by gradio's client and in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from talkers import free_port, make_model, make_taught, make_tokenizer
from wheels import build_wheel


REPOSITORY = Path(__file__).parents[1]
SPACE = REPOSITORY / "examples" / "space"
TOKENS = 6
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def url(model, tokenizer, tmp_path_factory):
    """Of the page, served on loopback."""
    pytest.importorskip("gradio", reason='needs `pip install ".[space]"`')
    pytest.importorskip("matplotlib", reason='needs `pip install ".[space]"`')
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        environment.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        from examples.space.app import make_page

        page = make_page(model, tokenizer, max_new_tokens=TOKENS, do_sample=False)
        page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=free_port())
        yield page.local_url
        page.close()


@pytest.fixture
def visit(url, tmp_path):
    """A visitor, with a session of their own."""
    from gradio_client import Client

    return lambda: Client(url, verbose=False, download_files=tmp_path, analytics_enabled=False)


def counters_of(table: str) -> dict[str, str]:
    return dict(re.findall(r"\| ([a-z ]+) \| (.*?) \|", table))


def said_last(chat: list[dict]) -> str:
    content = chat[-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_visitors_have_conversations_of_their_own(visit, model, tokenizer):
    """Each is told what a conversation says, and sees what it remembers."""
    from modeling_sleep.memory.conversation import Conversation

    visitors = {}
    for who in ("w1", "w2"):
        visitors[who] = visit(), Conversation(model, tokenizer, max_new_tokens=TOKENS, do_sample=False), []
    for turn in (1, 2):
        for who, (client, conversation, chat) in visitors.items():
            text, chat[:], table, picture = client.predict(f"{who} w{turn + 4}", chat, api_name="/say")
            assert said_last(chat) == conversation.say(f"{who} w{turn + 4}")
            assert (text, len(chat)) == ("", 2 * turn)
            memory = conversation.memory
            assert counters_of(table) == {
                "tokens read": str(memory.tokens),
                "turns": str(turn),
                "sleeps": str(memory.sleeps),
                "in the window": f"{memory.state.stored} of 8 tokens",
                "memory": f"{memory.nbytes:,} bytes",
            }
            assert Path(picture).read_bytes().startswith(PNG)


def test_nap_save_forget_load(visit, model):
    from modeling_sleep import SleepMemory

    client = visit()
    assert counters_of(client.predict(api_name="/open")[0])["tokens read"] == "0"
    _, chat, before, _ = client.predict("w1 w2 w3", [], api_name="/say")
    table, _ = client.predict(api_name="/nap")
    assert counters_of(table)["in the window"] == "0 of 8 tokens"
    assert int(counters_of(table)["sleeps"]) == int(counters_of(before)["sleeps"]) + 1
    saved = client.predict(api_name="/save")
    saved = saved["value"] if isinstance(saved, dict) else saved
    assert str(SleepMemory.load(saved, model).tokens) == counters_of(table)["tokens read"]
    _, expected, _, _ = client.predict("w4", chat, api_name="/say")

    chat, _, forgotten, picture = client.predict(api_name="/forget")
    assert (chat, counters_of(forgotten)["tokens read"], picture) == ([], "0", None)
    from gradio_client import handle_file

    chat, loaded, picture = client.predict(handle_file(saved), api_name="/load")
    assert counters_of(loaded) == counters_of(table)
    assert "Loaded: 1 turns" in said_last(chat) and Path(picture).read_bytes().startswith(PNG)
    assert said_last(client.predict("w4", chat, api_name="/say")[1]) == said_last(expected)


def test_errors_are_shown_and_cost_nothing(visit, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    client = visit()
    with pytest.raises(AppError, match="nothing in the window to sleep over"):
        client.predict(api_name="/nap")
    with pytest.raises(AppError, match="nothing to save yet"):
        client.predict(api_name="/save")
    _, _, table, _ = client.predict("w1", [], api_name="/say")
    (tmp_path / "foreign.memory").write_text("no memory")
    with pytest.raises(AppError, match=r"^foreign\.memory is truncated, or no safetensors file"):
        client.predict(handle_file(tmp_path / "foreign.memory"), api_name="/load")
    assert counters_of(client.predict("w2", [], api_name="/say")[2])["turns"] == "2"


def test_the_command_says_what_is_missing(tmp_path):
    pytest.importorskip("gradio", reason='needs `pip install ".[space]"`')
    command, environment = [sys.executable, str(SPACE / "app.py")], {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("MODEL", None)
    for arguments, code, message in (([], 2, "MODEL"), ([str(tmp_path / "none")], 1, "none")):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == code and message in done.stderr


def test_the_page_begins_with_a_pretrained_model_and_its_memory(tokenizer, tmp_path, monkeypatch):
    """As a Space says it, by the environment; every turn begins a window, as in the chat."""
    pytest.importorskip("gradio", reason='needs `pip install ".[space]"`')
    pytest.importorskip("matplotlib", reason='needs `pip install ".[space]"`')
    from examples.space.app import Session, parse_arguments
    from modeling_sleep.memory.begin import begin
    from modeling_sleep.memory.conversation import Conversation

    base, memory = make_taught(tmp_path, tokenizer)
    for name, value in {"MODEL": base, "MEMORY": memory, "NAP_BEFORE_TURNS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["app.py", "--max-new-tokens", "2"])
    model, tokenizer, options = begin(parse_arguments())
    session = Session(model, tokenizer, **options)
    conversation = Conversation(model, tokenizer, nap_before_turns=True, max_new_tokens=2, do_sample=False)
    for text in ("w1", "w2 w3"):
        assert list(session.say(text))[-1] == conversation.say(text)
    assert session.conversation.memory.sleeps == conversation.memory.sleeps
    assert Path(session.picture()).read_bytes().startswith(PNG)


def test_the_space_asks_for_what_the_package_asks_for():
    """Its own requirements are the package's and those of the extra, but for gradio, which its metadata name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(x).name: Requirement(x) for x in project["dependencies"]}
    wanted |= {Requirement(x).name: Requirement(x) for x in project["optional-dependencies"]["space"]}
    card = SpaceCard.load(SPACE / "README.md").data
    assert wanted.pop("gradio").specifier.contains(card.sdk_version)
    lines = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert {Requirement(line) for line in lines} == set(wanted.values())
    assert card.sdk == "gradio" and (SPACE / card.app_file).is_file()
    assert len(card.short_description) <= 60  # more is refused by the Hub


@pytest.mark.slow
def test_the_space_in_a_browser(model, tokenizer, tmp_path):
    """Made as its page says, served, and talked to in Chromium; with SCREENSHOT, a picture of it is kept there."""
    pytest.importorskip("gradio", reason='needs `pip install ".[space]"`')
    pytest.importorskip(
        "PySide6.QtWebEngineWidgets",
        reason='needs a browser: pip install "PySide6-Addons[webengine]"',
        exc_type=ImportError,
    )
    space, name, port = tmp_path / "space", tmp_path / "model", free_port()
    shutil.copytree(SPACE, space, ignore=shutil.ignore_patterns("__pycache__"))
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(space)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    environment = {**os.environ, "MODEL": str(name), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment |= {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "GRADIO_SERVER_NAME": "127.0.0.1"}
    command = [sys.executable, "app.py", "--port", str(port), "--max-new-tokens", str(TOKENS)]
    server = subprocess.Popen(command, cwd=space, env=environment)
    try:
        for _ in range(240):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/")
                break
            except OSError:
                time.sleep(0.5)
        browser = {
            **os.environ,
            "QT_QPA_PLATFORM": "offscreen",
            "QTWEBENGINE_DISABLE_SANDBOX": "1",
            "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu",
        }
        screenshot = Path(os.environ.get("SCREENSHOT", tmp_path / "page.png"))
        command = [sys.executable, Path(__file__).with_name("page_in_browser.py"), f"http://127.0.0.1:{port}/"]
        done = subprocess.run([*command, screenshot], env=browser, capture_output=True, text=True, timeout=600)
    finally:
        server.terminate()
        server.wait()
    assert done.returncode == 0, done.stderr
    opened, first, second, napped, saved, refused = json.loads(done.stdout.splitlines()[-1])
    assert not opened["chat"] and opened["picture"] == 0
    assert "w1 w2" in first["chat"] and "w3" in second["chat"]
    assert second["text"] == "" and second["picture"] > 300
    assert napped["counters"] != second["counters"]
    assert saved["file"].endswith(".memory")
    assert "nothing in the window to sleep over" in refused["error"]
    assert screenshot.read_bytes().startswith(PNG)
