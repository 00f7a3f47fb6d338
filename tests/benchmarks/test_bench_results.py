"""Figures and tables, from steps written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contestants import ControllerClock, Measured, read_steps
from benchmarks.machine import describe, short_name
from benchmarks.results import Results, default_over_best, figures, load, newest, ratio
from benchmarks.table import ratio_table, step_table
from benchmarks.workload import WORKLOADS
from rlhf.storage.jsonl import append_line

GIB = 2**30


def measured(*seconds: float, peak: float = 1.0, controller: float | None = None) -> Measured:
    """Steps of 16 samples, of which the publish takes a tenth of a second."""
    rest = {"generate": 1.0, "score": 0.5, "publish": 0.1, "samples": 16, "tokens": 1024}
    steps = [{**rest, "update": each - 1.6, "step": each} for each in seconds]
    return Measured(steps=steps, peak_pss=int(peak * GIB), controller_us_per_sample=controller)


@pytest.fixture
def results() -> Results:
    """The floor takes 2 s a step, this project 4 (and 5 in other rows), with real lengths 1 beside TRL's 8."""
    found = Results(
        date="2026-01-02",
        machine={"processor": "A chip", "cores": 2},
        options={"rounds": 2, "steps": 2, "samples": None},
        workloads={name: WORKLOADS[name] for name in ("fixed-ppo", "stale-ppo", "real-grpo", "bf16-ppo")},
    )
    for work, name, start in (
        ("fixed-ppo", "floor", measured(2.0, 2.0)),
        ("fixed-ppo", "rlhf", measured(4.0, 3.0, peak=2.0, controller=30.0)),
        ("fixed-ppo", "rlhf", measured(9.0, peak=3.0, controller=50.0)),
        ("fixed-ppo", "rlhf 320", measured(5.0)),
        ("stale-ppo", "rlhf", measured(1.0)),
        ("real-grpo", "floor", measured(4.0)),
        ("real-grpo", "rlhf", measured(1.0)),
        ("real-grpo", "TRL", measured(8.0)),
        ("bf16-ppo", "rlhf", measured(2.5)),
    ):
        found.entry(WORKLOADS[work], name).add(start)
    return found


def test_figures(results: Results) -> None:
    found = figures(results.entries)
    assert found["fixed-ppo"] == {
        "step_time_over_floor": {"floor": 1.0, "rlhf": 2.0, "rlhf 320": 2.5},
        "weights_sync_over_step": 0.025,
        "controller_us_per_sample": 40.0,
        "samples_per_second": {"floor": 8.0, "rlhf": 4.0, "rlhf 320": 3.2},
        "peak_gib": {"floor": 1.0, "rlhf": 3.0, "rlhf 320": 1.0},
    }
    assert found["real-grpo"]["real_lengths_over_padded_floor"] == {"floor": 1.0, "rlhf": 0.25, "TRL": 2.0}
    assert found["stale-ppo"]["step_time_over_floor"] == {"rlhf": 0.5}
    assert found["stale-ppo"]["controller_us_per_sample"] is None
    assert "step_time_over_floor" not in found["bf16-ppo"]


def test_ratios(results: Results) -> None:
    assert ratio(results.entries, ("real-grpo", "TRL"), ("real-grpo", "rlhf")) == 8.0
    assert ratio(results.entries, ("fixed-ppo", "rlhf"), ("bf16-ppo", "rlhf")) == 1.6
    assert ratio(results.entries, ("fixed-ppo", "TRL"), ("fixed-ppo", "rlhf")) is None
    assert default_over_best(results.entries) == 1.0
    results.entries["fixed-ppo"]["rlhf 8192"] = results.entries["fixed-ppo"]["floor"]
    assert default_over_best(results.entries) == 2.0


def test_tables(results: Results) -> None:
    steps = step_table(results).splitlines()
    assert steps[3] == "| fixed-ppo | rlhf | 1.00 | 0.50 | 2.40 | 0.10 | 4.00 | 3.00, 9.00 | 2.00 | 4.0 | 64 | 3.0 |"
    assert steps[5] == "| stale-ppo | rlhf | 1.00 | 0.50 | -0.60 | 0.10 | 1.00 | 1.00, 1.00 | 0.50 | 16.0 | 64 | 1.0 |"
    assert steps[-1].split(" | ")[8] == "–"
    assert ratio_table(results).splitlines()[2:] == [
        "| step over its floor, fixed-ppo | 2.00 |",
        "| step over its floor, stale-ppo | 0.50 |",
        "| step over its floor, real-grpo | 0.25 |",
        "| samples/s over TRL's, real-grpo | 8.00 |",
        "| default `micro_batch_tokens` over the best | 1.00 |",
        "| float32 step over bfloat16 step | 1.60 |",
        "| publish over step, largest | 0.100 |",
        "| controller's process, µs of CPU a sample, largest | 40 |",
    ]
    results.controller = {"samples": 50_000, "ranks": 256, "controller_us_per_sample": 21.4}
    last = "| controller, µs of CPU a sample, simulated with 50,000 samples and 256 ranks | 21 |"
    assert ratio_table(results).splitlines()[-1] == last


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "2026-01-02-a.json")
    assert load(tmp_path / "2026-01-02-a.json") == results
    results.save(tmp_path / "2025-12-31-b.json")
    assert newest(tmp_path) == tmp_path / "2026-01-02-a.json"
    assert newest(tmp_path / "none") is None


def test_controller_time_is_that_between_steps(tmp_path: Path) -> None:
    """Start-up and the first step do not count: 0.6 s over three steps of 100 samples."""
    clock = ControllerClock(tmp_path / "metrics.jsonl")
    clock.observe(9.0)
    assert clock.us_per_sample(100) is None
    for step, seconds in enumerate((10.0, 10.1, 10.5, 10.6)):
        append_line(clock.metrics, {"step": step})
        clock.observe(seconds)
        clock.observe(seconds + 0.05)
    assert clock.us_per_sample(100) == pytest.approx(2000.0)


def test_a_step_lasts_until_the_next_one_ends(tmp_path: Path) -> None:
    """The second step ends 7 s after the first, of which the run itself counts 5."""
    spans = ((0, 1e6, 4e6), (1, 7e6, 5e6))
    events = [{"ph": "X", "name": "step", "ts": ts, "dur": dur, "args": {"step": step}} for step, ts, dur in spans]
    (tmp_path / "trace.json").write_text(f"{events}".replace("'", '"'), encoding="utf-8")
    times = {f"time/{phase}": 1.0 for phase in ("rollout", "score", "update", "publish")}
    for step, _, dur in spans:
        row = {"step": step, **times, "time/step": dur / 1e6, "rollout/length_mean": 64.0, "rollout/tokens": 8192}
        append_line(tmp_path / "metrics.jsonl", row)
    found = read_steps(tmp_path, WORKLOADS["fixed-ppo"])
    assert [step["step"] for step in found] == [4.0, 7.0]
    with pytest.raises(SystemExit, match=r"64\.0 tokens, not 192"):
        read_steps(tmp_path, WORKLOADS["long-ppo"])


def test_file_names_say_the_machine() -> None:
    assert short_name({"processor": "Intel(R) Xeon(R) CPU @ 2.60GHz", "cores": 2}) == "intel-xeon-2-cores"
    assert short_name({"processor": "AMD EPYC, family 26, AVX-512", "cores": 16}) == "amd-epyc-family-26-16-cores"


def test_a_run_that_holds_onednn_to_narrower_vectors_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    free = describe()["processor"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert describe()["processor"] == f"{free}, oneDNN held to AVX2"
