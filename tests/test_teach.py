"""Teaching a recall memory: what is cached is what the model knows, both stages learn, and nothing else changes."""

import copy
import dataclasses
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from examples.finetune_trainer import new_tokenizer
from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.hub_upload.card import read_results
from modeling_sleep.hub_upload.export import export
from modeling_sleep.recall_memory_sleep import RecallMemoryLayer, recall, write
from modeling_sleep.teach import __main__ as command
from modeling_sleep.teach import alone, evaluate, lengths, natural_text, stages, states
from modeling_sleep.teach.card import section
from modeling_sleep.teach.chat import Chat
from modeling_sleep.teach.estimate import SAMPLED, estimate, on_meta
from modeling_sleep.teach.everyday import ANSWER, MEASURED, TAUGHT, everyday_reads
from modeling_sleep.teach.facts import unit
from modeling_sleep.teach.filler import sentences
from modeling_sleep.teach.key_rank import cut_keys
from modeling_sleep.teach.lessons import (
    Exchanges,
    StoryTensors,
    exchanges,
    lesson,
    lessons,
    story_of,
    story_tensors,
    swap,
    texts,
)
from modeling_sleep.teach.names import words
from modeling_sleep.teach.reading import asleep_before, buffers, gates_of, queries_at, read_through, written
from modeling_sleep.teach.stages import ALONE, THROUGH, Alone, Course, ThroughLayers
from modeling_sleep.teach.states import StateCache
from modeling_sleep.teach.teaching import AMID, CUT, teach


L = 72
MIXED = ["linear_attention", "full_attention"] * 2
POSITIONS = {"rope_type": "default", "rope_theta": 1e4}
ORIGINALS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "olmo_hybrid": (OlmoHybridForCausalLM, OlmoHybridConfig, {"layer_types": MIXED, "rope_parameters": POSITIONS}),
    "qwen3_5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig, {"layer_types": MIXED, "head_dim": 8}),
    "qwen3_next": (Qwen3NextForCausalLM, Qwen3NextConfig, {"layer_types": MIXED, "head_dim": 8, "num_experts": 0}),
}
SMALL_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
}
FEW_ALONE = dataclasses.replace(ALONE, steps=12, stories=3, windows=(2, 3))
FEW_THROUGH = dataclasses.replace(THROUGH, steps=12, stories=2, windows=(2, 3))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [
        " ".join(sentences("prose", "train")),
        *[" ".join(sorted(words("train")))] * 9,
    ]
    tokenizer = new_tokenizer(texts, vocab_size=5000)  # whole words, so that facts fit into small windows
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<' + message['role'] + '>\n' + message['content'] + '</s>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer)


def make_original(family, tokenizer):
    model_class, config_class, options = ORIGINALS[family]
    torch.manual_seed(0)
    if "layer_types" in options:
        options = {**options, **SMALL_DELTA_NET}
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **options,
    )
    return model_class(config).eval()


def make_model(tokenizer, family="llama", **options):
    original = make_original(family, tokenizer)
    return SleepForCausalLM.from_causal_lm(
        original, window_size=L, **{"sleep_passes": 1, "memory": "recall", **options}
    )


def the_lessons(model, chat, folder, count=4, split="train", **options):
    return list(lessons(StateCache(model, folder), split, 0, chat, L, count, **{"facts": 3, **options}))


def test_what_is_read_is_what_the_model_knows_and_is_read_once(tokenizer, chat, tmp_path):
    model = make_model(tokenizer, window_overlap=0)
    cache = StateCache(model, tmp_path)
    story, asking = [list(range(10, 10 + L)), list(range(60, 60 + L))], [[5, 6, 7], [8, 9, 10, 11, 12]]
    told, texts = cache.read(story, asking)
    asked = [read for text in texts for read in text]
    place = model.config.memory_layers[0]
    for read in (*told, *asked):
        expected = model.model(torch.tensor([read.ids]), output_hidden_states=True)
        for found, layer in ((read.key_hidden_states, model.config.recall_key_layer), (read.hidden_states, place)):
            if found is not None:
                torch.testing.assert_close(found.float(), expected.hidden_states[layer][0], atol=1e-2, rtol=1e-2)
    assert told[0].hidden_states is None and asked[0].hidden_states is not None
    torch.testing.assert_close(
        asked[1].last_hidden_state.float(),
        model.model(torch.tensor([asking[1]])).last_hidden_state[0],
        atol=1e-2,
        rtol=1e-2,
    )
    assert told[0].keys is None and asked[0].keys.shape[2] == 3

    model.model.layers[0].forward = None  # nothing is computed the second time
    again, _ = StateCache(model, tmp_path).read(story, asking)
    assert torch.equal(again[1].key_hidden_states, told[1].key_hidden_states)
    other = make_model(tokenizer, "qwen3")
    assert StateCache(other, tmp_path).fingerprint != cache.fingerprint


@pytest.mark.parametrize("key_layer", [None, 1])
@pytest.mark.parametrize("overlap", [0, 24])
def test_for_the_memory_by_itself_less_is_read(tokenizer, chat, tmp_path, overlap, key_layer):
    """Of lessons that nothing is read through, keys know the same, and no layer behind those that they need runs."""
    model = make_model(tokenizer, window_overlap=overlap, recall_key_layer=key_layer)
    first = model.config.memory_layers[0] if key_layer is None else key_layer
    whole = the_lessons(model, chat, tmp_path / "whole", cut=CUT)
    for layer in model.model.layers[first:]:
        layer.forward = None
    less = the_lessons(model, chat, tmp_path / "less", cut=CUT, through=False)
    for ours, theirs in zip(less, whole, strict=True):
        reads, expected = (
            [*x.story, *itertools.chain(*([*y.before, y.read] for y in x.asked))] for x in (ours, theirs)
        )
        for read, other in zip(reads, expected, strict=True):
            for field in ("key_hidden_states", "kept_key_hidden_states"):
                told, known = getattr(read, field), getattr(other, field)
                assert (told is None) == (known is None) and (told is None or torch.equal(told, known))
            assert read.keys is None and read.last_hidden_state is None
    (tail,) = the_lessons(model, chat, tmp_path / "tail", cut=CUT, through=False, first=3, count=1)
    assert tail.asked[0].question == whole[3].asked[0].question
    assert size_of(tmp_path / "less") < 0.7 * size_of(tmp_path / "whole")


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("key_layer", [None, 1])
@torch.no_grad()
def test_windows_know_what_is_kept_of_those_before_them(tokenizer, tmp_path, key_layer):
    """With an overlap, stories and texts of unequal lengths that ask behind them are read as the model reads them."""
    model = make_model(tokenizer, window_overlap=24, pinned_tokens=2, recall_key_layer=key_layer)
    place, ids = model.config.memory_layers[0], [*range(4, 4 + 4 * L)]
    story, asking = [ids[:L], ids[L : 2 * L]], [ids[2 * L : 2 * L + 5], ids[2 * L :][: L + 9], ids[2 * L :][: L + 3]]
    told, asked = StateCache(model, tmp_path).read(story, asking)
    assert [[len(read.ids) for read in text] for text in asked] == [[5], [L, 9], [L, 3]]
    for text in asked:
        reads = [*told, *text]
        whole = model.model(torch.tensor([sum((read.ids for read in reads), [])]), output_hidden_states=True)
        expected = whole.hidden_states[place][0]
        found = torch.cat([read.hidden_states for read in text]).float()
        torch.testing.assert_close(found, expected[2 * L :], atol=1e-2, rtol=1e-2)
        expected = whole.hidden_states[place if key_layer is None else key_layer][0]
        found = torch.cat([read.key_hidden_states for read in reads]).float()
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
        for number, read in enumerate(reads[1:], 1):
            kept = expected[number * L - 24 : number * L]
            torch.testing.assert_close(read.kept_key_hidden_states.float(), kept, atol=1e-2, rtol=1e-2)
    assert told[0].kept_key_hidden_states is None and (told[0].hidden_states is None) == (key_layer is not None)


def test_the_cache_stays_within_its_limit(tokenizer, tmp_path):
    cache = StateCache(make_model(tokenizer), tmp_path, limit=20_000)
    for first in range(4, 10):
        cache.read([list(range(first, first + L))])
    files = list(tmp_path.iterdir())
    assert files and sum(path.stat().st_size for path in files) <= 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_lessons_take_no_memory_that_the_system_could_not_take_back(tmp_path):
    """A thousand of them are gigabytes."""

    def anonymous():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    size = 50_000_000
    states.save({"x": torch.ones(size // 2, dtype=torch.half)}, tmp_path / "x.safetensors")
    before = anonymous()
    tensors = states.load(tmp_path / "x.safetensors")
    assert tensors["x"].sum(dtype=torch.float32) == size // 2
    assert anonymous() - before < size / 4


def test_a_broken_file_is_read_anew(tokenizer, tmp_path):
    cache = StateCache(make_model(tokenizer), tmp_path)
    (read,), _ = cache.read([list(range(L))])
    known = read.key_hidden_states.clone()  # it is mapped from the file that breaks
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    (again,), _ = cache.read([list(range(L))])
    assert torch.equal(known, again.key_hidden_states)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    "kept",
    [
        {},
        dict(window_overlap=24),
        dict(window_overlap=24, pinned_tokens=2),
        dict(window_overlap=24, recall_key_layer=1),
    ],
    ids=str,
)
@torch.no_grad()
def test_reading_through_cached_states_is_what_the_model_does(tokenizer, chat, tmp_path, kept, passes):
    """Story and question token by token through the model, or from the cache: the same prediction."""
    model = make_model(tokenizer, read_out=0.5, **kept)
    place = model.config.memory_layers[0]
    # One window, as what is kept of a second one, behind the memory, would know what the memory gave there.
    learned = max(the_lessons(model, chat, tmp_path, windows=1), key=lambda x: len(x.asked))
    asked = learned.asked[0]
    ids = torch.tensor([[i for read in learned.story for i in read.ids] + asked.read.ids])
    expected = model.model(ids, sleep_passes=passes).last_hidden_state[0, -len(asked.read.ids) :]

    memory, embeddings = model.model.layers[place], model.model.embed_tokens.weight
    story = [[(learned, i) for i in range(len(learned.story))]]
    S, _ = written(memory, story_tensors(story, embeddings, torch.float32), passes)
    found = read_through(model, place, S, [asked.read], [0]).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)  # states are kept in half precision
    without = model.model(torch.tensor([asked.read.ids])).last_hidden_state[0]
    assert (found - without).abs().max() > 0.5

    # From some token on: rows of unequal lengths beside one another, as by themselves.
    reads = [x.read for x in learned.asked[:2]]
    begins = [3, 5]
    both = read_through(model, place, S[[0, 0]], reads, begins).last_hidden_state
    for row, (read, begin) in enumerate(zip(reads, begins)):
        by_itself = read_through(model, place, S, [read], [begin]).last_hidden_state[0]
        torch.testing.assert_close(both[row, : len(read.ids) - begin], by_itself, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("passes", [1, 2])
@torch.no_grad()
def test_a_question_that_is_cut_is_slept_over_as_the_model_does(tokenizer, chat, tmp_path, passes):
    model = make_model(tokenizer, read_out=0.5, window_overlap=24, pinned_tokens=1)
    place = model.config.memory_layers[0]
    memory, embeddings = model.model.layers[place], model.model.embed_tokens.weight
    learned = the_lessons(model, chat, tmp_path, count=24, cut=1.0)
    cut = [(x, asked) for x in learned for asked in x.asked if asked.before]
    apart = [x for x in cut if x[1].question.text in tokenizer.decode(x[1].read.ids)]  # behind a window of other text
    cut = [x for x in cut if not any(x is y for y in apart)]
    assert len(cut) > 5 and all(asked.question.cut in ("question", "both") for _, asked in cut)
    for x, asked in cut[:6]:
        S, _ = written(
            memory, story_tensors([[(x, i) for i in range(len(x.story))]], embeddings, torch.float32), passes
        )
        S, betas = asleep_before(memory, S, [asked], embeddings, passes)
        assert betas[0].shape == (1, 1, L)
        windows = [*x.story, *asked.before]
        cache = model(torch.tensor([sum((read.ids for read in windows), [])]), sleep_passes=passes).past_key_values
        expected = model.sleep(cache, passes).layers[place].state.recurrent_state
        torch.testing.assert_close(S, expected, atol=2e-3 * expected.abs().max().item(), rtol=0)
        # What is sought is predicted in the window that is read, by the token before it.
        whole = asked.question.prompt + asked.answer.ids
        flat = sum(len(read.ids) for read in asked.before)
        assert asked.before[0].ids + asked.read.ids == whole[: flat + len(asked.read.ids)]
        sought = asked.sought()
        assert [one.token for one in sought] == [whole[flat + one.column + 1] for one in sought]
        assert len(asked.question.prompt) + asked.answer.value[0] in [
            flat + one.column + 1 for one in sought if one.kind == "value"
        ]


@torch.no_grad()
def test_a_swapped_value_is_another_fact(tokenizer, chat, tmp_path):
    """S and what is sought change together, and nothing else does."""
    model = make_model(tokenizer)
    memory, embeddings = model.model.layers[model.config.memory_layers[0]], model.model.embed_tokens.weight
    for learned in the_lessons(model, chat, tmp_path, count=12):
        swapped = swap(learned, random.Random(0), Exchanges(dict.fromkeys(range(len(tokenizer)), [7]), {}), 1.0)
        changed = [(x, y) for x, y in zip(learned.asked, swapped.asked) if x.value != y.value]
        if changed:
            break
    (before, after), *_ = changed
    window, place = before.question.window, before.question.told[0]
    assert set(after.value) == {7} and len(after.value) == len(before.value) and swapped.swapped[window, place] == 7
    assert learned.story[window].ids[place] == before.value[0]
    assert [x.token for x in after.sought() if x.kind == "value"] == after.value
    assert [x.column for x in after.sought()] == [x.column for x in before.sought()]
    first, second = (
        story_tensors([[(x, i) for i in range(2)]], embeddings, torch.float32) for x in (learned, swapped)
    )
    assert torch.equal(first[0], second[0]) and torch.equal(second[1][0, window, place], embeddings[7])
    assert not torch.equal(written(memory, first)[0], written(memory, second)[0])


@torch.no_grad()
def test_a_value_may_be_told_without_the_space_before_it(tokenizer, chat, tmp_path):
    """The same is asked, and another token's embedding is written."""
    learned = the_lessons(make_model(tokenizer), chat, tmp_path, count=12)
    spaced = [i for i in range(len(tokenizer)) if tokenizer.decode([i])[0] == " "]
    others, unspaced = Exchanges({}, dict.fromkeys(spaced, 7)), 0
    for x in learned:
        swapped = swap(x, random.Random(0), others, 0.0, unspaced=1.0)
        assert [asked.value for asked in swapped.asked] == [asked.value for asked in x.asked]
        places = [x.places(asked.question) for asked in x.asked if asked.value[0] in spaced]
        firsts = {first for first, *_ in places if x.story[first[0]].ids[first[1]] in spaced}
        assert swapped.swapped == dict.fromkeys(firsts, 7)
        unspaced += len(firsts)
    assert unspaced > 5 and not any(swap(x, random.Random(0), others, 0.0).swapped for x in learned)


def test_tokens_that_differ_by_a_space_are_found():
    tokenizer = new_tokenizer(["red red", "red blue"] * 9, vocab_size=300)
    red, blue, spaced_red, spaced_blue = (tokenizer.convert_tokens_to_ids(x) for x in ("red", "blue", "Ġred", "Ġblue"))
    assert blue == tokenizer.unk_token_id != spaced_blue  # there is none
    unspaced = exchanges(Chat(tokenizer), 10, seed=0).unspaced
    assert unspaced[spaced_red] == red and spaced_blue not in unspaced
    assert all(tokenizer.decode([i]) == " " + tokenizer.decode([j]) for i, j in unspaced.items())


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_what_is_not_written_is_left_out_and_changes_nothing(threshold):
    """S and all gradients of a story, against the rule over every token of every window."""
    config = SleepConfig(
        hidden_size=16, num_hidden_layers=2, layer_types=["sleep_attention", "recall_memory"], memory_layers=[1],
        recall_pooling_dim=4, recall_hindsight=2, recall_products=True, recall_threshold=threshold,
    )  # fmt: skip
    torch.manual_seed(0)
    memory = RecallMemoryLayer(config, 1).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.normal_(std=0.4)
        memory.A_log.fill_(-2)
        memory.b_proj.bias.fill_(0.0)
    hidden_states, embeddings = torch.randn(2, 3, 4, 6, 16, dtype=torch.float64)
    S, beta = written(memory, StoryTensors(hidden_states, embeddings))
    assert (beta == 0).float().mean() > (0.3 if threshold else 0.1)
    expected = None
    for window in range(4):
        state = buffers(memory, hidden_states[:, window], None, None)
        known, log_decay, step = memory.gates(state, None)
        value = memory.v_proj(embeddings[:, window])
        expected = write(memory.key(known), value, log_decay, step, expected)
    torch.testing.assert_close(S, expected, atol=1e-9, rtol=1e-9)
    for ours, theirs in zip(
        *(torch.autograd.grad(x.pow(2).sum(), list(memory.parameters()), allow_unused=True) for x in (S, expected))
    ):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_what_teaching_takes_is_told_before(tokenizer, chat, tmp_path):
    """From the configuration alone: bytes on disk, and operations, as they are counted while lessons are read."""
    model = make_model(tokenizer, window_overlap=24, pinned_tokens=1)
    told = estimate(on_meta(model.config), chat, ALONE, THROUGH, units=SAMPLED)
    with FlopCounterMode(display=False) as counted:
        learned = the_lessons(model, chat, tmp_path, SAMPLED, facts=7, amid=AMID, cut=CUT)
    assert counted.get_total_flops() == pytest.approx(told.reading, rel=0.4)  # attention is not estimated
    assert size_of(tmp_path) == pytest.approx(told.cache, rel=0.15)
    more = estimate(on_meta(model.config), chat, ALONE, THROUGH, units=SAMPLED, alone_units=SAMPLED)
    with FlopCounterMode(display=False) as counted:
        the_lessons(model, chat, tmp_path, SAMPLED, facts=7, amid=AMID, cut=CUT, first=SAMPLED, through=False)
    assert counted.get_total_flops() == pytest.approx(more.reading - told.reading, rel=0.4)
    assert size_of(tmp_path) == pytest.approx(more.cache, rel=0.15)
    memory, embeddings = model.model.layers[model.config.memory_layers[0]], model.model.embed_tokens.weight
    assert told.parameters == sum(p.numel() for p in memory.parameters())
    assert told.memory == written(memory, story_tensors([[(learned[0], 0)]], embeddings, torch.float32))[0].nbytes
    assert "M parameters" in str(told) and " h at 1 TFLOP/s" in str(told)
    cut_keys(memory, learned[:9], embeddings, model.config.recall_key_dim // 4)
    assert told.kept == sum(p.numel() for p in memory.parameters()) < told.parameters


def test_longer_stories_ask_nothing_twice(tokenizer, chat, tmp_path):
    learned = the_lessons(make_model(tokenizer), chat, tmp_path, count=8)
    for seed in range(5):
        story = story_of(learned[0], learned, 5, random.Random(seed))
        assert len(story) == 5 and [i for x, i in story if x is learned[0]] == [0, 1]
        others = {id(x): x for x, _ in story if x is not learned[0]}
        assert all(learned[0].texts.isdisjoint(x.texts) for x in others.values())


def test_natural_text_is_a_share_of_what_makes_stories_longer(tokenizer, chat, tmp_path):
    model = make_model(tokenizer)
    learned = the_lessons(model, chat, tmp_path, count=8)
    natural = list(texts(StateCache(model, tmp_path), "train", 0, chat, L, 2))
    for share in (0.0, 0.5, 0.8):
        stage = dataclasses.replace(FEW_ALONE, natural=share)
        course = Alone(stage, model, model.config.memory_layers[0], learned, Exchanges({}, {}), 0, texts=natural)
        assert sum(not x.asked for x in course.others) == round(share * len(course.others))
        story = story_of(learned[0], course.others, 40, random.Random(0))
        assert len(story) > len(learned[0].story) and any(not x.asked for x, _ in story) == bool(share)
        told = course.stories(random.Random(0))
        assert told.beta.shape[2] == L and told.S.shape[0] == len(told.lessons)


def test_steps_that_teach_nothing_are_said(tokenizer, chat, tmp_path, monkeypatch):
    model = make_model(tokenizer)
    learned = the_lessons(model, chat, tmp_path, count=2)
    course = Alone(FEW_ALONE, model, model.config.memory_layers[0], learned, Exchanges({}, {}), 0)
    memory = copy.deepcopy(course.memory.state_dict())
    warnings = []
    monkeypatch.setattr(stages.logger, "warning", warnings.append)
    factors = [0.0 if number == 3 else math.nan for number in range(20)]
    monkeypatch.setattr(course, "losses", lambda number, rng: [(course.sharpness * factors[number], {})])
    with pytest.raises(FloatingPointError, match="10 steps one behind the other, up to step 13, were not finite"):
        for number in range(len(factors)):
            course.step(number, 0.0)
    assert len(warnings) == 13 and warnings[0] == "Step 0 is left out: its gradients are not finite."
    assert all(x.equal(course.memory.state_dict()[name]) for name, x in memory.items())


@torch.no_grad()
def loss_of(course):
    """Over some steps, from which nothing is learned."""
    losses = [told.get("loss", 0.0) for number in range(4) for _, told in course.losses(number, random.Random(number))]
    return sum(losses)


@pytest.mark.parametrize(
    "family, overlap, key_layer",
    [*((family, 0, None) for family in ORIGINALS), ("llama", 24, None), ("qwen3_5", 24, None), ("llama", 24, 1)]
    + [("qwen3", 0, 1), ("qwen3_5", 24, 1)],
)
def test_both_stages_learn(tokenizer, chat, tmp_path, family, overlap, key_layer):
    kept = dict(window_overlap=overlap, pinned_tokens=min(overlap, 1), recall_key_layer=key_layer)
    model = make_model(tokenizer, family, read_out=0.5, **kept).requires_grad_(False)
    place = model.config.memory_layers[0]
    model.model.layers[place].requires_grad_(True)
    learned = the_lessons(model, chat, tmp_path, cut=0.5 if overlap else 0.0)
    natural = list(texts(StateCache(model, tmp_path), "train", 0, chat, L, 1))
    assert all(len(read.ids) == L for read in natural[0])
    plain = everyday_reads(StateCache(model, tmp_path), learned, chat)
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    for course in (
        Alone(FEW_ALONE, model, place, learned, Exchanges({}, {}), 0),
        ThroughLayers(FEW_THROUGH, model, place, learned, Exchanges({}, {}), 0, texts=natural, plain=plain),
    ):
        before, told = loss_of(course), [course.step(number, 0.0) for number in range(3 * course.stage.steps)]
        assert loss_of(course) < before
    assert {"recall", "end", "begin", "keep", "plain", "beta"} <= set().union(*told)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


def test_behind_a_story_everyday_questions_are_to_be_answered_as_before(tokenizer, chat, tmp_path):
    """There a memory that reads nothing out changes nothing, and one that does is told so."""
    model = make_model(tokenizer, read_out=0.5)
    place = model.config.memory_layers[0]
    learned = the_lessons(model, chat, tmp_path)
    plain = everyday_reads(StateCache(model, tmp_path), learned, chat)
    assert 10 < len(plain) <= len(TAUGHT) and not set(TAUGHT) & set(MEASURED)
    for x in plain:
        text = tokenizer.decode(x.read.ids[: x.begin])
        assert text.endswith(chat.to_assistant) and any(question in text for question in TAUGHT)
        assert x.begin < len(x.read.ids) <= min(x.begin + ANSWER, L) and x.read.kept_keys is not None
    course = ThroughLayers(FEW_THROUGH, model, place, learned, Exchanges({}, {}), 0, plain=plain)
    _, told = course.answers(random.Random(0))
    assert told["plain"] > 1e-3
    torch.nn.init.zeros_(model.model.layers[place].o_proj.weight)
    _, silent = course.answers(random.Random(0))
    assert abs(silent["plain"]) < 1e-3  # states are kept in half precision
    course.stage = dataclasses.replace(course.stage, everyday=0.0)
    assert "plain" not in course.answers(random.Random(0))[1]


def test_natural_text_is_read_behind_stories_too(tokenizer, chat, tmp_path, monkeypatch):
    """As many windows as a story may have, the text's own before it the last; what they cost is of these alone."""
    model = make_model(tokenizer)
    learned, place = the_lessons(model, chat, tmp_path), model.config.memory_layers[0]
    natural = list(texts(StateCache(model, tmp_path), "train", 0, chat, L, 1))
    found = []

    def noted(memory, tensors):
        S, beta = written(memory, tensors)
        found.append((tensors.key_hidden_states[0], beta[0]))
        return S, beta

    monkeypatch.setattr("modeling_sleep.teach.stages.written", noted)
    stage = dataclasses.replace(FEW_THROUGH, windows=(2, 9))
    course = ThroughLayers(stage, model, place, learned, Exchanges({}, {}), 0, texts=natural)
    for number in range(12):
        _, told = course.text(random.Random(number))
        own = [
            i
            for i in range(1, 1 + min(3, len(found[-1][0])))
            if torch.equal(found[-1][0][-i].half(), natural[0][0].key_hidden_states)
        ]
        assert told["text_beta"] == pytest.approx(found[-1][1][-own[-1] :].mean().item())
    assert {len(windows) for windows, _ in found} >= {3, 9} and max(len(windows) for windows, _ in found) == 9
    course.stage = dataclasses.replace(stage, windows=(1, 1))
    course.text(random.Random(0))
    assert len(found[-1][0]) <= 3


def test_what_is_found_alone_is_told_and_why_the_rest_is_not(tokenizer, chat, tmp_path, monkeypatch):
    """Asked in the very words in which it was told, a value has the nearest key, as queries begin as keys do."""
    model = make_model(tokenizer).eval()
    memory = model.model.layers[model.config.memory_layers[0]]
    learned = the_lessons(model, chat, tmp_path, count=8)
    asked = [(x, *y) for x in learned for y in alone.value_tokens(chat, x)]
    assert all(lesson.story[window].ids[at] == token for lesson, _, nth, _, token, (window, at) in asked if nth)
    with torch.no_grad():
        memory.b_proj.bias.fill_(20.0)
        rows = alone.search(model, chat, learned, 2)
        assert len(rows) == len(asked) and all(row["written"] for row in rows)
        assert [row["token"] for row in rows] == [nth for _, _, nth, *_ in asked]
        assert {0, 1, 2} <= {row["token"] for row in rows}
        assert not any(row["nearest"] and row["beside"] for row in rows) and any(row["beside"] for row in rows)
        assert alone.search(model, chat, [], 2) == []

        def in_its_words(chat, lesson, value_tokens=alone.value_tokens):
            for question, nth, _, token, (window, at) in value_tokens(chat, lesson):
                yield dataclasses.replace(question, read=lesson.story[window]), nth, at - 1, token, (window, at)

        with monkeypatch.context() as patch:
            again = next(in_its_words(chat, learned[0]))
            patch.setattr(alone, "value_tokens", lambda *_: [again])
            (row,) = alone.search(model, chat, learned[:1], 1)
            assert row["nearest"] and row["written"]
        monkeypatch.setattr(alone, "value_tokens", in_its_words)
        rows = alone.search(model, chat, learned, 2)
        nearest = sum(row["nearest"] for row in rows)
        assert nearest > 0.7 * len(rows) and all(row["written"] for row in rows)
        tokens = [token for lesson in learned for _, _, _, token, _ in alone.value_tokens(chat, lesson)]
        memory.b_proj.bias.fill_(-20.0)
        assert not any(row["nearest"] or row["written"] for row in alone.search(model, chat, learned, 2))

        codes = memory.v_proj(model.model.embed_tokens.weight)
        for common, found in ((0.0, True), (100.0, False)):  # in what S gives to all
            given = iter(codes[tokens] + common * codes[7])
            monkeypatch.setattr(alone, "recall", lambda query, S, given=given: next(given))
            rows = alone.search(model, chat, learned, 2)
            assert [row["found"] for row in rows].count(found) > 0.9 * len(rows)
            assert [row["stands out"] for row in rows].count(True) > 0.9 * len(rows)


def test_the_command_tells_what_is_found_alone(tokenizer, tmp_path, capsys):
    model = make_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert alone.main([str(tmp_path / "model"), "--lessons", "3", "--windows", "2", "--passes", "1"]) == 0
    told = capsys.readouterr().out
    names = [f"{which}{name}: " for which in ("", "later tokens, ") for name in alone.TOLD]
    assert all(f"{split}, {name}" in told for split in ("known", "eval") for name in names)
    assert alone.main([str(tmp_path / "nowhere")]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_query_is_held_against_every_key_of_its_story(tokenizer, chat, tmp_path):
    """The value's own key among all that were written, without those of the same token elsewhere."""
    model = make_model(tokenizer)
    place = model.config.memory_layers[0]
    learned = the_lessons(model, chat, tmp_path, count=8)
    course = Alone(FEW_ALONE, model, place, learned, exchanges(chat, 50, 0), 0)
    torch.nn.init.normal_(course.memory.b_proj.weight)  # some tokens are written and some are not
    told = course.stories(random.Random(3))
    rows, asked = zip(*((row, x) for row, lesson in enumerate(told.lessons) for x in lesson.asked))
    values = [[one for one in x.sought() if one.kind == "value"] for x in asked]
    query, _ = queries_at(course.memory, [x.read for x in asked], [[one.column for one in value] for value in values])
    scores, own = course.nearness(told, rows, asked, values, query)

    known, _, beta = gates_of(course.memory, story_tensors(told.stories, course.embeddings, torch.float32))
    keys = F.normalize(course.memory.key(known), dim=-1)
    expected = []
    for number, (row, x, value) in enumerate(zip(rows, asked, values)):
        lesson, story = told.lessons[row], told.stories[row]
        columns = [
            (next(n for n, (y, i) in enumerate(story) if y is lesson and i == window), at)
            for window, at in lesson.places(x.question)
        ]
        for j, (column, at) in enumerate(columns if len(columns) == len(value) else ()):
            if beta[row, column, at] > 0:
                token = lesson.swapped.get((story[column][1], at), lesson.story[story[column][1]].ids[at])
                others = [
                    y.swapped.get((i, c), read_token)
                    for n, (y, i) in enumerate(story)
                    for c, read_token in enumerate(y.story[i].ids)
                    if beta[row, n, c] > 0
                ]
                cosine = F.normalize(query[number, j], dim=-1) @ keys[row, column, at]
                expected.append((course.sharpness.exp() * cosine, len(others) - others.count(token) + 1))
    assert 5 < len(expected) == len(own) and bool((beta == 0).any())
    cosines, counts = zip(*expected)
    torch.testing.assert_close(scores.gather(1, own.unsqueeze(1)).flatten(), torch.stack(cosines))
    assert scores.isfinite().sum(1).tolist() == list(counts)


def test_every_question_reads_the_story_as_it_finds_it(tokenizer, chat, tmp_path):
    """Against a copy of S for each question, with what its own beginning has filled written into it."""
    model = make_model(tokenizer, read_out=0.5, window_overlap=24, pinned_tokens=1)
    learned = the_lessons(model, chat, tmp_path, count=24, cut=1.0)
    stage = dataclasses.replace(FEW_ALONE, stories=6)
    course = Alone(stage, model, model.config.memory_layers[0], learned, exchanges(chat, 50, 0), 0)
    told = course.stories(random.Random(3))
    rows, asked = zip(*((row, x) for row, lesson in enumerate(told.lessons) for x in lesson.asked))
    for kept in (range(len(asked)), *([i for i, x in enumerate(asked) if bool(x.before) == cut] for cut in (0, 1))):
        here, some = [rows[i] for i in kept], [asked[i] for i in kept]
        assert len(some) > 1
        _, query, _ = course.asking(some)
        S, expected_beta = course.slept_over(told.S, told.beta, here, some)
        found, beta = course.recalled(told, here, some, query)
        torch.testing.assert_close(found, recall(query, S), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(beta, expected_beta)


def test_queries_are_made_at_the_places_that_are_given(tokenizer, chat, tmp_path):
    model = make_model(tokenizer)
    memory = model.model.layers[model.config.memory_layers[0]]
    learned = max(the_lessons(model, chat, tmp_path), key=lambda x: len(x.asked))
    reads = [x.read for x in learned.asked[:2]]
    query, is_place = queries_at(memory, reads, [[2, 4], [3]])
    assert is_place.tolist() == [[True, True], [True, False]] and query.shape[-1] == memory.k_proj.out_features
    for i, at in enumerate((2, 4)):
        by_itself, _ = queries_at(memory, [reads[0]], [[at]])
        torch.testing.assert_close(query[0, i], by_itself[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("passes", [1, 3])
def test_other_text_is_written_as_it_would_be_read(tokenizer, chat, passes):
    """`lengths` reads it once, without the memory, and half precision is all that this costs."""
    model = make_model(tokenizer, read_out=0.5, window_overlap=0).eval()
    model.config.sleep_passes = passes
    place = model.config.memory_layers[0]
    windows = lengths.other_text(chat, 0, L, 4)
    assert [len(window) for window in windows] == [L] * 4
    sleep = lengths.sleeps_over(model, windows)
    story = torch.tensor([unit("eval", 0, 0, chat, L).story[0]])
    with torch.no_grad():
        cache = model(story, use_cache=True).past_key_values
        read = model.read(torch.tensor([sum(windows[:3], [])]), past_key_values=cache, progress=False)
        read = model.sleep(read)
    sleep(cache, 3)
    S, expected = (x.layers[place].state.recurrent_state for x in (cache, read))
    torch.testing.assert_close(S, expected, atol=2e-3 * expected.abs().max().item(), rtol=0)


def test_curves_are_measured_and_drawn(tokenizer, tmp_path):
    model = make_model(tokenizer, read_out=0.5)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows, plot = tmp_path / "rows.jsonl", tmp_path / "curves.png"
    options = [str(tmp_path / "model"), "--rows", str(rows), "--questions", "2", "--passes", "1"]
    assert lengths.main([*options, "--sleeps", "1", "3", "--facts", "3"]) == 0
    once = rows.read_text()
    assert lengths.main([*options, "--sleeps", "1", "3", "--facts", "3", "6", "--plot", str(plot)]) == 0
    twice = [json.loads(line) for line in rows.read_text().splitlines()]
    assert rows.read_text().startswith(once) and plot.stat().st_size > 10_000
    told = [(row["curve"], row["count"]) for row in twice]
    assert told == [("sleeps", 1), ("sleeps", 3), ("facts", 3), ("facts", 6)]
    assert all(row["asked"] == 2 and 0 <= row["right"] <= 2 for row in twice)
    assert lengths.main(["nowhere", "--rows", str(rows)]) == 1


def save_base_and_memory(tokenizer, folder):
    """A pretrained model in `folder/base`, and a memory for it in `folder/memory`; returns the two as one."""
    original = make_original("llama", tokenizer)
    original.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = SleepForCausalLM.from_causal_lm(original, window_size=L, memory="recall", read_out=0.5)
    model.save_pretrained(folder / "memory", memory_only=True)
    return model


def test_the_command_asks_of_a_taught_memory_and_of_the_original(tokenizer, tmp_path, capsys):
    model = save_base_and_memory(tokenizer, tmp_path)
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    options = ["--questions", "2", "--rows", str(tmp_path / "rows.jsonl")]
    whole, base, memory = (str(tmp_path / name) for name in ("whole", "base", "memory"))
    readers = ["--readers", "whole", "zeroed", "--passes", "1", "2"]
    for given in ([whole], [base, "--memory", memory]):
        assert evaluate.main([*given, *options, *readers]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 4 * 2 * 3 and rows[:24] == rows[24:]
    assert {row["reader"] for row in rows} == {f"{name}, N={n}" for name in ("whole", "zeroed") for n in (1, 2)}
    assert "| zeroed, N=2 | eval |" in capsys.readouterr().out
    assert evaluate.main([base, *options, "--window-size", str(L), "--readers", "last", "nearest"]) == 0
    for refused, said in (
        (["--readers", "zeroed"], "`zeroed` is for models that sleep"),
        (["--passes", "2"], "--passes is for models that sleep"),
        (["--questions", "0"], "at least one question"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([base, *options, *refused])
        assert said in capsys.readouterr().err
    assert evaluate.main(["nowhere", *options]) == evaluate.main([base, "--memory", "nothing", *options]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_ordinary_text_behind_sleeps_beside_the_original_with_as_little(tokenizer, tmp_path, capsys):
    save_base_and_memory(tokenizer, tmp_path)
    rows = tmp_path / "rows.jsonl"
    options = [str(tmp_path / "base"), "--memory", str(tmp_path / "memory"), "--rows", str(rows), "--texts", "2"]
    assert natural_text.main([*options, "--tokens", str(3 * L), "--window-size", "16", str(L)]) == 0
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["window_size"] for row in told] == [16] * 5 + [L] * 5
    assert capsys.readouterr().out.count("| with sleep |") == 2
    for size, (ours, single, sight, many, whole) in ((16, told[:5]), (L, told[5:])):
        assert ours["before"] == sight["before"] == size // 2 < many["before"] and whole["before"] is None
        assert ours["first"] == pytest.approx(whole["first"], rel=1e-4)  # the first window is the original's
        assert len({round(row["later"], 3) for row in (ours, single, sight, whole)}) == 4
        assert len({row["tokens"] for row in (ours, single, sight, many, whole)}) == 1
    with pytest.raises(SystemExit):
        natural_text.main([*options, "--tokens", "20", "--window-size", "16"])
    with pytest.raises(SystemExit):
        natural_text.main([*options, "--tokens", str(2 * L - 1)])  # of the memory's own windows
    with pytest.raises(SystemExit):
        natural_text.main([*options, "--texts", "0"])
    assert natural_text.main([*options, "--window-size", "0"]) == 1
    assert "at least 1 token" in capsys.readouterr().err
    assert natural_text.main(["nowhere", "--memory", "nothing"]) == 1
    with pytest.raises(SystemExit):
        natural_text.main(options[:1])
    assert "its taught memory by --memory" in capsys.readouterr().err


def few(model, tokenizer, folder, **options):
    return teach(
        model,
        tokenizer,
        folder,
        units=4,
        natural_texts=1,
        **{"questions": 0, "alone": FEW_ALONE, "through": FEW_THROUGH, **options},
    )


def test_it_goes_on_where_it_was_stopped(tokenizer, tmp_path, monkeypatch):
    memories = []
    for stopped in (False, True):
        model = make_model(tokenizer)
        if stopped:
            monkeypatch.setattr("modeling_sleep.teach.teaching.SAVE_EVERY", 1)
            step = ThroughLayers.step

            def stop(self, number, progress, step=step):
                if number == 5:
                    raise KeyboardInterrupt
                return step(self, number, progress)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(ThroughLayers, "step", stop)
                few(model, tokenizer, tmp_path / "stopped", cache=tmp_path / "states")
            model = make_model(tokenizer)
        results = few(model, tokenizer, tmp_path / ("stopped" if stopped else "whole"), cache=tmp_path / "states")
        assert results["steps"] == {"alone": 12, "through": 12}
        memories.append(model.model.layers[model.config.memory_layers[0]].state_dict())
    for name, parameter in memories[0].items():
        torch.testing.assert_close(memories[1][name], parameter, atol=1e-5, rtol=1e-5)


@pytest.mark.programs
def test_two_processes_learn_what_one_does_from_the_stories_of_both(tokenizer, tmp_path, monkeypatch, capsys):
    make_original("llama", tokenizer).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    options = [str(tmp_path / "pretrained"), "--device", "cpu", "--window-size", str(L), "--windows", "2", "4"]
    options += ["--units", "5", "--alone-units", "3", "--steps", "3", "3", "--questions", "0", "--memory-only"]
    options += ["--cache", str(tmp_path / "states"), "--output"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "modeling_sleep.teach", *options, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("of the first of 2 processes; see README.md there") == 1
    assert "learning through: 100%" in done.stderr

    losses = {course: course.losses for course in (Alone, ThroughLayers)}

    def losses_of_both(self, number, rng):
        state = rng.getstate()
        for rank in range(2):
            rng.setstate(state)
            monkeypatch.setattr(stages, "part_ways", lambda rng, rank=rank: rng.seed(f"{rng.random()}/{rank}"))
            yield from ((loss / 2, facts) for loss, facts in losses[type(self)](self, number, rng))

    monkeypatch.setattr(stages, "number_of_processes", lambda: 2)
    for course in losses:
        monkeypatch.setattr(course, "losses", losses_of_both)
    assert command.main([*options, str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / name / "memory_model.safetensors") for name in ("one", "two"))
    for name, parameter in one.items():
        torch.testing.assert_close(two[name], parameter, atol=1e-5, rtol=1e-5)


def test_the_first_stage_learns_from_more_lessons(tokenizer, tmp_path, monkeypatch):
    """Which stand in the stories of the second as well, that asks none of them."""
    courses = []
    monkeypatch.setattr(Course, "step", lambda self, number, progress: courses.append(self) or {})
    few(make_model(tokenizer), tokenizer, tmp_path, alone_units=3)
    alone, through = dict.fromkeys(courses)
    assert len(alone.lessons) == 4 + 3 and through.lessons == alone.lessons[:4]
    assert [lesson for lesson in through.others if lesson.asked] == alone.lessons
    assert all(x.read.keys is not None for lesson in through.lessons for x in lesson.asked)
    assert all(x.read.keys is None for lesson in alone.lessons[4:] for x in lesson.asked)


def test_frozen_layers_compute_in_half_precision(tokenizer, chat, tmp_path):
    """What they know differs a little, and is kept apart; the memory learns in float32."""
    memories, known = [], []
    for number, dtype in enumerate((None, torch.bfloat16)):
        model = make_model(tokenizer, window_overlap=0)
        results = few(model, tokenizer, tmp_path / str(number), cache=tmp_path / "states", autocast=dtype, key_rank=0)
        assert results["steps"] == {"alone": 12, "through": 12}
        memory = model.model.layers[model.config.memory_layers[0]]
        assert {parameter.dtype for parameter in memory.parameters()} == {torch.float32}
        weight = memory.q_proj.weight.detach()
        memories.append(weight.T @ weight)  # principal components may point either way
        (told,) = lessons(StateCache(model, tmp_path / "read", autocast=dtype), "train", 0, chat, L, 1)
        known.append(told.story[0].key_hidden_states.float())
    assert 0 < (known[0] - known[1]).norm() < 0.02 * known[0].norm()
    assert 0 < (memories[0] - memories[1]).norm() < 0.1 * memories[0].norm()
    assert len(list((tmp_path / "states").iterdir())) == 2 * (4 + 1 + 4)  # lessons, a text, everyday questions


def test_matrices_that_are_cast_once_know_the_same(tokenizer, chat, tmp_path):
    model = make_model(tokenizer).requires_grad_(False)
    once, each_time = (StateCache(model, tmp_path / x, autocast=torch.bfloat16) for x in ("once", "each time"))
    each_time.layers = model.model.layers
    weights = {p.dtype for layers in (once.layers, model.model.layers) for p in layers.parameters()}
    assert weights == {torch.bfloat16, torch.float32} and all(p.dtype == torch.float32 for p in model.parameters())
    for ours, theirs in zip(*(lessons(x, "train", 0, chat, L, 2) for x in (once, each_time)), strict=True):
        for x, y in zip((*ours.story, ours.asked[0].read), (*theirs.story, theirs.asked[0].read), strict=True):
            assert x.key_hidden_states.equal(y.key_hidden_states)
        assert ours.asked[0].read.hidden_states.equal(theirs.asked[0].read.hidden_states)
        assert ours.asked[0].read.last_hidden_state.equal(theirs.asked[0].read.last_hidden_state)


def test_other_settings_begin_anew(tokenizer, tmp_path):
    model = make_model(tokenizer)
    few(model, tokenizer, tmp_path, alone=dataclasses.replace(FEW_ALONE, steps=1))
    assert few(make_model(tokenizer), tokenizer, tmp_path)["steps"] == {"alone": 12, "through": 12}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_taught_is_said(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="one recall memory, and this one has 0"):
        few(make_model(tokenizer, memory="gated_delta"), tokenizer, tmp_path)
    with pytest.raises(ValueError, match="one recall memory, and this one has 2"):
        few(make_model(tokenizer, memory_layers=[1, 3]), tokenizer, tmp_path)
    model = make_model(tokenizer)
    model.config.vocab_size = 7
    with pytest.raises(ValueError, match="do not belong together"):
        few(model, tokenizer, tmp_path)


def test_the_command_teaches_a_pretrained_model(tokenizer, tmp_path, monkeypatch, capsys):
    make_original("llama", tokenizer).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    (tmp_path / "pretrained" / "README.md").write_text("---\nlicense: mit\nbase_model: anna/ancestor\n---\n")
    (tmp_path / "pretrained" / "LICENSE").write_text("As you like it.")
    monkeypatch.setattr("modeling_sleep.teach.teaching.TEXTS_MEASURED", 1)
    monkeypatch.setattr("modeling_sleep.teach.estimate.SAMPLED", 4)
    out = tmp_path / "taught"
    options = ["--output", str(out), "--window-size", str(L), "--units", "4", "--questions", "2", "--minutes", "0.02"]
    options += ["--cache", str(tmp_path / "states"), "--passes", "2", "--device", "cpu"]
    assert command.main([str(tmp_path / "pretrained"), *options, "--estimate"]) == 0
    assert "lessons on disk" in capsys.readouterr().out and not out.exists()
    assert command.main([str(tmp_path / "pretrained"), *options]) == 0
    told = capsys.readouterr()
    assert "core minutes" in told.out and "note: lessons take" not in told.err
    exported = tmp_path / "exported"
    assert not [note for note in export(out, exported) if "licence" in note]
    for folder in (out, exported):
        card = ModelCard.load(folder / "README.md")
        assert card.data.license == "mit" and (folder / "LICENSE").exists()
        assert "taught with `modeling_sleep.teach`" in card.text and "| memory | eval |" in card.text
        assert "not recorded" not in card.text and "None are" not in card.text
        check_picture(folder, card.text)
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["seed"] == 0 and 0 < results["steps"]["through"] < THROUGH.steps
    assert len((out / "answers.jsonl").read_text().splitlines()) == 2 * 2 * (3 + 3 + 3 + 1)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert model.config.sleep_passes == 2 and model.config.window_size == L
    assert model.model.layers[model.config.memory_layers[0]].o_proj.weight.abs().max() > 0

    small = ["--memory-only", "--output", str(tmp_path / "small"), "--minutes", "1", "--steps", "1", "2"]
    small += ["--window-overlap", "16", "--windows", "2", "4", "--key-layer", "0", "--poolings", "3"]
    assert command.main([str(tmp_path / "pretrained"), *options, *small]) == 0
    assert json.loads((tmp_path / "small" / "results.json").read_text())["steps"] == {"alone": 1, "through": 2}
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "anna/ancestor")
    assert "## Results" in card.text and "| memory | eval |" in card.text and (tmp_path / "small" / "LICENSE").exists()
    check_picture(tmp_path / "small", card.text)
    again = SleepForCausalLM.from_causal_lm(str(tmp_path / "pretrained"), memory=str(tmp_path / "small"))
    assert again.config.sleep_passes == 2 and again.config.recall_key_rank == again.config.recall_key_dim // 4
    assert (again.config.window_overlap, again.config.pinned_tokens, again.config.recall_key_layer) == (16, 1, 0)
    assert (again.config.recall_poolings, again.config.recall_hindsight) == (3, 3)

    # A taught model is taught on.
    options = ["--output", str(tmp_path / "on"), "--units", "2", "--questions", "0", "--steps", "0", "1"]
    options += ["--cache", str(tmp_path / "states"), "--cache-gigabytes", "1e-5", "--window-overlap", "8"]
    assert command.main([str(out), *options]) == 0
    assert "and the cache may hold 1e-05: what does not stay is read again" in capsys.readouterr().err
    config = SleepForCausalLM.from_pretrained(tmp_path / "on").config
    assert (config.window_overlap, config.pinned_tokens, config.window_size) == (8, 1, L)
    assert config.recall_key_rank == model.config.recall_key_rank < model.config.recall_key_dim
    assert command.main([str(out), *options, "--key-layer", "1"]) == 1
    assert "has one that says which it is (1): leave it out" in capsys.readouterr().err
    assert command.main([str(out), *options, "--poolings", "3"]) == 1
    assert "`--poolings` is of a new memory, and" in capsys.readouterr().err
    assert command.main([str(out), *options, "--key-rank", "1"]) == 1
    assert "`key_rank` is 1, and the maps of this memory are of rank" in capsys.readouterr().err
    SleepForCausalLM.from_pretrained(out, pinned_tokens=3).save_pretrained(tmp_path / "pinned")
    options = ["--output", str(tmp_path / "on"), "--window-overlap", "8"]
    assert command.load_model(command.parse_arguments([str(tmp_path / "pinned"), *options])).config.pinned_tokens == 3

    # The estimate is of what would be taught, and what cannot be taught is said by either.
    tokenizer.save_pretrained(tmp_path / "pinned")
    with_more = command.estimated(command.parse_arguments([str(tmp_path / "pinned"), *options]), ALONE, THROUGH)
    without = command.estimated(command.parse_arguments([str(tmp_path / "pinned"), *options[:2]]), ALONE, THROUGH)
    assert with_more.cache < without.cache
    make_model(tokenizer, memory="gated_delta").save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    for more in ([], ["--estimate"]):
        assert command.main([str(tmp_path / "other"), "--output", str(out), *more]) == 1
        assert "one recall memory, and this one has 0" in capsys.readouterr().err

    assert command.main([str(tmp_path / "nowhere"), "--output", str(out)]) == 1
    assert "error:" in capsys.readouterr().err


def check_picture(folder, card):
    """It is there, small, and shown once."""
    data = (folder / "memory.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 80_000
    assert card.count("(memory.png)") == 1 and "is the one read most for" in card


def test_the_card_of_the_shipped_memory_has_its_picture():
    folder = Path(__file__).parents[1] / "examples" / "checkpoints" / "smollm2-memory"
    card, drawn = (folder / "README.md").read_text(encoding="utf-8"), read_results(folder)["picture"]
    check_picture(folder, card)
    assert f"is the one read most for {drawn['found']} of {drawn['questions']} questions" in card


def test_results_of_earlier_releases_make_a_card():
    results = read_results(Path(__file__).parents[1] / "examples" / "checkpoints" / "smollm2-memory")
    assert "of which the last 32 stay" in section(results)
    assert "600 stories and 8,000 for the memory by itself, 2200" in section(results)
    assert "steps, shared by 2 processes, windows" in section(results | {"processes": 2})
    del results["settings"]["window_overlap"], results["settings"]["alone_units"]
    assert "windows of 64 tokens)" in section(results) and "600 stories, 2200" in section(results)


def test_a_lesson_begins_answers_as_it_is_told(tokenizer, chat, tmp_path):
    cache = StateCache(make_model(tokenizer), tmp_path)
    learned = unit("train", 0, 0, chat, L, facts=3)
    for beginning in ("question", "general", "own"):
        for asked in lesson(cache, learned, random.Random(0), {beginning: 1.0}).asked:
            assert asked.read.ids == asked.question.prompt + asked.answer.ids
            assert (asked.answer.given == 0) == (beginning == "own")
            assert [x.token for x in asked.sought() if x.kind == "value"] == asked.value
