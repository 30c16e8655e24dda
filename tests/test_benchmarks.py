"""The benchmarks: that they run on real models, that what they say has the right form, that they judge themselves.

No timing is tested. What does not depend on time is: bytes, operations, numbers of parameters, which sections run.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import DynamicCache

from examples.experiments.benchmarks import (
    bfloat16,
    cache,
    compiled,
    decode,
    long,
    machine,
    memory,
    models,
    prefill,
    profile,
    ragged,
    report,
    rule,
    run,
    training,
    window,
)
from examples.experiments.benchmarks.bench import Bench, Result, Rounds, Row, named


pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version(models.OLDEST),
    reason=f"OLMo-Hybrid, to which ours is compared, generates with transformers {models.OLDEST} and newer",
)
REPOSITORY = Path(__file__).parents[1]
QUICK = Bench(quick=True)


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """The command sets the process's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def checked(section, result) -> dict[str, Row]:
    """The rows by name and sizes, after a check that each is sane, and that tables and plot can be made of them."""
    data = json.loads(json.dumps(result.data, allow_nan=False))
    for row in result.rows:
        assert math.isfinite(row.ratio) and row.ratio > 0
        assert (row.target is None) == (row.verdict == "–")
        if row.quartiles is not None:
            low, high = row.quartiles
            assert 0 < low <= row.ratio <= high
            assert row.details["rounds"] >= 3 and all(ms > 0 for ms in row.details["ms"])
    for block in section.tables(data).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    section.plot(data).draw_without_rendering()
    found = {f"{row.measurement}; {row.setting}": row for row in result.rows}
    assert len(found) == len(result.rows)
    return found


# The models that are compared.


@pytest.mark.parametrize("quick", [True, False])
def test_peers_are_of_the_same_size(quick):
    bench = Bench(quick)
    ours = models.parameters(models.build(models.OURS, bench))
    for name in models.PEERS:
        model = models.build(name, bench)
        assert abs(models.parameters(model) / ours - 1) < 0.01, name
        for field, value in models.sizes(bench).items():
            assert getattr(model.config, field) == value, (name, field)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_filled_cache_is_like_one_that_has_read(name):
    model, length = models.build(name, QUICK), 8 * QUICK.window_size
    filled, read = models.filled(model, QUICK, length), DynamicCache(config=model.config)
    with torch.no_grad():
        model(QUICK.tokens(models.VOCABULARY, 1, length), past_key_values=read)
    for kind, expected in models.tensors(read).items():
        assert [x.shape for x in models.tensors(filled)[kind]] == [x.shape for x in expected], kind
    assert filled.get_seq_length() == read.get_seq_length() == length
    token = QUICK.tokens(models.VOCABULARY, 1, 1)
    flops = [machine.count(torch.no_grad()(model), token, past_key_values=cache)[0] for cache in (filled, read)]
    assert flops[0] == flops[1] > 0


def test_a_sliding_window_is_filled_up_to_its_size():
    cache = models.filled(models.build(models.WIDE, QUICK), QUICK, 8192)
    assert [layer.keys.shape[2] for layer in cache.layers] == [4095, 4095]


def test_only_whole_windows_are_filled():
    with pytest.raises(ValueError, match="multiple of two windows"):
        models.filled(models.build(models.FULL, QUICK), QUICK, 33)


def test_nothing_fits_into_no_memory():
    assert models.fits(models.OURS, QUICK, 2**40)
    assert not models.fits(models.FULL, QUICK, 2**40)


# The sections.


def test_decode():
    result = decode.measure(QUICK)
    rows = checked(decode, result)
    assert sum("sleep apart" in name for name in rows) == 1
    for peer in models.PEERS:
        assert sum(f"over that of {peer} at" in name for name in rows) >= 2
    timed = {*models.MODELS, *(side(n) for side in (decode.asleep, decode.included) for n in (2, 4))}
    assert result.data["ms"].keys() == timed
    assert all([*found] == decode.contexts(QUICK) for found in result.data["ms"].values())


def test_a_window_of_ours_ends_asleep():
    stream = decode.OurStream(QUICK, 64)
    assert stream.window().keys() == {
        models.OURS,
        *(side(n) for side in (decode.asleep, decode.included) for n in decode.PASSES),
    }
    assert stream.cache.get_seq_length() == 64 + QUICK.window_size
    assert stream.cache.layers[0].stored_length() == 0


def test_two_texts_go_side_by_side():
    streams = {"late": decode.OurStream(QUICK, 128), "early": compiled.CompiledStream(QUICK, 64)}
    peers = {"sliding": decode.SlidingStream(QUICK, 64), "static": compiled.StaticStream(QUICK, 64)}
    assert decode.together(**streams, **peers).keys() == {*streams, *peers}
    assert peers["static"].position - 2 * QUICK.window_size == QUICK.window_size
    for stream, context in zip(streams.values(), (128, 64)):
        assert stream.cache.get_seq_length() == context + QUICK.window_size
        assert stream.cache.layers[0].stored_length() == 0


@pytest.mark.parametrize(
    "ratios, expected",
    [([2.0, 0.5, 0.5], 2048), ([0.9, 0.5, 0.5], 1024), ([0.9, 2.0, 0.5], 8192), ([0.5, 0.5, 1.0], None), ([], None)],
)
def test_crossover(ratios, expected):
    found = decode.crossover([1024, 4096, 16384][: len(ratios)], ratios)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.programs
def test_window():
    result = window.measure(QUICK)
    rows = checked(window, result)
    assert len(rows) == 3 * len(window.lengths(QUICK)) + 2 * len(window.widths(QUICK))
    assert all([*found] == window.lengths(QUICK) for found in result.data["length"].values())
    assert all([*found] == [64, 128] for found in result.data["width"].values())
    assert (QUICK.window_size, QUICK.width) == (16, 1), "sizes are those of this section alone"


def test_cache_is_flat_to_the_byte():
    result = cache.measure(QUICK)
    first, *others = checked(cache, result).values()
    assert first.target == first.ratio == 1.0 and first.verdict == "met"
    assert len(others) == len(models.PEERS)
    sizes = {name: [sum(x.values()) for x in found.values()] for name, found in result.data["bytes"].items()}
    assert len(set(sizes[models.OURS])) == 1 < len(sizes[models.OURS])
    for name in (models.FULL, models.OLMO, models.QWEN, models.KEPT):
        assert sizes[name] == sorted(set(sizes[name])), name  # grows


def test_no_view_keeps_more_alive_than_is_counted():
    model = models.build(models.OURS, QUICK)
    state = models.tensors(models.filled(model, QUICK, 64))
    for kind, found in state.items():
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in found), kind


def test_prefill():
    result = prefill.measure(QUICK)
    rows = checked(prefill, result)
    assert [row.target for row in rows.values()][:3] == [1.05] * 3
    assert result.data["ms"].keys() == {*models.PEERS, *(prefill.ours(n) for n in prefill.PASSES)}


@pytest.fixture
def asked(monkeypatch) -> list[memory.Step]:
    """The steps whose peak memory a section asks for, instead of a process for each."""
    steps = []

    def peak_memory(step, bench):
        steps.append(step)
        size = 2**26 * step.passes // (1 + step.packed)
        return {"before": 2**27, "peak": 2**27 + size, "tensors": size}

    monkeypatch.setattr(memory, "peak_memory", peak_memory)
    return steps


def test_ragged(asked):
    result = ragged.measure(QUICK)
    rows = checked(ragged, result)
    assert [row.target for name, row in rows.items() if "over even" in name] == [ragged.TARGET] * 6
    assert sum("packed over padded" in name for name in rows) == 4
    (memory_of_two,) = (row for name, row in rows.items() if "peak memory of a step with N = 2" in name)
    assert memory_of_two.details["one"] != memory_of_two.details["other"]
    assert memory_of_two.ratio == 0.5
    assert [(step.passes, step.packed) for step in asked] == [(1, True), (1, False), (2, True), (2, False)]


def test_lengths_spread_over_a_factor_of_four():
    for bench in (QUICK, Bench()):
        texts = ragged.lengths(bench)
        assert max(texts) == 4 * min(texts) == 8 * bench.window_size and len(set(texts)) == len(texts)
        assert 0 <= sum(texts) - sum(ragged.even(texts)) < len(texts)


def test_packed_and_padded_hold_the_same_texts():
    """As they are read: what is learned from either is the same."""
    model, losses = models.build(models.OURS, QUICK), []
    for packed in (False, True):
        torch.manual_seed(0)
        inputs = memory.inputs(model, memory.Step(lengths=(20, 33), packed=packed), QUICK)
        assert inputs["input_ids"].shape == ((1, 53) if packed else (2, 33))
        losses.append(model(**inputs).loss)
    torch.testing.assert_close(*losses)


def test_long():
    result = long.measure(QUICK)
    rows = checked(long, result)
    *times, size = rows.values()
    assert len(times) == 2 and size.ratio == 1.0 and size.verdict == "met"
    assert [*result.data["points"]] == long.contexts(QUICK)


def test_training(asked):
    rows = checked(training, training.measure(QUICK))
    parallel = [row for name, row in rows.items() if "in parallel" in name]
    assert [(row.target, row.at_least) for row in parallel] == [(0.9, True), (None, True)] + [(None, True)] * 2
    per_pass = {name: row.target for name, row in rows.items() if "per pass" in name}
    assert all(target == (None if "after the other" in name else 1.05) for name, target in per_pass.items())
    larger = [name for name in per_pass if f"batch {training.LARGER_BATCH}" in name]
    assert len(larger) == 4 and len(per_pass) == 10
    (checkpointed,) = (row for name, row in rows.items() if "N = 8 over N = 1, checkpointed" in name)
    assert checkpointed.ratio == 8 and checkpointed.verdict == "**not met**"
    assert {step.model for step in asked} == {models.OURS, models.KEPT, models.OLMO}


def test_passes_cost_operations_in_proportion():
    """W windows at N take (W - 1) N + 1 passes; the last pass of a sleep ends earlier, so a little less than that."""

    def flops(passes: int) -> int:
        step = memory.Step(passes=passes, windows=3)
        model = memory.trained(step, QUICK)
        return machine.count(memory.run, model, step, memory.text(model, step, QUICK))[0]

    assert 0.6 * 3 < flops(4) / flops(1) < 3.0
    assert flops(4) - flops(3) == flops(3) - flops(2) > 0


def test_rule():
    result = rule.measure(QUICK)
    rows = checked(rule, result)
    assert sum(row.target == rule.FASTER for row in rows.values()) == 1
    assert all(row.details["relative error"] < 1e-4 for name, row in rows.items() if "in-tree" in name)
    flops = {(x["way"], x["length"]): x["flops"] for x in result.data["points"] if x["form"] == "chunked"}
    assert flops["forward", 256] == 4 * flops["forward", 64]
    assert all(flops["forward and backward", n] > 2 * flops["forward", n] for n in (64, 256))


@pytest.mark.programs
def test_compiled():
    result = compiled.measure(QUICK)
    checked(compiled, result)
    # Attention; Gated DeltaNet without S, with it, and as a pass' end. Token by token: attention without keys, with
    # one, with more; Gated DeltaNet without S, with it. Tokens as a whole: the first, later ones.
    graphs = {name: found["graphs"] for name, found in result.data.items()}
    assert graphs == {"reading": 4, "training": 4, "decoding": 5, "tokens": 2}
    assert all(found["seconds"] > 0 for found in result.data.values())


def test_bfloat16(monkeypatch):
    monkeypatch.setattr(bfloat16, "is_supported", lambda bench: True)  # emulated, if need be
    result = bfloat16.measure(QUICK)
    rows = checked(bfloat16, result)
    assert len(rows) == 4 and result.data["training, d = 64"].keys() == {"float32", "bfloat16 weights", "autocast"}
    assert [row.setting.split("; ")[1][:8] for row in result.rows] == ["d = 64, "] * 4

    monkeypatch.setattr(bfloat16, "is_supported", lambda bench: False)
    nothing = bfloat16.measure(QUICK)
    assert not nothing.rows and "no instructions for bfloat16" in bfloat16.tables(nothing.data)
    assert bfloat16.plot(nothing.data).axes


def test_rules_that_differ_are_not_timed():
    def wrong(inputs):
        return rule.in_tree("torch_chunk_gated_delta_rule", [2 * inputs[2] + 1, *inputs[1:]])

    def right(inputs):
        return rule.in_tree("torch_chunk_gated_delta_rule", inputs)

    inputs = rule.inputs_of(QUICK, 64, 4, 32)
    with pytest.raises(RuntimeError, match="differ"):
        rule.compare(QUICK, machine.Peak(QUICK), rule.forward, wrong, right, inputs, "wrong")


def test_profile():
    result = profile.measure(QUICK)
    assert len(checked(profile, result)) == 2  # projections as one
    assert len(result.data["activities"]) == 4
    for name, found in result.data["activities"].items():
        parts = found["parts"]
        assert sum(x["share"] for x in parts.values()) == pytest.approx(1)
        here = {"attention", "projections", "MLP", profile.RULE}
        assert here <= parts.keys(), name
        counted = here - {profile.RULE} if "one token" in name else here  # the rule of one token is element-wise
        assert all(parts[label]["floor ms"] > 0 for label in counted), name
        assert (profile.HEAD in parts) == ("sleep" not in name)


# What the machine has to do.


def test_operations_are_counted_in_inference_mode():
    linear, x = torch.nn.Linear(5, 7), torch.randn(3, 5)
    with torch.inference_mode():
        assert machine.count(linear, x)[0] == 2 * 3 * 5 * 7


def test_operations_and_bytes_are_those_of_the_shapes():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    forward = 2 * 3 * 5 * 7
    sizes = 4 * (15 + 35 + 21)
    assert machine.count(torch.mm, a, b) == (forward, sizes)
    assert machine.count(lambda: (a @ b).sum().backward()) == (3 * forward, 3 * sizes)


def test_attention_on_a_cpu_is_counted():
    inputs = [torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3)]
    forward = 2 * 2 * 2 * 16 * 16 * 8
    assert machine.count(nn.functional.scaled_dot_product_attention, *inputs)[0] == forward


def test_operations_are_counted_where_they_belong():
    """Forward and backward of a part of the model, in all its layers."""
    step = memory.Step(windows=2)
    model = memory.trained(step, QUICK)
    config, tokens = model.config, memory.text(model, step, QUICK)
    flops, touched = profile.needs(model, lambda: memory.run(model, step, tokens))
    rows = tokens.numel()
    assert flops["MLP"] == 3 * 2 * rows * 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    assert flops[profile.HEAD] == 3 * 2 * rows * config.hidden_size * config.vocab_size
    assert sum(flops.values()) == machine.count(memory.run, model, step, tokens)[0]
    assert flops.keys() == touched.keys()


@pytest.mark.skipif(memory.resident_bytes("VmRSS") is None, reason="only Linux tells memory this way")
def test_peak_memory_rises_with_what_is_allocated():
    before = memory.resident_bytes("VmRSS")
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert memory.resident_bytes("VmHWM") >= before + 0.9 * held.nbytes


@pytest.mark.programs
def test_memory_of_a_step_is_measured_in_a_process_of_its_own():
    step = memory.Step(passes=2, lengths=(20, 33), packed=True, overrides=(("skip_logits", True),))
    found = memory.peak_memory(step, QUICK)
    assert found["tensors"] > 0 and found == memory.peak_memory(step, QUICK)
    assert found["peak"] is None or found["peak"] >= found["before"]


# How it is measured, and judged.


def test_ratio_is_the_median_of_the_rounds_quotients():
    rounds = Rounds([{"one": one, "other": other} for one, other in ((1, 1), (2, 1), (30, 10), (8, 2), (10, 2))])
    found = rounds.ratio("one", "other")
    assert found["ratio"] == 3.0 and found["quartiles"] == (2.0, 4.0)
    assert found["details"] == {"rounds": 5, "ms": [8000.0, 2000.0]}
    assert rounds.ratio("one", "other", factor=2)["ratio"] == 1.5
    assert rounds.ratio("other", "one", invert=True)["ratio"] == 3.0
    assert len((rounds + rounds).seconds["one"]) == 10


def test_sides_take_turns_after_a_first_round():
    order = []

    def side(name):
        return lambda: order.append(name) or float(len(order))

    rounds = QUICK.in_turn({"one": side("one"), "other": lambda: {"a": side("other")(), "b": 1.0}}, "test")
    assert order == ["one", "other", "other", "one"] * 2
    assert {name: len(seconds) for name, seconds in rounds.seconds.items()} == {"one": 3, "a": 3, "b": 3}


def test_a_missed_target_is_called_so():
    rows = [Row("a", "sizes", ratio, target) for target, ratio in ((1.1, 1.1), (1.1, 1.1001), (None, 9.0))]
    rows += [Row("a", "sizes", ratio, 0.9, at_least=True) for ratio in (0.9, 0.8999)]
    assert [row.verdict for row in rows] == ["met", "**not met**", "–", "met", "**not met**"]
    assert [row.goal for row in rows] == ["≤ 1.10", "≤ 1.10", "", "≥ 0.90", "≥ 0.90"]
    about, _, *lines = report.comparisons(rows).splitlines()
    assert about == "All with sizes:"
    assert len(lines) == 7 and len({line.count("|") for line in lines}) == 1


def test_numbers_of_tokens_are_named():
    assert [named(n) for n in (100, 1024, 65536, 2**20)] == ["100", "1k", "64k", "1M"]


# The command.


def test_the_command_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    command = ["--quick", "--device", "cpu", "--output", str(tmp_path), "--only"]
    run.main([*command, "cache"])
    front, page = ((tmp_path / name).read_text() for name in ("README.md", "cpu/cache.md"))
    said = capsys.readouterr().out
    assert front in said and page in said
    assert "[Cache](cpu/cache.md)" in front and "decode" not in front
    assert page.startswith("# Cache\n") and "(cache.png)" in page
    assert (tmp_path / "cpu/cache.png").stat().st_size > 0
    saved = json.loads((tmp_path / "cpu/cache.json").read_text())
    assert saved["rows"][0]["verdict"] == "met" and f"| {saved['rows'][0]['measurement']} |" in page

    measured = []
    monkeypatch.setattr(cache, "measure", lambda bench: measured.append(bench) or pytest.fail("measured again"))
    run.main([*command, "cache"])
    assert not measured
    for other in ("--again", "--threads=2"):
        with pytest.raises(pytest.fail.Exception):
            run.main([*command, "cache", other])


def test_what_the_profiler_cannot_see_is_left_out(tmp_path, monkeypatch):
    measured = []

    def measure(bench):
        measured.append(bench.device)
        return Result([], {})

    for section in (profile, cache):
        monkeypatch.setattr(section, "measure", measure)
    monkeypatch.setattr(run, "write_pages", lambda output: {})
    monkeypatch.setattr(run, "machine_of", lambda bench: {})
    parsed = run.parse_args(["--only", "profile", "cache", "--output", str(tmp_path)])
    parsed.device = ["cpu", "cuda"]
    monkeypatch.setattr(run, "parse_args", lambda argv: parsed)
    run.main()
    assert measured == ["cpu", "cpu", "cuda"]


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    command = [sys.executable, "-m", run.__name__, "--quick", "--output", tmp_path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = {path.stem for path in (tmp_path / "cpu").glob("*.json")}
    assert found == set(run.SECTIONS)
    page = (tmp_path / "README.md").read_text()
    assert all(f"[{section.TITLE}](cpu/{name}.md)" in page for name, section in run.SECTIONS.items())
    rows = json.loads((tmp_path / "cpu/training.json").read_text())["rows"]
    for row in rows:
        if "skip_logits" in row["measurement"] or "bptt" in row["measurement"]:
            assert row["ratio"] < 1, row["measurement"]
