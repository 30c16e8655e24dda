"""A memory as a file, forked, joined, read into and asked: going on from it equals never having stopped."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from builders import random_ids, tiny_model, word_tokenizer
from families import make_model as make_family
from helpers import read, tensors_of
from transformers import DynamicCache, TextIteratorStreamer, pipeline

from modeling_sleep import (
    Sleep,
    SleepCache,
    SleepConfig,
    SleepForCausalLM,
    SleepMemory,
    SleepModel,
    memory_file_sleep,
    reading_sleep,
)
from modeling_sleep.hub_upload import clean_room
from modeling_sleep.memory_file_sleep import INTEGERS, RECORD, digest_of


L = 5
RECALL = dict(
    layer_types=["sleep_attention", "recall_memory", "sleep_attention", "linear_attention"],
    memory_layers=[1],
    recall_pooling_dim=4,
    recall_hindsight=2,
    recall_products=True,
)
MODELS = {
    "plain": {},
    "overlap": dict(window_overlap=2),
    "pinned": dict(window_overlap=1, pinned_tokens=3),
    "coda": dict(loop_span=[0, 2]),
    "prelude and coda": dict(loop_span=[1, 3]),
    "recall": RECALL,
    "recall, replayed never": dict(RECALL, loop_span=[0, 0]),
    "recall, overlap": dict(RECALL, loop_span=[0, 0], window_overlap=2, pinned_tokens=1),
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
OPTIONS = dict(window_size=L, initializer_range=0.3, pad_token_id=None, sleep_passes=2)


def make_model(dtype=torch.float64, **overrides):
    """In float64 no two tokens tie; the weights are so large that every pass changes the tokens after it."""
    model = tiny_model(dtype=dtype, **{**OPTIONS, **overrides})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "g_proj.weight")) and not parameter.any():
                parameter.normal_(std=0.3)  # a recall memory that reads nothing out would hide mistakes
    return model


def make_ids(batch=1, length=7, seed=1):
    return random_ids(batch, length, seed)


def assert_same(ours, theirs):
    """To the bit, with all numbers."""
    ours_, theirs_ = tensors_of(ours), tensors_of(theirs)
    assert ours_.keys() == theirs_.keys()
    for key, tensor in theirs_.items():
        assert ours_[key].dtype == tensor.dtype
        assert ours_[key].equal(tensor), key
    numbers = [[layer.common for layer in cache.layers if layer.common is not None] for cache in (ours, theirs)]
    for mine, other in zip(*numbers, strict=True):
        without = dict.fromkeys(("kept_hidden_states", "kept_inputs_embeds", "last_hidden_state"))
        assert mine._replace(**without) == other._replace(**without)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer((f"w{i}" for i in range(64)), unk_token="w0")


# As a file.


@pytest.mark.parametrize("length", [1, L, L + 1, 3 * L + 2])
@every_model
def test_going_on_from_a_file_equals_going_on(options, length, tmp_path):
    model, ids = make_model(**options), make_ids(2, 40)
    _, cache = read(model, ids[:, :length])
    cache.save(tmp_path / "memory", model)
    memory = SleepMemory.load(tmp_path / "memory", model)
    assert_same(memory, cache)
    logits, cache = read(model, ids[:, length:], cache, sleep_passes=3)
    again, memory = read(model, ids[:, length:], memory, sleep_passes=3)
    assert again.equal(logits)
    assert_same(memory, cache)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_every_dtype_and_every_n(dtype, passes, tmp_path):
    model, ids = make_model(dtype), make_ids(2, 40)
    _, cache = read(model, ids[:, :17], sleep_passes=passes)
    cache.save(tmp_path / "memory", model)
    memory = SleepMemory.load(tmp_path / "memory", model)
    assert_same(memory, cache)
    expected, _ = read(model, ids[:, 17:], cache, sleep_passes=passes)
    assert read(model, ids[:, 17:], memory, sleep_passes=passes)[0].equal(expected)


@pytest.mark.parametrize("family", ["olmo_hybrid", "qwen3_5_text", "qwen3_next"])
def test_every_family(family, tmp_path):
    model = make_family(family, window_size=L, sleep_passes=2)
    ids = make_ids(2, 20) % 23
    _, cache = read(model, ids[:, :13])
    cache.save(tmp_path / "memory", model)
    memory = SleepMemory.load(tmp_path / "memory", model)
    expected, _ = read(model, ids[:, 13:], cache)
    assert read(model, ids[:, 13:], memory)[0].equal(expected)
    # The same model from its own folder has the same fingerprint.
    model.save_pretrained(tmp_path / "model")
    SleepMemory.load(tmp_path / "memory", SleepForCausalLM.from_pretrained(tmp_path / "model"))


@every_model
def test_rows_that_differ_in_their_windows(options, tmp_path):
    model, ids = make_model(**options), make_ids(3, 14)
    mask = torch.tensor([[1] * 14, [0] * 6 + [1] * 8, [1] * 3 + [0] * 11])
    _, cache = read(model, ids, attention_mask=mask)
    cache.save(tmp_path / "memory", model)
    memory = SleepMemory.load(tmp_path / "memory", model)
    assert_same(memory, cache)
    assert memory.tokens == (14, 8, 3)
    # The mask of the whole text still is what it was, and a wrong one is refused.
    new = make_ids(3, 9, seed=2)
    whole = torch.cat([mask, torch.ones(3, 9, dtype=torch.long)], dim=1)
    with pytest.raises(ValueError, match="`attention_mask` says"):
        read(model, new, SleepMemory.load(tmp_path / "memory", model), attention_mask=torch.ones_like(whole))
    expected, _ = read(model, new, cache, attention_mask=whole)
    assert read(model, new, memory, attention_mask=whole)[0].equal(expected)


@every_model
def test_a_row_by_itself_and_rows_joined(options, tmp_path):
    """A row alone, saved, loaded and joined with others, goes on as its text does alone."""
    model, texts = make_model(**options), [make_ids(1, n, seed=n) for n in (14, 8, 3, 10)]
    ids = torch.zeros(3, 14, dtype=torch.long)
    for row, text in zip(ids, texts, strict=False):
        row[14 - text.shape[1] :] = text
    _, cache = read(model, ids, attention_mask=(ids > 0).long())
    memories = []
    for row in range(3):
        cache.save(tmp_path / f"{row}", model, row=row)
        memories.append(SleepMemory.load(tmp_path / f"{row}", model))
        assert (memories[-1].rows, memories[-1].tokens) == (1, texts[row].shape[1])
    memories.append(model.read(texts[3], progress=False))
    joined = SleepMemory.join([memories[i] for i in (3, 0, 2, 1)])
    assert joined.tokens == (10, 14, 3, 8)
    new = make_ids(4, 12, seed=9)
    logits, joined = read(model, new, joined)
    for row, text in enumerate(texts[i] for i in (3, 0, 2, 1)):
        alone, cache = read(model, torch.cat([text, new[row : row + 1]], dim=1))
        torch.testing.assert_close(logits[row], alone[0, -12:], atol=1e-9, rtol=0)
        assert joined.row(row).tokens == cache.layers[0].common.read
        assert joined.row(row).sleeps == cache.layers[0].common.sleeps


def test_a_nap_before_the_file_is_a_nap_of_the_cache(model, tmp_path):
    _, cache = read(model, make_ids(1, 13))
    before = {key: tensor.clone() for key, tensor in tensors_of(cache).items()}
    cache.save(tmp_path / "memory", model, nap=True, sleep_passes=3)
    assert all(tensors_of(cache)[key].equal(tensor) for key, tensor in before.items())
    memory = SleepMemory.load(tmp_path / "memory", model)
    assert_same(memory, model.sleep(cache, sleep_passes=3))
    assert (memory.state.stored, memory.sleeps) == (0, 3)


def test_a_file_is_as_large_after_a_long_text_as_after_a_short_one(model, tmp_path):
    memory, sizes = model.read(make_ids(1, L), progress=False), []
    for name, windows in (("short", 2), ("long", 400)):
        memory = model.read(make_ids(1, windows * L), past_key_values=memory, sleep_passes=1, progress=False)
        memory.save(tmp_path / name, model, nap=True)
        sizes.append(bytes_of_tensors(tmp_path / name))
    assert sizes[0] == sizes[1]
    assert memory.tokens == 403 * L


def bytes_of_tensors(path):
    """Of a file of safetensors: all that stands behind its header, which holds the metadata."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


@pytest.mark.slow
def test_a_million_tokens_leave_as_many_bytes_as_a_thousand(tmp_path):
    """Napped over or not, as both texts end where a window does; and the book never is in memory as a whole."""
    model, sizes = make_model(torch.float32, window_size=500), []
    for thousands in (1, 1000):
        memory = model.read((make_ids(1, 1000) for _ in range(thousands)), progress=False)
        assert (memory.tokens, memory.sleeps) == (1000 * thousands, 2 * thousands - 1)
        for nap in (False, True):
            memory.save(tmp_path / "memory", model, nap=nap)
            sizes.append(bytes_of_tensors(tmp_path / "memory"))
        again = SleepMemory.load(tmp_path / "memory", model)
        assert again.tokens == memory.tokens
    assert sizes[:2] == sizes[2:] and sizes[1] < sizes[0]


def test_info_needs_no_model(model, tmp_path):
    model.read(make_ids(1, 12), sleep_passes=3, progress=False).save(
        tmp_path / "memory", model, notes={"book": "Emma"}
    )
    info = SleepMemory.info(tmp_path / "memory")
    told = [info[name] for name in ("tokens", "sleeps", "sleep_passes", "rows", "notes")]
    assert told == [12, 2, 3, 1, {"book": "Emma"}]
    assert SleepMemory.load(tmp_path / "memory", model).notes == {"book": "Emma"}


def test_the_base_model_shares_the_memories_of_its_head(model, tmp_path):
    memory = model.read(make_ids(), progress=False)
    memory.save(tmp_path / "memory", model)
    assert_same(SleepMemory.load(tmp_path / "memory", model.model), memory)


def test_an_adapter_belongs_to_the_weights(tmp_path):
    peft = pytest.importorskip("peft")
    model = make_model()
    model.read(make_ids(), progress=False).save(tmp_path / "bare", model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    memory = adapted.read(make_ids(1, 12), progress=False)
    memory.save(tmp_path / "adapted", adapted)
    assert_same(SleepMemory.load(tmp_path / "adapted", adapted), memory)
    with pytest.raises(ValueError, match="other weights"):
        SleepMemory.load(tmp_path / "bare", adapted)
    # Which of several it is, and whether any is, belongs to the weights as well.
    adapted.add_adapter("default2", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert_same(SleepMemory.load(tmp_path / "adapted", adapted), memory)
    adapted.set_adapter("default2")
    with pytest.raises(ValueError, match="other weights"):
        SleepMemory.load(tmp_path / "adapted", adapted)
    adapted.set_adapter("default")
    with adapted.disable_adapter(), pytest.raises(ValueError, match="other weights"):
        SleepMemory.load(tmp_path / "adapted", adapted)
    assert_same(SleepMemory.load(tmp_path / "adapted", adapted), memory)


ELSEWHERE = """
import torch
from transformers import AutoModelForCausalLM

folder, path, *new = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
memory = model.read([1, 2, 3], progress=False)
assert type(memory).__module__.startswith("transformers_modules.")
memory, new = type(memory).load(path, model), torch.tensor([list(map(int, new))])
output = model.generate(new, past_key_values=memory, max_new_tokens=8, return_dict_in_generate=True)
output.past_key_values.save(path, model)
"""


@pytest.mark.programs
def test_a_memory_goes_on_where_only_the_saved_code_is(tmp_path):
    model, new = make_model(), make_ids(1, 4, seed=2)
    model.save_pretrained(tmp_path / "model")
    memory, path = model.read(make_ids(1, 12), progress=False), tmp_path / "memory"
    memory.save(path, model)
    clean_room.run(ELSEWHERE, tmp_path / "model", path, *new[0].tolist())
    here = model.generate(new, past_key_values=memory, max_new_tokens=8, return_dict_in_generate=True)
    assert_same(SleepMemory.load(path, model), here.past_key_values)


def test_another_model_is_refused(model, tmp_path):
    model.read(make_ids(), progress=False).save(tmp_path / "memory", model)
    with pytest.raises(ValueError, match="another make.*`window_size` is 5 there and 6 here"):
        SleepMemory.load(tmp_path / "memory", make_model(window_size=6), force=True)
    trained = make_model()
    with torch.no_grad():
        trained.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match="other weights.*`force=True`"):
        SleepMemory.load(tmp_path / "memory", trained)
    memory = SleepMemory.load(tmp_path / "memory", trained, force=True)
    assert memory.tokens == 7
    with pytest.raises(ValueError, match="in float64, and this one is in float32"):
        SleepMemory.load(tmp_path / "memory", make_model(torch.float32))
    memory = SleepMemory.load(tmp_path / "memory", make_model(torch.bfloat16), force=True)
    assert memory.state.layers[0].keys.dtype == torch.bfloat16
    assert memory.state.layers[1].recurrent_state.dtype == torch.float32
    read(make_model(torch.bfloat16), make_ids(), memory)


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(make_ids(), labels=make_ids()).loss.backward()
    optimizer.step()


def average(model):
    """As who swaps in averaged weights: torch counts no change."""
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


@pytest.mark.parametrize("change", [train, average])
def test_other_weights_change_the_fingerprint(change, tmp_path):
    model = make_model()
    model.read(make_ids(), progress=False).save(tmp_path / "memory", model)
    change(model)
    with pytest.raises(ValueError, match="other weights"):
        SleepMemory.load(tmp_path / "memory", model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 511, 512, 1031])
def test_every_bit_changes_the_digest(dtype, length):
    """And neither where a parameter lies in memory nor who else lies there does."""
    bits = torch.randint(-100, 100, (length,), dtype=INTEGERS[dtype.itemsize])
    digest = digest_of({"x": bits.view(dtype)})
    for place in {0, length // 2, length - 1}:
        for bit in range(8 * dtype.itemsize - 1):
            other = bits.clone()
            other[place] ^= 1 << bit
            assert digest_of({"x": other.view(dtype)}) != digest
    shifted = torch.cat([bits[:1], bits])[1:]
    assert digest_of({"x": shifted.view(dtype)}) == digest
    assert digest_of({"x": torch.stack([bits, bits], dim=1)[:, 0].view(dtype)}) == digest
    assert digest_of({"y": bits.view(dtype)}) != digest


def test_moved_weights_change_the_digest():
    """Rows in another order have the same sum, and not the same sums of pieces."""
    weight = torch.randn(64, 16)
    assert digest_of({"x": weight.flip(0)}) != digest_of({"x": weight})


def test_a_file_of_the_first_format_is_loaded(model, tmp_path, monkeypatch):
    memory = model.read(make_ids(), progress=False)
    with monkeypatch.context() as then:
        then.setattr(memory_file_sleep, "FORMAT", 1)
        memory.save(tmp_path / "memory", model)
    record, digest = SleepMemory.info(tmp_path / "memory"), hashlib.sha256()
    assert record["format"] == 1
    for name, x in sorted(model.model.named_parameters()):  # as was done then
        bits = x.detach().flatten().view(torch.int64)
        looked_at = [bits.sum().item(), *bits[:: max(1, len(bits) // 64)].tolist()]
        digest.update(f"{name} {tuple(x.shape)} {x.dtype} {looked_at}".encode())
    assert record["model"]["weights"] == digest.hexdigest()
    assert_same(SleepMemory.load(tmp_path / "memory", model), memory)
    memory.save(tmp_path / "new", model)
    assert_same(SleepMemory.load(tmp_path / "new", model), memory)
    trained = make_model()
    with torch.no_grad():
        trained.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(ValueError, match="other weights"):
        SleepMemory.load(tmp_path / "memory", trained)


def edited(path, change):
    """The file again, with its record changed and all else as it was."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[RECORD])
    change(tensors, record)
    safetensors.torch.save_file(tensors, path, metadata={RECORD: json.dumps(record)})


def test_a_file_from_before_a_field_is_of_its_default(tmp_path, monkeypatch):
    """Whatever the field is: here the last one that came."""
    for threshold in (0.0, 0.5):
        model, path = make_model(**RECALL, recall_threshold=threshold), tmp_path / str(threshold)
        memory = model.read(make_ids(), progress=False)
        with monkeypatch.context() as then:
            fields = (*memory_file_sleep.NOT_OF_THE_MEMORY, "recall_threshold")
            then.setattr(memory_file_sleep, "NOT_OF_THE_MEMORY", fields)
            memory.save(path, model)
        if threshold:
            with pytest.raises(ValueError, match="`recall_threshold` is 0.0 there and 0.5 here"):
                SleepMemory.load(path, model)
        else:
            assert_same(SleepMemory.load(path, model), memory)


def test_bad_files_say_what_is_wrong(model, tmp_path):
    path = tmp_path / "memory"
    with pytest.raises(FileNotFoundError, match="There is no memory"):
        SleepMemory.load(path, model)
    memory = model.read(make_ids(1, 12), progress=False)

    memory.save(path, model)
    data = path.read_bytes()
    for end in (0, 4, 200, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="truncated"):
            SleepMemory.load(path, model)
    path.write_bytes(data[:-3] + b"\0" + data[-2:] if data[-3] else data[:-3] + b"\1" + data[-2:])
    with pytest.raises(ValueError, match="damaged, or was edited"):
        SleepMemory.load(path, model)

    memory.save(path, model)
    edited(path, lambda tensors, record: record.update(tokens=13))
    with pytest.raises(ValueError, match="damaged, or was edited"):
        SleepMemory.load(path, model)
    memory.save(path, model)
    edited(path, lambda tensors, record: tensors["last_hidden_state"].zero_())
    with pytest.raises(ValueError, match="damaged, or was edited"):
        SleepMemory.load(path, model)

    edited(path, lambda tensors, record: record.update(format=99))
    with pytest.raises(ValueError, match="written by a newer modeling_sleep"):
        SleepMemory.load(path, model)
    edited(path, lambda tensors, record: record.pop("format"))
    with pytest.raises(ValueError, match="record of .* cannot be read"):
        SleepMemory.load(path, model)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no memory of a text"):
        SleepMemory.load(path, model)
    path.write_text("Emma Woodhouse, handsome, clever, and rich")
    with pytest.raises(ValueError, match="no safetensors file"):
        SleepMemory.load(path, model)


# Of two processes each is killed in another call, and they begin as one, as to begin takes long.
KILLED = """
    import os, signal, sys
    import torch
    from builders import random_ids, tiny_model

    for call, path in zip(sys.argv[1::2], sys.argv[2::2]):
        if os.fork() == 0:
            model = tiny_model(dtype=torch.float64, **{options!r})
            memory = model.read(random_ids(1, 30), progress=False)
            setattr(os, call, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
            memory.save(path, model)
            os._exit(0)
        print(call, os.WTERMSIG(os.wait()[1]))
"""


@pytest.mark.programs
def test_killed_in_the_middle_of_a_save_the_old_file_is_whole(model, tmp_path):
    old, paths = model.read(make_ids(1, 12), progress=False), {}
    for call in ("fsync", "replace"):
        (tmp_path / call).mkdir()
        paths[call] = tmp_path / call / "memory"
        old.save(paths[call], model)
    source = textwrap.dedent(KILLED.format(options=OPTIONS))
    arguments = [str(x) for pair in paths.items() for x in pair]
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True, text=True)
    assert done.stdout.split() == ["fsync", "9", "replace", "9"], done.stderr
    for path in paths.values():
        assert_same(SleepMemory.load(path, model), old)
        assert len(list(path.parent.iterdir())) == 2  # what was begun lies beside it
        model.read(make_ids(1, 8), progress=False).save(path, model)
        assert SleepMemory.load(path, model).tokens == 8


# Forks.


def test_a_fork_shares_tensors_and_nothing_else(model):
    memory = model.read(make_ids(2, 12), progress=False)
    before = {key: tensor.clone() for key, tensor in tensors_of(memory).items()}
    fork = memory.fork()
    assert all(tensors_of(fork)[key] is tensor for key, tensor in tensors_of(memory).items())
    fork.notes["book"] = "Emma"
    read(model, make_ids(2, 9, seed=2), fork)
    model.sleep(fork, sleep_passes=3)
    fork.reorder_cache(torch.tensor([1, 0]))
    fork.reset()
    assert (memory.tokens, memory.notes) == (12, {})
    assert all(tensors_of(memory)[key].equal(tensor) for key, tensor in before.items())


def test_forks_are_rows_one_below_the_other(model):
    memory = model.read(make_ids(2, 12), progress=False)
    forks, new = memory.fork(3), make_ids(2, 6, seed=2)
    assert (forks.rows, memory.rows) == (6, 2)
    logits, _ = read(model, new.repeat_interleave(3, dim=0), forks)
    expected, _ = read(model, new, memory.fork())
    torch.testing.assert_close(logits, expected.repeat_interleave(3, dim=0), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="at least 1"):
        memory.fork(0)
    with pytest.raises(ValueError, match="There is no row 2: this memory has 2"):
        memory.row(2)


def test_what_cannot_be_joined(model):
    memory = model.read(make_ids(), progress=False)
    with pytest.raises(ValueError, match="must have read something"):
        SleepMemory.join([memory, SleepMemory(config=model.config)])
    with pytest.raises(ValueError, match="must agree in"):
        SleepMemory.join([memory, model.read(make_ids(), pinned_tokens=2, progress=False)])


# Tokens given with a memory are new.


@pytest.mark.parametrize("length", [1, 4, 7, 11])
@pytest.mark.parametrize("options", [{}, dict(prefill_chunk_size=3), dict(sleep_passes=4)], ids=str)
def test_new_ids_are_new_however_many(model, length, options):
    """Fewer than were read, as many, or more: what follows is what follows the whole text."""
    ids, new = make_ids(2, 7), make_ids(2, length, seed=2)
    passes = {name: value for name, value in options.items() if name == "sleep_passes"}
    memory = model.read(ids, progress=False, **passes)
    expected = model.generate(torch.cat([ids, new], dim=1), max_new_tokens=12, **passes)
    for mask in (None, torch.ones(2, length), torch.ones(2, 7 + length)):
        output = model.generate(new, attention_mask=mask, past_key_values=memory, max_new_tokens=12, **options)
        assert output.equal(expected[:, 7:])
    assert memory.tokens == 7


def test_a_memory_stays_as_it_is_unless_asked(model):
    memory = model.read(make_ids(1, 12), progress=False)
    before, new = memory.fork(), make_ids(1, 4, seed=2)
    output = model.generate(new, past_key_values=memory, max_new_tokens=8, return_dict_in_generate=True)
    assert_same(memory, before)
    after = output.past_key_values
    assert type(after) is SleepMemory and after.tokens == after.get_seq_length() == 12 + 4 + 8
    _, expected = read(model, output.sequences, before.fork())
    for key, tensor in tensors_of(expected).items():
        torch.testing.assert_close(tensors_of(after)[key], tensor, atol=1e-9, rtol=0)
    tokens = model.generate(new, past_key_values=memory, max_new_tokens=8, keep_memory=False)
    assert tokens.equal(output.sequences)
    assert_same(memory, after)


def test_turn_after_turn_equals_one_text(model):
    memory, text = SleepMemory(config=model.config), torch.zeros(2, 0, dtype=torch.long)
    for length in (7, 1, 11):
        new = make_ids(2, length, seed=length)
        output = model.generate(new, past_key_values=memory, max_new_tokens=6, return_dict_in_generate=True)
        text = torch.cat([text, new], dim=1)
        text = model.generate(text, max_new_tokens=6)
        assert output.sequences.equal(text[:, -length - 6 :])
        memory = output.past_key_values


def test_one_memory_serves_many_questions(model):
    """100 at once, padded, as each of them alone; the memory of one row is not repeated by hand."""
    memory = model.read(make_ids(1, 12), progress=False)
    questions = [make_ids(1, n, seed=n) for n in (3, 6, 1)]
    ids = torch.zeros(3, 6, dtype=torch.long)
    for row, question in zip(ids, questions, strict=True):
        row[6 - question.shape[1] :] = question
    answers = model.generate(ids, attention_mask=(ids > 0).long(), past_key_values=memory, max_new_tokens=8)
    for question, answer in zip(questions, answers, strict=True):
        alone = model.generate(question, past_key_values=memory, max_new_tokens=8)
        assert alone[0, -8:].equal(answer[-8:])
    with pytest.raises(ValueError, match="holds 2 rows, and the new tokens have 3"):
        model.generate(ids, past_key_values=model.read(make_ids(2), progress=False), max_new_tokens=1)


def test_rows_that_end_early_have_read_no_padding(model):
    """The end of a row's text is its own, whatever its neighbours still say."""
    ids, new = make_ids(3, 7), make_ids(3, 4, seed=2)
    free = model.generate(torch.cat([ids, new], dim=1), max_new_tokens=12)[:, 11:]
    eos = int(free[0, 3])
    options = dict(eos_token_id=eos, pad_token_id=0, max_new_tokens=12)
    memory = model.read(ids, progress=False)
    output = model.generate(new, past_key_values=memory, return_dict_in_generate=True, **options)
    after, said = output.past_key_values, output.sequences[:, 4:]
    lengths = [row.index(eos) + 1 if eos in row else len(row) for row in said.tolist()]
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        alone = model.read(torch.cat([ids[row], new[row], said[row, :length]]), progress=False)
        assert after.row(row).tokens == alone.tokens == 11 + length
        expected, _ = read(model, make_ids(1, 6, seed=3), alone)
        assert_close = torch.testing.assert_close
        assert_close(read(model, make_ids(1, 6, seed=3), after.row(row))[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("pad", [0, "eos"])
@pytest.mark.parametrize("returned", [1, 2])
def test_beams(model, returned, pad):
    ids, new = make_ids(2, 7), make_ids(2, 4, seed=2)
    mask = torch.tensor([[0, 1, 1, 1], [1] * 4])
    free = model.generate(torch.cat([ids, new], 1), max_new_tokens=9)[:, 11:]
    eos = int(free[1, 2])
    options = dict(max_new_tokens=9, num_beams=3, num_return_sequences=returned, eos_token_id=eos)
    options["pad_token_id"] = eos if pad == "eos" else pad
    whole = torch.cat([torch.ones_like(ids), mask], dim=1)
    expected = model.generate(torch.cat([ids, new], dim=1), attention_mask=whole, **options)
    memory = model.read(ids, progress=False)
    output = model.generate(new, attention_mask=mask, past_key_values=memory, return_dict_in_generate=True, **options)
    assert output.sequences[:, 4:].equal(expected[:, 11:])
    after = output.past_key_values
    assert after.rows == 2 * returned
    for row, said in enumerate(output.sequences[:, 4:].tolist()):
        said = said[: said.index(eos) + 1] if eos in said else said
        given = new[row // returned][mask[row // returned].bool()]
        text = torch.cat([ids[row // returned], given, torch.tensor(said)])
        expected, _ = read(model, make_ids(1, 6, seed=3), model.read(text, progress=False))
        ours, _ = read(model, make_ids(1, 6, seed=3), after.row(row))
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


def test_several_samples_of_one_memory(model):
    memory, new = model.read(make_ids(1, 12), progress=False), make_ids(1, 3, seed=2)
    output = model.generate(
        new,
        past_key_values=memory,
        max_new_tokens=9,
        do_sample=True,
        num_return_sequences=4,
        return_dict_in_generate=True,
    )
    assert len({tuple(row) for row in output.sequences.tolist()}) > 1
    assert output.past_key_values.rows == 4
    for row, text in enumerate(output.sequences):
        expected, _ = read(model, make_ids(1, 6, seed=3), model.read(text, past_key_values=memory, progress=False))
        ours, _ = read(model, make_ids(1, 6, seed=3), output.past_key_values.row(row))
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


def test_embeddings_given_are_new(model):
    memory, new = model.read(make_ids(2, 7), progress=False), make_ids(2, 9, seed=2)
    embeds = model.get_input_embeddings()(new)
    for beams in (1, 2):
        options = dict(past_key_values=memory, max_new_tokens=8, num_beams=beams, return_dict_in_generate=True)
        expected = model.generate(new, **options)
        output = model.generate(inputs_embeds=embeds, **options)
        assert output.sequences.equal(expected.sequences[:, 9:])
        for key, tensor in tensors_of(expected.past_key_values).items():
            torch.testing.assert_close(tensors_of(output.past_key_values)[key], tensor, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(past_key_values=memory)


def test_a_streamer_hears_the_answer(model, tokenizer):
    memory, new = model.read(make_ids(1, 12), progress=False), make_ids(1, 3, seed=2)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    tokens = model.generate(new, past_key_values=memory, max_new_tokens=8, streamer=streamer)
    assert "".join(streamer).split() == tokenizer.decode(tokens[0, 3:]).split()


def test_a_pipeline_asks_a_memory(model, tokenizer):
    text, question = make_ids(1, 17), make_ids(1, 3, seed=2)
    memory = model.read(tokenizer.decode(text[0]), tokenizer, progress=False)
    assert memory.tokens == 17
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    output = ask(
        tokenizer.decode(question[0]), past_key_values=memory, max_new_tokens=8, do_sample=False, return_tensors=True
    )
    expected = model.generate(torch.cat([text, question], dim=1), max_new_tokens=8, do_sample=False)
    assert output[0]["generated_token_ids"] == expected[0, 17:].tolist()


def test_a_tokenizer_for_stop_strings_is_no_argument_of_the_model(model, tokenizer):
    """As `transformers serve` gives it with every request."""
    assert model.generate(make_ids(), tokenizer=tokenizer).equal(model.generate(make_ids()))


def test_rows_are_selected_after_a_sleep_too(model):
    cache = model.sleep(read(model, make_ids(3, 7))[1])
    row = model.memory_of(cache).row(2)
    cache.batch_select_indices(torch.tensor([2]))
    assert_same(cache, row)


def test_pinned_tokens_stay_pinned(model):
    """What a memory was begun with is not chosen anew by the next call, although its tokens are counted from there."""
    ids, new = make_ids(1, 12), make_ids(1, 9, seed=2)
    memory = model.read(ids, pinned_tokens=3, progress=False)
    expected = model.generate(torch.cat([ids, new], 1), pinned_tokens=3, max_new_tokens=9)
    assert model.generate(new, past_key_values=memory, max_new_tokens=9).equal(expected[:, 12:])
    assert not model.generate(torch.cat([ids, new], 1), max_new_tokens=9).equal(expected)
    with pytest.raises(ValueError, match="can only be chosen with a text's first tokens"):
        model.generate(new, past_key_values=memory, pinned_tokens=2, max_new_tokens=1)


# Reading.


@pytest.mark.parametrize("options", [{}, dict(sleep_passes=1), dict(sleep_passes=Sleep(4, until=0.05))], ids=str)
def test_reading_in_any_chunks_is_reading_at_once(model, options, monkeypatch):
    monkeypatch.setattr(reading_sleep, "TOKENS_AT_ONCE", 2 * L)
    ids = make_ids(1, 48)
    _, cache = read(model, ids, **options)
    pieces = [ids[:, :1], ids[0, 1:30], ids[0, 30:33].tolist(), ids[:, 33:33], ids[:, 33:]]
    begun = model.read(ids[:, :3], progress=False, **options)
    for memory in (
        model.read(ids, progress=False, **options),
        model.read(iter(pieces), progress=False, **options),
        model.read(ids[0].tolist(), past_key_values=begun, skip=3, progress=False, **options),
    ):
        assert memory.tokens == 48 and not memory.interrupted
        for key, tensor in tensors_of(cache).items():
            torch.testing.assert_close(tensors_of(memory)[key], tensor, atol=1e-9, rtol=0)
    assert begun.tokens == 3


def test_reading_a_padded_batch(model):
    ids = make_ids(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 20:] = 0, 0
    _, cache = read(model, ids, attention_mask=mask)
    memory = model.read(ids, attention_mask=mask, progress=False)
    assert memory.tokens == (26, 20)
    for key, tensor in tensors_of(cache).items():
        torch.testing.assert_close(tensors_of(memory)[key], tensor, atol=1e-9, rtol=0)


def test_an_interrupted_reading_goes_on_from_its_file(model, tokenizer, tmp_path, monkeypatch):
    """Ctrl-C comes in the middle of a sleep; the text is given again, as chunks of words."""
    monkeypatch.setattr(reading_sleep, "TOKENS_AT_ONCE", 2 * L)
    ids = make_ids(1, 60)
    chunks = [tokenizer.decode(part) for part in ids[0].split(13)]

    def interrupt(event):
        if event.window_index == 7:
            raise KeyboardInterrupt

    memory = model.read(iter(chunks), tokenizer, sleep_callback=interrupt, progress=False)
    assert memory.interrupted and 0 < memory.tokens <= 8 * L
    memory.save(tmp_path / "memory", model)
    memory = SleepMemory.load(tmp_path / "memory", model)
    assert memory.interrupted
    memory = model.read(iter(chunks), tokenizer, past_key_values=memory, skip=memory.tokens, progress=False)
    assert memory.tokens == 60 and not memory.interrupted
    _, cache = read(model, ids)
    for key, tensor in tensors_of(cache).items():
        torch.testing.assert_close(tensors_of(memory)[key], tensor, atol=1e-9, rtol=0)


def test_the_bar_counts_tokens_and_sleeps(model, capsys):
    model.read(make_ids(1, 2300))
    shown = capsys.readouterr().err
    assert "2.30k/2.30k" in shown and "tokens/s" in shown and "sleeps=459" in shown


def test_what_cannot_be_read(model, tokenizer):
    with pytest.raises(ValueError, match="give the model's `tokenizer`"):
        model.read("w1 w2", progress=False)
    with pytest.raises(ValueError, match="between 0 and 63"):
        model.read([1, 64], progress=False)
    with pytest.raises(ValueError, match="with at least one token"):
        model.read("", tokenizer, progress=False)
    with pytest.raises(ValueError, match="There is nothing to read"):
        model.read(iter([]), progress=False)
    with pytest.raises(ValueError, match="belongs to `inputs` that are one tensor"):
        model.read([1, 2], attention_mask=torch.ones(1, 2), progress=False)
    with pytest.raises(ValueError, match="must have the shape of `inputs`"):
        model.read(make_ids(1, 3), attention_mask=torch.ones(1, 2), progress=False)
    with pytest.raises(ValueError, match="give its `input_ids`, and its `attention_mask`"):
        model.read(tokenizer("w1 w2", return_tensors="pt"), tokenizer, progress=False)
    for tokens in (torch.rand(1, 4), np.arange(4), (1, 2, 3), make_ids(1, 4)[None]):
        with pytest.raises(ValueError, match="must be a text, token ids of shape"):
            model.read(tokens, progress=False)
    memory = model.read(make_ids(), progress=False)
    for pinned in (3, -3):
        with pytest.raises(ValueError, match="can only be chosen with a text's first|at least 0"):
            model.read(make_ids(), past_key_values=memory, pinned_tokens=pinned, progress=False)
    with pytest.raises(ValueError, match="it was not made for this config"):
        memory.save("never written", make_model(num_hidden_layers=2))


def test_all_sleeps_of_a_turn_are_told(model):
    """That of the last token, too, which only the memory reads."""
    memory, told = model.read(make_ids(1, L), progress=False), []
    options = dict(max_new_tokens=L, min_new_tokens=L, sleep_callback=told.append, return_dict_in_generate=True)
    after = model.generate(make_ids(1, 1, seed=2), past_key_values=memory, **options).past_key_values
    assert [event.window_index for event in told] == list(range(memory.sleeps, after.sleeps)) == [0, 1]


def test_a_cache_becomes_a_memory_and_stays_a_cache(model):
    _, cache = read(model, make_ids(1, 12))
    memory = model.memory_of(cache)
    read(model, make_ids(), memory)
    assert type(cache) is SleepCache and cache.get_seq_length() == 12
    assert memory.tokens == 19
    assert model.memory_of(DynamicCache(config=model.config)).tokens == 0


def test_a_base_model_reads_too():
    torch.manual_seed(0)
    base = SleepModel(SleepConfig.from_preset("tiny")).eval()
    assert base.read(make_ids(1, 20), progress=False).sleeps == 2
