"""The benchmark: that it runs, that what it says has the right form, that it judges itself. No timing is tested."""

import json
import math
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest
import torch
from benchmark import MEASUREMENTS, Bench, Row, main, measure_rule, resident_bytes, table


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """The benchmark sets the process's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def read(folder: Path) -> dict:
    """The results in `folder`, after checking that each is a sane number with its line in the table."""
    results = json.loads((folder / "benchmark.json").read_text())
    lines = (folder / "benchmark.md").read_text()
    for row in results["rows"]:
        assert math.isfinite(row["ratio"]) and row["ratio"] > 0
        assert row["verdict"] in ("met", "not met", "–")
        assert (row["target"] is None) == (row["verdict"] == "–")
        assert f"| {row['measurement']} | {row['setting']} |" in lines
        if row["quartiles"] is not None:
            low, high = row["quartiles"]
            assert 0 < low <= row["ratio"] <= high
            assert row["details"]["rounds"] >= 3 and all(ms > 0 for ms in row["details"]["ms"])
    return results


def test_wake_sleep_and_cache(tmp_path, capsys):
    main(["--quick", "--only", "decode", "sleep", "cache", "--output", str(tmp_path)])
    results = read(tmp_path)
    assert results["quick"] and results["threads"] == 1
    assert [row["target"] for row in results["rows"]] == [1.1, 1.1, 1.15, 1.15, 1.15, 1.0]
    cache = results["rows"][-1]
    assert list(cache["details"]["bytes"]) == ["1", "2", "10", "100"]
    assert len(set(cache["details"]["bytes"].values())) == 1 and cache["verdict"] == "met"
    assert (tmp_path / "benchmark.md").read_text() in capsys.readouterr().out


def test_training_step_and_rule(tmp_path):
    main(["--quick", "--only", "step", "rule", "--output", str(tmp_path)])
    results = read(tmp_path)
    assert [row["target"] for row in results["rows"]] == [4.4, None, 1.0, None, None, 1 / 1.3, None, None]
    assert all(row["details"]["relative error"] < 1e-4 for row in results["rows"][2::3])
    assert all(row["details"]["flops"] > 1e6 for row in results["rows"][4::3])


def test_rules_that_differ_are_not_timed(monkeypatch):
    right = benchmark.chunked_gated_delta_rule

    def wrong(query, *inputs):
        return right(2 * query + 1, *inputs)

    monkeypatch.setattr(benchmark, "chunked_gated_delta_rule", wrong)
    with pytest.raises(RuntimeError, match="differ"):
        next(measure_rule(Bench(quick=True, device="cpu", threads=1)))


def test_ratio_is_the_median_of_the_rounds_quotients():
    bench = Bench(quick=True, device="cpu", threads=1)
    bench.min_rounds, bench.seconds = 5, 0.0
    rounds = [(99.0, 1.0), (1.0, 1.0), (2.0, 1.0), (30.0, 10.0), (8.0, 2.0), (10.0, 2.0)]  # the first warms up
    waiting = iter(rounds)
    result = bench.compare(lambda i: next(waiting), "fixed")
    assert result["ratio"] == 3.0 and result["quartiles"] == (2.0, 4.0)
    assert result["details"] == {"rounds": 5, "ms": [8000.0, 2000.0]}


def test_sides_take_turns():
    order = []
    one_round = Bench(quick=True, device="cpu", threads=1).in_turn(
        lambda: order.append("one") or 1.0, lambda: order.append("other") or 2.0
    )
    assert [one_round(i) for i in range(2)] == [(1.0, 2.0)] * 2
    assert order == ["one", "other", "other", "one"]


def test_a_missed_target_is_called_so():
    rows = [Row("a", "sizes", target, ratio) for target, ratio in ((1.1, 1.1), (1.1, 1.1001), (None, 9.0))]
    assert [row.verdict for row in rows] == ["met", "**not met**", "–"]
    lines = table(rows).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory this way")
def test_peak_memory_rises_with_what_is_allocated():
    before = resident_bytes("VmRSS")
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert resident_bytes("VmHWM") >= before + 0.9 * held.nbytes


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    script = Path(benchmark.__file__)
    done = subprocess.run(
        [sys.executable, script, "--quick", "--output", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = read(tmp_path)
    assert len(results["rows"]) >= len(MEASUREMENTS)
    memory = {row["measurement"]: row for row in results["rows"] if row["measurement"].startswith("peak memory")}
    assert len(memory) == 4
    assert all(row["details"][side]["tensors"] > 0 for row in memory.values() for side in ("one", "other"))
    for name, row in memory.items():
        assert (row["ratio"] < 1) == ("skip_logits" in name or "bptt" in name), (name, row["ratio"])
