"""The yardsticks, held against tiny models: readers, files of rows, and each program from its command to its rows."""

import importlib.util
import json

import pytest
import torch
from helpers import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from examples.yardsticks.readers import Reader, equal_bytes
from examples.yardsticks.rows import Rows
from modeling_sleep import SleepForCausalLM


L = 16
IDS = torch.arange(3, 75).tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def original(tokenizer):
    return make_original(tokenizer, layers=2)


@pytest.fixture(scope="module")
def sleeping(original):
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="gated_delta", memory_layers=1)
    for i in model.config.memory_layers:
        torch.nn.init.normal_(model.model.layers[i].linear_attn.o_proj.weight)
    return model


def make_original(tokenizer, layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=2, initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generated(model, ids, tokenizer, **options):
    ids = torch.tensor([ids])
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, **options)
    return tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)


def test_what_each_reader_reads(original, sleeping, tokenizer):
    whole = Reader("whole", original, tokenizer).answer(IDS, 8)
    assert whole.text == generated(original, IDS, tokenizer) and whole.read == len(IDS) and whole.written == 8
    cut = Reader("truncated", original, tokenizer, kept=20).answer(IDS, 8)
    assert cut.text == generated(original, IDS[-20:], tokenizer) and cut.read == 20
    long = Reader("sliding", original, tokenizer, kept=100).answer(IDS, 8)
    assert long.text == whole.text
    for passes in (1, 3):
        ours = Reader("sleep", sleeping, tokenizer, passes=passes)
        assert ours.answer(IDS, 8).text == generated(sleeping, IDS, tokenizer, sleep_passes=passes)
        assert ours.fields == {"reader": "sleep", "kept": None, "passes": passes, "window_size": L}


def test_one_layer_with_a_sliding_window_knows_what_it_keeps(tokenizer):
    original = make_original(tokenizer, layers=1)
    sliding = Reader("sliding", original, tokenizer, kept=20).answer(IDS, 1)
    assert sliding.text == Reader("truncated", original, tokenizer, kept=20).answer(IDS, 1).text
    assert sliding.text != Reader("truncated", original, tokenizer, kept=2).answer(IDS, 1).text


def test_bytes_grow_with_the_whole_cache_alone(original, sleeping, tokenizer):
    for name, options in (("sliding", {"kept": 20}), ("truncated", {"kept": 20}), ("sleep", {"passes": 2})):
        reader = Reader(name, original if name != "sleep" else sleeping, tokenizer, **options)
        assert reader.answer(IDS * 2, 1).nbytes == reader.answer(IDS * 4, 1).nbytes
    reader = Reader("whole", original, tokenizer)
    per_token = 2 * 2 * 32 * 4  # keys and values of two layers in four bytes
    assert [reader.answer(IDS * n, 1).nbytes for n in (1, 2)] == [per_token * (len(IDS) * n - 1) for n in (1, 2)]
    kept = equal_bytes(original, sleeping)
    memory = sleeping.read(torch.tensor(IDS[: 2 * L]), progress=False)
    assert (kept - 1) * per_token < memory.nbytes <= kept * per_token


def test_a_sliding_window_needs_a_model_that_can_have_one(sleeping, tokenizer):
    with pytest.raises(ValueError, match="leave the reader `sliding` out"):
        Reader("sliding", sleeping, tokenizer, kept=8)


def test_a_reader_of_one_token_is_refused(original, tokenizer):
    with pytest.raises(ValueError, match="at least 2"):
        Reader("truncated", original, tokenizer, kept=1)


def test_rows_are_found_again(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = Rows(path, ("task", "places"))
    row = {"task": "a", "places": (1, 2), "accuracy": 0.5}
    assert not rows.has(row)
    rows.add(row)
    again = Rows(path, ("task", "places"))
    assert again.has(row) and again.has({"task": "a", "places": [1, 2]}) and not again.has(row | {"task": "b"})
    (read,) = again
    assert read["accuracy"] == 0.5 and read["versions"]["torch"] == torch.__version__


@pytest.fixture
def folders(original, sleeping, tokenizer, tmp_path):
    for name, model in (("original", original), ("sleeping", sleeping)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return [str(tmp_path / "sleeping"), "--original", str(tmp_path / "original")]


needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason='RULER comes with lm-evaluation-harness: pip install ".[eval]"',
)


@needs_harness
@pytest.mark.slow
def test_ruler_goes_on_where_it_stopped(folders, tmp_path, capsys):
    from examples.yardsticks import ruler

    essays = tmp_path / "essays.json"
    essays.write_text(json.dumps({"text": "Some people work. Others do not.\nWho knows why? " * 200}))
    command = [
        *folders,
        "--rows",
        str(tmp_path / "rows.jsonl"),
        "--samples",
        "2",
        "--lengths",
        "6144",
        "--passes",
        "2",
    ]
    command += ["--essays", str(essays), "--tasks", "niah_single_2", "niah_multivalue"]
    assert ruler.main([*command, "--readers", "sleep", "whole"]) == 0
    assert ruler.main([*command, "--readers", "sleep", "whole", "truncated"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["reader"] for row in rows] == ["sleep"] * 2 + ["whole"] * 2 + ["truncated"] * 2
    assert all(row["haystack"] == "essay" and row["accuracy"] == 0 and row["bytes"] > 0 for row in rows)
    assert 3000 < rows[0]["tokens"] <= 6144 and rows[-1]["tokens"] == rows[-1]["kept"]
    with pytest.raises(SystemExit):
        ruler.main([*command, "--lengths", "500"])


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_3", "niah_multiquery", "vt", "cwe", "fwe"])
def test_samples_hold_their_answers_and_fit(task, tokenizer):
    from examples.yardsticks import ruler

    samples = ruler.Samples(tokenizer)
    one, two = (samples.draw(task, 4096, i) for i in range(2))
    assert one != two and one == samples.draw(task, 4096, 0)
    assert all(value in one["input"] for value in one["outputs"])
    assert 0.5 * 4096 < len(ruler.prompt(one, tokenizer)) <= 4096
    assert samples.haystack("niah_single_2") == "repeat" and samples.haystack("vt") is None
