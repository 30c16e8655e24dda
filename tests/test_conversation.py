"""Memories in use: turns, idle naps, sessions by name, pictures, the command and the chat in a terminal."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import tensors_of
from talkers import L, free_port, make_model, make_taught, make_tokenizer
from transformers import PreTrainedTokenizerFast, TextStreamer
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from examples import chat
from modeling_sleep import SleepForCausalLM, SleepMemory, serve
from modeling_sleep.memory.__main__ import main
from modeling_sleep.memory.begin import load_model
from modeling_sleep.memory.conversation import Conversation, Sessions
from modeling_sleep.memory.idle import IdleNap
from modeling_sleep.memory.picture import Changes, shares, trace
from modeling_sleep.memory.turns import turn_ids
from modeling_sleep.memory.watch import watched


CHAT = Path(chat.__file__)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(tokenizer, tmp_path_factory):
    return make_taught(tmp_path_factory.mktemp("taught"), tokenizer)


def talk(model, tokenizer, **options):
    return Conversation(model, tokenizer, max_new_tokens=6, do_sample=False, **options)


# Turns.


@pytest.mark.parametrize("system", [None, "w1 w2"])
@pytest.mark.parametrize("ends", [True, False])
def test_only_the_new_turn_is_templated(tokenizer, system, ends):
    """Turn by turn, with the answers between them, they are the whole conversation templated at once."""
    end = tokenizer.eos_token_id
    chat = [] if system is None else [{"role": "system", "content": system}]
    ids, last = [], None
    for i in range(3):
        ids += turn_ids(tokenizer, f"w{i} w9", last, begins=i == 0, system=system)[0].tolist()
        chat += [{"role": "user", "content": f"w{i} w9"}]
        whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert ids == tokenizer(whole)["input_ids"]
        answer = tokenizer("w5 w6")["input_ids"] + [end] * ends  # an answer that was cut off has no end
        ids, last = ids + answer, answer[-1]
        chat += [{"role": "assistant", "content": "w5 w6"}]


def test_without_a_template_a_turn_is_what_is_said(tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    assert turn_ids(plain, "w1 w2").tolist() == [plain("w1 w2")["input_ids"]]


def test_a_turn_can_begin_a_window(model, tokenizer):
    """As if somebody napped before every turn; not before the first, when there is nothing to sleep over."""
    options = dict(max_new_tokens=3, do_sample=False)
    napping = Conversation(model, tokenizer, nap_before_turns=True, **options)
    by_hand = Conversation(model, tokenizer, **options)
    for said in ("w1 w2", "w3", "w4 w5"):
        if by_hand.memory.rows:
            by_hand.nap()
        assert napping.say(said) == by_hand.say(said)
        assert napping.memory.sleeps == by_hand.memory.sleeps
        assert all(map(torch.equal, napping.memory.state.tensors(), by_hand.memory.state.tensors()))


def test_a_conversation_is_one_text(model, tokenizer):
    """What it answers is what the model says behind all that was said, which nobody keeps."""
    conversation, text, last = talk(model, tokenizer), torch.zeros(1, 0, dtype=torch.long), None
    for i, said in enumerate(["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12 w13"]):
        new = turn_ids(tokenizer, said, last, begins=i == 0)
        text = model.generate(torch.cat([text, new], dim=1), max_new_tokens=6, do_sample=False)
        last = int(text[0, -1])
        answer = conversation.say(said)
        assert tokenizer.decode(text[0], skip_special_tokens=True).strip().endswith(answer)
        assert (conversation.memory.tokens, conversation.turns) == (text.shape[1], i + 1)


def test_options_of_the_generation_config_hold_for_turns_of_any_length(tokenizer):
    model, passes = make_model(), []
    model.generation_config.sleep_passes, model.generation_config.pinned_tokens = 4, 2
    conversation = talk(model, tokenizer, sleep_callback=lambda event: passes.append(event.passes))
    for said in (" ".join(f"w{i}" for i in range(3 * L)), "w1 w2 w3"):
        conversation.say(said)
    assert len(passes) > 3 and set(passes) == {4} and conversation.memory.state.pinned_tokens == 2
    with pytest.raises(ValueError, match="one answer to each turn"):
        talk(model, tokenizer, num_return_sequences=2)


def test_an_interrupted_answer_is_forgotten(model, tokenizer):
    class Impatient(TextStreamer):
        def put(self, value):
            raise KeyboardInterrupt

    conversation = talk(model, tokenizer)
    conversation.say("w1")
    before = conversation.memory.tokens
    with pytest.raises(KeyboardInterrupt):
        conversation.say("w2", Impatient(tokenizer))
    assert (conversation.memory.tokens, conversation.turns) == (before, 1)


# Idle naps.


def test_an_idle_nap_is_a_nap(model):
    memory = model.read(list(range(2, 9)), progress=False)
    nap = IdleNap(model, memory, 3)
    nap.wait()
    after, expected = nap.wake(), model.sleep(memory.fork(), 3)
    assert all(tensors_of(after)[key].equal(tensor) for key, tensor in tensors_of(expected).items())
    assert nap.seconds > 0 and memory.state.stored == 7


def test_who_wants_the_model_wakes_it_up_between_two_passes(model):
    """1024 passes would go on; the nap ends with the pass that it is in, and nothing is lost."""
    memory, begun, passes = model.read(list(range(2, 9)), progress=False), threading.Event(), []

    def on_pass():
        passes.append(time.perf_counter())
        begun.set()

    with watched(model, on_pass):
        nap = IdleNap(model, memory, 1024)
        begun.wait()
        assert nap.wake() is None
    assert len(passes) < 1023
    assert (memory.state.stored, memory.tokens) == (7, 7)
    assert not model.model.layers[0]._forward_pre_hooks


def test_a_conversation_naps_while_nobody_speaks(model, tokenizer):
    conversation, other = talk(model, tokenizer), talk(model, tokenizer)
    assert conversation.idle() is None  # nothing to nap over
    for each in (conversation, other):
        each.say("w1 w2")
    if not conversation.memory.state.stored >= L / 2:
        conversation.idle_from = 0.1
    conversation.idle().wait()
    assert conversation.wake() > 0
    assert conversation.memory.state.stored == 0
    other.nap()
    assert conversation.say("w3") == other.say("w3")


def test_an_error_in_an_idle_nap_is_heard(model):
    memory = model.read(list(range(2, 9)), progress=False)
    nap = IdleNap(model, memory, 0)
    nap.wait()
    with pytest.raises(ValueError, match="sleep_passes"):
        nap.wake()


# Sessions.


def test_sessions_have_names(tmp_path, model, tokenizer):
    sessions, conversation = Sessions(tmp_path), talk(model, tokenizer)
    conversation.say("w1")
    conversation.save(sessions.path("my book"))
    assert sessions.names() == ["my book"]
    again = talk(model, tokenizer)
    again.load(sessions.path("my book"))
    assert again.turns == 1
    conversation.memory.fork(2).save(tmp_path / "two", model)
    with pytest.raises(ValueError, match="two holds 2 rows, and a conversation is one"):
        again.load(tmp_path / "two")
    assert again.say("w2") == conversation.say("w2")
    for name in ("", "../x", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="A session's name"):
            sessions.path(name)


@pytest.fixture
def run_chat(folder, tmp_path, monkeypatch, capsys):
    """Type lines into the chat, in this process or in a new one, and return what it shows."""

    def run_chat(*lines, model=folder, name=None, options=(), new_process=False):
        options = [*options] if name is None else [*options, "--name", name]
        command = [str(CHAT), str(model), "--sessions", str(tmp_path), "--max-new-tokens", "6", *options]
        typed = "\n".join(lines) + "\n"
        if new_process:
            options = dict(input=typed, capture_output=True, text=True, timeout=1200)
            done = subprocess.run([sys.executable, *command], **options)
            return done.returncode, done.stdout, done.stderr
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        verbosity = logging.get_verbosity()
        capsys.readouterr()
        code = chat.main()
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        return code, *capsys.readouterr()

    return run_chat


@pytest.mark.programs
def test_two_chats_never_see_each_other(run_chat, folder, tokenizer, tmp_path):
    """
    By name, in turns, each turn after a restart, and the last in two processes at once: what each remembers is, to the
    bit, what it remembers where there is no other and it never stopped.
    """
    said = {"ada": ["w1 w2 w3", "w4", "w5"], "bob": ["w11 w12", "w13 w14", "w5"]}

    def say(name, turn):
        options = dict(name=name, options=["--no-idle-naps"], new_process=turn == 2)
        code, out, errors = run_chat(said[name][turn], "/memory", "/quit", **options)
        assert code == 0, errors
        assert ("Session" in out) == (turn > 0)

    for turn in range(2):
        for name in said:
            say(name, turn)
    with ThreadPoolExecutor() as pool:
        list(pool.map(say, said, [2, 2]))
    for name, lines in said.items():
        alone = SleepForCausalLM.from_pretrained(folder).eval()
        conversation = talk(alone, tokenizer)
        for line in lines:
            conversation.say(line)
        memory = SleepMemory.load(tmp_path / f"{name}.memory", alone)
        assert (memory.notes["turns"], memory.tokens) == (3, conversation.memory.tokens)
        ours, expected = memory.state.tensors(), conversation.memory.state.tensors()
        assert len(ours) == len(expected) and all(map(torch.equal, ours, expected))


def test_a_pretrained_model_with_its_memory(run_chat, taught, tmp_path, capsys):
    """In the chat, with a nap before each turn; and in the command."""
    base, memory = taught
    options = ["--memory", memory, "--nap-before-turns", "--no-idle-naps"]
    code, out, errors = run_chat("w1 w2", "w3", "/quit", model=base, name="ada", options=options)
    assert code == 0 and "sleeps: " in out, errors
    model, tokenizer = load_model(base, memory)
    conversation = talk(model, tokenizer, nap_before_turns=True)
    for line in ("w1 w2", "w3"):
        conversation.say(line)
    kept = SleepMemory.load(tmp_path / "ada.memory", model)
    assert all(map(torch.equal, kept.state.tensors(), conversation.memory.state.tensors()))

    book = tmp_path / "book.txt"
    book.write_text("w1 w2 w3 " * 9 + "\n")
    assert main(["read", base, str(book), str(tmp_path / "book.memory"), "--taught", memory, "--quiet"]) == 0
    assert main(["ask", base, str(tmp_path / "book.memory"), "w1", "--taught", memory, "--max-new-tokens", "3"]) == 0
    assert "27 tokens, 3 sleeps" in capsys.readouterr().out
    assert main(["ask", base, str(tmp_path / "book.memory"), "w1", "--taught", base]) == 1
    assert "must be 'recall'" in capsys.readouterr().err


def test_the_commands_of_the_chat(run_chat, tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11\n")
    lines = [
        "w1",
        "/nap 3",
        "/nap",
        "/save x",
        "/memory",
        "/forget",
        "/memory",
        "/load y",
        "/load x",
        "/what",
        "/nap z",
    ]
    code, out, errors = run_chat(*lines, f"/read {tmp_path / 'text.txt'}", "/sessions", "/help")
    assert code == 0, errors
    for expected in (
        "Slept 3 passes",
        "nothing in the window to sleep over",
        "Session 'x' is kept",
        "Everything is forgotten",
        "0 tokens in 0 turns",
        "There is no session 'y'. There are: x.",
        "Session 'x': 1 turns",
        "There is no command /what",
        "/nap takes a number",
        "/sessions   their names",
    ):
        assert expected in out, out
    code, _, errors = run_chat(model=tmp_path / "nothing")
    assert code == 1 and "modeling_sleep.teach" in errors


def test_the_chat_pins_what_the_system_says(run_chat, folder, tokenizer, tmp_path):
    """Here the template's own message; without any, the chat does not begin."""
    for line in ("w1", "w2 w3 w4 w5 w6"):
        code, _, errors = run_chat(line, name="ada", options=["--pin"])
        assert code == 0, errors
    pinned = len(tokenizer("begin system you are <end>")["input_ids"])
    info = SleepMemory.info(tmp_path / "ada.memory")
    assert info["state"]["pinned_tokens"] == pinned and info["notes"]["turns"] == 2 and info["sleeps"] > 0
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    code, _, errors = run_chat(model=bare, options=["--pin"])
    assert code == 1 and "with a chat template" in errors


# The command.


def test_read_ask_info_fork(folder, tmp_path, capsys):
    text, memory, copy = (tmp_path / name for name in ("book.txt", "book.memory", "copy.memory"))
    text.write_text("\n".join(f"w{i % 50} w{i % 7} w{i % 11}" for i in range(40)) + "\n")
    assert main(["read", str(folder), str(text), str(memory), "--nap", "--quiet"]) == 0
    assert "120 tokens, 15 sleeps" in capsys.readouterr().out
    assert main(["info", str(memory)]) == 0
    shown = capsys.readouterr().out
    assert "tokens          120" in shown and "0 of 8 tokens" in shown and "note source     book.txt" in shown
    assert main(["info", str(memory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 120

    assert main(["fork", str(memory), str(copy)]) == 0
    before = memory.read_bytes()
    assert before == copy.read_bytes()
    ask = ["ask", str(folder), str(copy), "w1 w2 ?", "--max-new-tokens", "5"]
    capsys.readouterr()
    assert main([*ask, "--keep", str(tmp_path / "asked")]) == 0
    answer = capsys.readouterr().out
    assert main(ask) == 0
    assert capsys.readouterr().out == answer
    assert copy.read_bytes() == before
    assert SleepMemory.info(tmp_path / "asked")["notes"]["turns"] == 1

    assert main(["read", str(folder), str(text), str(memory)]) == 1
    assert "--append" in capsys.readouterr().err
    assert main(["read", str(folder), str(text), str(memory), "--append", "--quiet"]) == 0
    assert "240 tokens" in capsys.readouterr().out


def test_what_was_stopped_goes_on_when_called_again(folder, tmp_path, capsys, monkeypatch):
    text, memory = tmp_path / "book.txt", tmp_path / "book.memory"
    text.write_text("\n".join(f"w{i % 50} w{i % 7} w{i % 11}" for i in range(40)) + "\n")
    real, calls = SleepMemory.fork, []

    def fork(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(SleepMemory, "fork", fork)
    assert main(["read", str(folder), str(text), str(memory), "--quiet"]) == 130
    assert SleepMemory.info(memory)["interrupted"] and 0 < SleepMemory.info(memory)["tokens"] < 120
    assert main(["read", str(folder), str(text), str(memory), "--quiet"]) == 0
    assert not SleepMemory.info(memory)["interrupted"]
    assert SleepMemory.info(memory)["notes"]["tokens_of_source"] == SleepMemory.info(memory)["tokens"] == 120


def test_errors_of_the_command(folder, tmp_path, capsys):
    (tmp_path / "memory").write_text("no memory")
    (tmp_path / "text").write_text("w1")
    for arguments, message in (
        (["info", tmp_path / "none"], "There is no memory"),
        (["info", tmp_path / "memory"], "no safetensors file"),
        (["ask", folder, tmp_path / "none", "w1"], "There is no memory"),
        (["read", folder, tmp_path / "none", tmp_path / "new"], "There is no text"),
        (["fork", tmp_path / "memory", tmp_path / "new"], "no safetensors file"),
        (["read", tmp_path / "none", tmp_path / "text", tmp_path / "new"], "none"),
    ):
        assert main([str(x) for x in arguments]) == 1
        assert message in capsys.readouterr().err
    for arguments in ([], ["frok"], ["info"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
    for command in ("read", "ask", "info", "fork", "picture"):
        with pytest.raises(SystemExit) as error:
            main([command, "--help"])
        assert error.value.code == 0
        assert "Exit codes" in capsys.readouterr().out


# The picture.


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(linear_num_key_heads=2, linear_num_value_heads=4),
        dict(
            layer_types=["sleep_attention", "recall_memory", "sleep_attention", "linear_attention"],
            memory_layers=[1],
            recall_pooling_dim=4,
            recall_hindsight=2,
            recall_products=True,
        ),
    ],
    ids=["plain", "grouped", "recall"],
)
def test_what_a_question_reads_of_all_windows_is_what_it_reads_of_s(options):
    """Summed with their signs: the changes of all windows are S. And S is what reading without naps leaves."""
    model = make_model(**options).double()
    ids, question = torch.randint(2, 64, (1, 5 * L)), torch.randint(2, 64, (1, 4))
    result = trace(model, ids, [question, question[:, :2]])
    heads = sum(layer.fast_weights(x).shape[1] for layer, x in memories(model, result.memory))
    assert result.change.shape == (heads, 5) and result.reading.shape == (2, heads, 5)
    torch.testing.assert_close(shares(result.reading).sum(-1), torch.ones(2, heads).double())
    assert len(result.heads) == heads
    expected = model.sleep(model.read(ids, progress=False))
    for (layer, ours), (_, theirs) in zip(memories(model, result.memory), memories(model, expected), strict=True):
        torch.testing.assert_close(layer.fast_weights(ours), layer.fast_weights(theirs), atol=1e-9, rtol=0)
    torch.testing.assert_close(result.change[:, 0], torch.ones(heads).double())
    # With one window there is nothing to part.
    one = trace(model, ids[:, :L], [question])
    assert (one.reading > 0).all()


def test_before_the_first_sleep_nothing_is_new():
    """A recall memory has no S until then."""
    model = make_model(
        layer_types=["sleep_attention", "recall_memory", "sleep_attention", "linear_attention"],
        memory_layers=[1],
        recall_pooling_dim=4,
        recall_hindsight=2,
        recall_products=True,
    )
    seen, memory = Changes(model), model.read(list(range(2, 6)), progress=False)
    assert seen.look(memory) == [] and not seen.before
    model.sleep(memory)
    change, _ = seen.look(memory)
    assert change.equal(model.model.fast_weights(memory.state)[1][0].double())
    heads = len(seen.trace(memory).heads)
    torch.testing.assert_close(seen.trace(memory).change, torch.tensor([[0, 1]] * heads).double())


def memories(model, memory):
    return [(x, s) for x, s in zip(model.model.layers, memory.state.layers, strict=True) if x.is_memory]


def test_the_picture_is_a_png(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    text, png = tmp_path / "book.txt", tmp_path / "book.png"
    text.write_text(" ".join(f"w{i % 50}" for i in range(100)) + "\n")
    for questions in ([], ["--question", "w1 w2"], ["--question", "w1 w2", "--question", "w3"]):
        assert main(["picture", str(folder), str(text), str(png), *questions, "--windows", "9"]) == 0
        assert png.read_bytes().startswith(b"\x89PNG") and "9 windows, 8 heads" in capsys.readouterr().out
        png.unlink()


# A server.


def test_transformers_serve(folder, model, tokenizer):
    """Two clients at once, several turns, streamed and not: what `generate` says behind the whole conversation."""
    openai = pytest.importorskip("openai", reason='needs `pip install ".[serve]"`')
    if not is_serve_available():
        pytest.skip('needs `pip install ".[serve]"`')
    port, name = free_port(), str(folder)
    command = [sys.executable, "-m", "modeling_sleep.serve", name, "--port", str(port), "--host", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    heard = {}

    def talk(who: str) -> None:
        chat = []
        for stream in (False, True):
            chat.append({"role": "user", "content": f"{who} w3"})
            options = dict(model=name, messages=chat, max_tokens=6, temperature=0, stream=stream)
            answer = client.chat.completions.create(**options)
            if stream:
                answer = "".join(part.choices[0].delta.content or "" for part in answer if part.choices)
            else:
                answer = answer.choices[0].message.content
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            said = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
            heard.setdefault(who, []).append(
                (answer.strip(), tokenizer.decode(said, skip_special_tokens=True).strip())
            )
            chat.append({"role": "assistant", "content": answer})

    try:
        for _ in range(300):
            assert server.poll() is None, "the server has ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.5)
        threads = [threading.Thread(target=talk, args=(who,)) for who in ("w1", "w2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        server.wait()
    assert {who: len(pairs) for who, pairs in heard.items()} == {"w1": 2, "w2": 2}
    for pairs in heard.values():
        assert all(ours == expected for ours, expected in pairs)


@pytest.mark.parametrize("option", ["--continuous-batching", "--compile"])
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(option, capsys):
    assert serve.main(["nothing", option]) == 1
    assert f"`{option}`" in capsys.readouterr().err
