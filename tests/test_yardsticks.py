"""The yardsticks, held against tiny models: readers, files of rows, and each program from its command to its rows."""

import importlib.util
import json

import pytest
import torch
import transformers
from helpers import byte_tokenizer
from packaging.version import Version
from transformers import LlamaConfig, LlamaForCausalLM

from examples.yardsticks import gsm, recall
from examples.yardsticks.readers import Reader, equal_bytes
from examples.yardsticks.recall_data import draw
from examples.yardsticks.rows import Rows
from modeling_sleep import SleepForCausalLM


L = 16
IDS = torch.arange(3, 75).tolist()
ESSAY = "Some people work. Others do not.\nWho knows why? Nobody asks them what they would like to do. " * 100


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


needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason='RULER comes with lm-evaluation-harness: pip install ".[eval]"',
)


@pytest.fixture(scope="module")
def word_tokenizer(tokenizer):
    """One that has learned RULER's templates and the form of English."""
    from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, vt_utils

    templates = [module.TEMPLATE for module in (cwe_utils, fwe_utils, niah_utils, vt_utils)]
    texts = [*templates * 5, ESSAY, "The grass is green. The sky is blue. The sun is yellow. Here we go."]
    return tokenizer.train_new_from_iterator(texts, vocab_size=1000)


@needs_harness
@pytest.mark.slow
def test_ruler_goes_on_where_it_stopped(word_tokenizer, tmp_path):
    from examples.yardsticks import ruler

    original = make_original(word_tokenizer, layers=2)
    sleeping = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="gated_delta", memory_layers=1)
    for name, model in (("original", original), ("sleeping", sleeping)):
        model.save_pretrained(tmp_path / name)
        word_tokenizer.save_pretrained(tmp_path / name)
    essays = tmp_path / "essays.json"
    essays.write_text(json.dumps({"text": ESSAY}))
    command = (
        f"{tmp_path / 'sleeping'} --original {tmp_path / 'original'} --rows {tmp_path / 'rows.jsonl'} --samples 2"
    )
    command += f" --essays {essays} --tasks niah_single_2 niah_multivalue --passes 2 --lengths"
    assert ruler.main([*command.split(), "2048", "--readers", "sleep", "whole"]) == 0
    assert ruler.main([*command.split(), "2048", "--readers", "sleep", "whole", "truncated"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["reader"] for row in rows] == ["sleep"] * 2 + ["whole"] * 2 + ["truncated"] * 2
    assert all(row["haystack"] == "essay" and row["accuracy"] == 0 and row["bytes"] > 0 for row in rows)
    assert 1000 < rows[0]["tokens"] <= 2048 and rows[-1]["tokens"] == rows[-1]["kept"]
    with pytest.raises(SystemExit):
        ruler.main([*command.split(), "500"])


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_3", "niah_multiquery", "vt", "cwe", "fwe"])
def test_samples_hold_their_answers_and_fit(task, word_tokenizer, tokenizer):
    from examples.yardsticks import ruler

    samples = ruler.Samples(word_tokenizer)
    one, two = (samples.draw(task, 8192, i) for i in range(2))
    assert one != two and one == samples.draw(task, 8192, 0)
    assert all(value in one["input"] for value in one["outputs"])
    assert 0.4 * 8192 < len(ruler.prompt(one, word_tokenizer)) <= 8192
    assert samples.haystack("niah_single_2") == "repeat" and samples.haystack("vt") is None
    with pytest.raises(ValueError, match="tokenizers of words"):
        ruler.Samples(tokenizer).draw(task, 4096, 0)


@pytest.mark.parametrize("kind, pairs, length", [("mqar", 8, 64), ("forgetting", 8, 64), ("compositional", 9, 64)])
def test_recall_is_asked_for_what_was_told_last(kind, pairs, length):
    examples = draw(kind, pairs, length, 20, torch.Generator().manual_seed(0))
    width = 3 if kind == "compositional" else 2
    told = pairs + (pairs // 2 if kind == "forgetting" else 0)
    for ids, labels in zip(examples["input_ids"].tolist(), examples["labels"].tolist(), strict=True):
        memory, changed = {}, 0
        for begin in range(0, width * told, width):
            *key, value = ids[begin : begin + width]
            changed += tuple(key) in memory and memory[tuple(key)] != value
            memory[tuple(key)] = value
        asked = [place for place, label in enumerate(labels) if label != -100]
        assert len(memory) == len(asked) == pairs and changed == told - pairs and min(asked) > width * told
        assert all(labels[p] == memory[tuple(ids[p - width + 1 : p])] for p in asked)
        assert len(set(memory.values())) == pairs or kind == "forgetting"
        if kind == "compositional":  # neither key alone tells
            assert all(len({key[i] for key in memory}) == 3 for i in (0, 1))


def test_recall_that_does_not_fit_is_refused():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="not 40"):
        draw("mqar", 16, 40, 2, generator)
    with pytest.raises(ValueError, match="square"):
        draw("compositional", 8, 64, 2, generator)
    with pytest.raises(ValueError, match="there are mqar"):
        draw("unknown", 8, 64, 2, generator)
    with pytest.raises(ValueError, match="a larger vocabulary or fewer pairs"):
        draw("mqar", 8, 64, 2, generator, vocabulary=16)


def test_every_model_is_trained_on_recall_and_measured(tmp_path, capsys):
    command = "mqar --widths 16 --learning-rates 1e-2 --epochs 1 --scale 0.0004 --most-pairs 8 --batch-size 8 "
    command += f"--vocabulary 64 --passes 1 3 --rows {tmp_path / 'rows.jsonl'} --device cpu --models "
    assert recall.main((command + "sleep attention").split()) == 0
    models = list(recall.MODELS)
    if Version(transformers.__version__) < Version("5.17"):
        with pytest.raises(SystemExit):
            recall.main((command + "olmo_hybrid").split())
        assert "olmo_hybrid needs transformers 5.17" in capsys.readouterr().err
        models.remove("olmo_hybrid")
    assert recall.main((command + " ".join(models)).split()) == 0
    rows = {(row["model"], row["passes"]): row for row in map(json.loads, (tmp_path / "rows.jsonl").open())}
    assert len(rows) == len(models) + 1  # `sleep` has two N
    for (name, _), row in rows.items():
        assert row["accuracy"].keys() == row["bytes"].keys() == {"4", "8"} and 0 < row["loss"] < 12, name
    kept = rows["attention", None]["bytes"]
    assert kept["4"] == kept["8"] == 2 * 2 * 16 * 4 * 64  # both tests have 64 tokens
    assert rows["sleep", 1]["bytes"]["8"] < kept["8"]
    assert rows["sleep", 1]["loss"] != rows["sleep", 3]["loss"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(rows)


@pytest.mark.parametrize("operations", [1, 3])
def test_problems_are_text_that_ends_before_its_answer(operations):
    task = gsm.task_of(operations, sentences=20, solved=2)
    for index in range(5):
        text, number = gsm.problem(task, operations, index)
        context, *questions = text.split("\n")
        assert context.count(".") == 20 and text.endswith("? Answer:") and number.isdigit()
        assert 1 <= len(questions) <= 3 and all(line.startswith("How many") for line in questions)
        (example,) = task.examples([index], split="eval", depth=operations)
        assert [int(number)] == [int(task.tokenizer().decode(x)) for x in task.solve(example)][-1:]


def test_problems_from_the_command_to_the_rows(original, sleeping, tokenizer, tmp_path, capsys):
    for name, model in (("original", original), ("sleeping", sleeping)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    command = f"{tmp_path / 'sleeping'} --original {tmp_path / 'original'} --rows {tmp_path / 'rows.jsonl'}"
    command += " --samples 2 --operations 1 2 --sentences 8 --solved 1 --passes 2 --kept 30 --device cpu --readers"
    assert gsm.main([*command.split(), "sleep"]) == 0
    assert gsm.main([*command.split(), "sleep", "whole", "sliding", "truncated"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    readers = ["sleep", "whole", "sliding", "truncated"]
    assert [(row["reader"], row["operations"]) for row in rows] == [(r, n) for r in readers for n in (1, 2)]
    assert rows[-1]["tokens"] == 30 < rows[0]["tokens"] and rows[0]["model"] == "sleeping"
    assert capsys.readouterr().out.count("\n") == 8
    with pytest.raises(SystemExit, match="--original"):
        gsm.main([str(tmp_path / "sleeping"), "--rows", str(tmp_path / "other.jsonl")])
