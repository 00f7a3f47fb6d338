"""A gate from files to its decision: what is read, what is refused, how looks are counted, and its digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.serving.gate_decision import GateDecision, Subject, run_gate
from rlhf.serving.gate_history import add_decision, read_history
from rlhf.serving.gate_result import GateOutcome, read_gate_result
from rlhf.serving.gate_spec import load_gate

ONE = "a" * 64


def write_gate(folder: Path, **settings: Any) -> Path:
    path = folder / "gate.yaml"
    kpis = {"resolved": {"threshold": 0.8, "minimum_n": 20}}
    path.write_text(json.dumps({"for": "shadow", "kpis": kpis, **settings}))  # JSON is YAML
    return path


def write_rows(folder: Path, values: list[Any], production: list[Any] | None = None, **more: Any) -> str:
    path = folder / "values.jsonl"
    rows = [{"metric": "resolved", "item": i, "candidate": value, **more} for i, value in enumerate(values)]
    if production is not None:
        rows = [{**row, "production": value} for row, value in zip(rows, production, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(path: Path, *files: str, artefact: str = "", history: Path | None = None) -> GateDecision:
    decision = run_gate(load_gate(path), files, Subject(artefact=artefact), read_history(history) if history else [])
    if history:
        add_decision(history, {"time": 0.0, **decision.content})
    return decision


def test_values_by_item_decide(tmp_path: Path) -> None:
    gate = write_gate(tmp_path)
    good, bad, few = [1] * 58 + [0] * 2, [1] * 30 + [0] * 30, [1] * 10
    assert run(gate, write_rows(tmp_path, good)).outcome is GateOutcome.PASS
    assert run(gate, write_rows(tmp_path, bad)).outcome is GateOutcome.FAIL
    decision = run(gate, write_rows(tmp_path, few))
    assert decision.outcome is GateOutcome.INCONCLUSIVE
    assert decision.kpis[0].reason == "10 of the 20 units that it needs at least"
    close = run(gate, write_rows(tmp_path, [1] * 26 + [0] * 4)).kpis[0]
    assert close.outcome is GateOutcome.INCONCLUSIVE
    assert close.more is not None
    assert 20 < close.more < 500


def test_direction_turns_all_around(tmp_path: Path) -> None:
    kpis = {"resolved": {"direction": "lower", "threshold": 0.2, "minimum_n": 20}}
    gate = write_gate(tmp_path, kpis=kpis)
    kpi = run(gate, write_rows(tmp_path, [0] * 58 + [1] * 2)).kpis[0]
    assert kpi.outcome is GateOutcome.PASS
    assert kpi.estimate == pytest.approx(2 / 60)
    assert kpi.bar == pytest.approx(0.2)
    assert kpi.bound is not None
    assert kpi.estimate < kpi.bound < 0.2
    assert run(gate, write_rows(tmp_path, [0] * 30 + [1] * 30)).outcome is GateOutcome.FAIL


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_a_comparison_pairs_items(tmp_path: Path, direction: str) -> None:
    """Both arms vary much from item to item, and the candidate is better by about 0.1 on each."""
    kpi = {"direction": direction, "decided_by": "superiority", "margin": 0.05, "minimum_n": 20}
    gate = write_gate(tmp_path, kpis={"resolved": kpi})
    production = [0.1 + i % 10 / 6 for i in range(60)]
    better = 0.1 if direction == "higher" else -0.1
    found = run(
        gate, write_rows(tmp_path, [v + better * (1 + i % 2 / 9) for i, v in enumerate(production)], production)
    ).kpis[0]
    assert found.outcome is GateOutcome.PASS
    assert found.estimate == pytest.approx(better * (1 + 1 / 18))
    assert found.bar == pytest.approx(better / 2)
    assert run(gate, write_rows(tmp_path, production, production)).outcome is GateOutcome.INCONCLUSIVE


def test_items_of_one_cluster_count_once(tmp_path: Path) -> None:
    """Sixty samples of two prompts are two units."""
    kpi = run(write_gate(tmp_path), write_rows(tmp_path, [1] * 60, cluster="prompt")).kpis[0]
    assert (kpi.n, kpi.outcome) == (1, GateOutcome.INCONCLUSIVE)


def counts(folder: Path, **content: Any) -> str:
    arms = {"candidate": {"successes": 485, "n": 500}, "production": {"successes": 960, "n": 1000}}
    path = folder / "counts.json"
    path.write_text(json.dumps({"counts": {"resolved": arms}, **content}))
    return str(path)


def test_the_last_row_counts_without_a_line_break_and_no_cluster_is_one_of_its_own(tmp_path: Path) -> None:
    gate = write_gate(tmp_path)
    file = Path(write_rows(tmp_path, [1] * 30, cluster=None))
    file.write_text(file.read_text().rstrip("\n"))
    assert run(gate, str(file)).kpis[0].n == 30


def test_live_counts_decide_and_name_what_they_measured(tmp_path: Path) -> None:
    kpis = {"resolved": {"decided_by": "non_inferiority", "margin": 0.05}}
    gate = write_gate(tmp_path, kpis=kpis, looks="sequential")
    decision = run(gate, counts(tmp_path, artefact=ONE, baseline="b" * 64))
    assert decision.outcome is GateOutcome.PASS
    assert decision.kpis[0].n == 500
    assert (decision.content["artefact"], decision.content["baseline"]) == (ONE, "b" * 64)
    with pytest.raises(UserError, match="more than one artefact"):
        run(gate, counts(tmp_path, artefact=ONE), artefact="c" * 64)


def test_counts_of_several_files_add_up(tmp_path: Path) -> None:
    """Those of two gateways, or from before and after a restart; but not one file twice."""
    (tmp_path / "b").mkdir()
    gate = write_gate(tmp_path, kpis={"resolved": {"decided_by": "superiority"}})
    files = counts(tmp_path), counts(tmp_path / "b", artefact=ONE)
    assert run(gate, *files).kpis[0].n == 1000
    with pytest.raises(UserError, match="is given twice"):
        run(gate, files[0], files[0])


def report(folder: Path, can_gate: bool, name: str = "report.json") -> str:
    values = {"sft": [0.5] * 40 + [None], "ppo": [0.9, 0.8] * 20 + [0.9]}
    content = {
        "agreement": [{"metric": "resolved", "can_gate": can_gate, "why_not": "" if can_gate else "it is noise"}],
        "values": {"items": [f"i{n}" for n in range(41)], "clusters": list(range(41)), "metrics": {"resolved": values}},
        "usage": {"calls": 82},
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def test_a_report_decides_if_its_metric_agrees_with_people(tmp_path: Path) -> None:
    kpis = {"better": {"metric": "resolved", "decided_by": "superiority"}}
    gate = write_gate(tmp_path, kpis=kpis, candidate="ppo", production="sft")
    decision = run(gate, report(tmp_path, True))
    assert decision.outcome is GateOutcome.PASS
    assert decision.kpis[0].n == 40
    assert decision.kpis[0].estimate == pytest.approx(0.35)
    assert decision.judge_calls == 82
    with pytest.raises(UserError, match="resolved cannot gate") as refusal:
        run(gate, report(tmp_path, False))
    assert refusal.value.why == "it is noise"


def report_text(values: list[Any], items: Sequence[str] = ("a", "b"), calls: Any = 0) -> str:
    both = {"candidate": values, "production": [0] * len(values)}
    content = {"items": items, "clusters": items, "metrics": {"resolved": both}}
    agreement = [{"metric": "resolved", "can_gate": True}]
    return json.dumps({"agreement": agreement, "usage": {"calls": calls}, "values": content})


BAD_RESULTS: dict[str, tuple[str, str]] = {
    "another.json": ("{}", "holds no results"),
    "old.json": ('{"agreement": []}', "no values by item"),
    "counts.json": ('{"counts": {"resolved": {"candidate": {"successes": 3, "n": 2}}}}', "no counts of successes"),
    "rows.jsonl": ('{"metric": "resolved", "candidate": 1}\n', "no metric or no item"),
    "text.jsonl": ('{"metric": "resolved", "item": 1, "candidate": "yes"}\n', "candidate is 'yes'"),
    "twice.jsonl": ('{"metric": "resolved", "item": 1, "candidate": 1}\n' * 2, "item '1' of resolved is also at"),
    "none.jsonl": ("", "kpis.resolved has no data"),
    "nan.jsonl": ('{"metric": "resolved", "item": 1, "candidate": NaN}\n', "candidate is not finite"),
    "huge.jsonl": ('{"metric": "resolved", "item": 1, "candidate": 1' + "0" * 400 + "}\n", "candidate is not finite"),
    "true.jsonl": ('{"metric": "resolved", "item": true, "candidate": 1}\n', "no metric or no item"),
    "cluster.jsonl": ('{"metric": "resolved", "item": 1, "cluster": [1], "candidate": 1}\n', "cluster is neither"),
    "torn.jsonl": ('{"metric": "resolved", "item": 1, "candidate": 1}\n{"metric": "res', "torn.jsonl:2 is no JSON"),
    "rows.ndjson": ('{"metric": "resolved", "item": 1, "candidate": 1}\n' * 2, "rows.ndjson is no JSON object"),
    "many.json": ('{"counts": {"resolved": {"candidate": {"successes": 1, "n": 1' + "0" * 400 + "}}}}", "no counts"),
    "infinite.json": (report_text([1, float("inf")]), "no whole report"),
    "texts.json": (report_text(["1", "1"]), "no whole report"),
    "items.json": (report_text([1, 1], items=["a", "a"]), "an item is in it twice"),
    "calls.json": (report_text([1, 1], calls="many"), "no whole report"),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_bad_results_are_refused(tmp_path: Path, name: str) -> None:
    content, message = BAD_RESULTS[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run(write_gate(tmp_path), str(tmp_path / name))


def test_what_would_mislead_is_refused(tmp_path: Path) -> None:
    gate = write_gate(tmp_path)
    with pytest.raises(UserError, match="no value on 6 of 60"):
        run(gate, write_rows(tmp_path, [1] * 54 + [None] * 6))
    ranged, compared = {"resolved": {"threshold": 0.8, "range": [0, 1]}}, {"resolved": {"decided_by": "superiority"}}
    with pytest.raises(UserError, match=r"has the value 1\.5, outside its range"):
        run(write_gate(tmp_path, kpis=ranged), write_rows(tmp_path, [1, 1.5]))
    with pytest.raises(UserError, match="threshold = 80"):
        run(write_gate(tmp_path, kpis={"resolved": {"threshold": 80}}), write_rows(tmp_path, [1, 1]))
    with pytest.raises(UserError, match="range of resolved is not known"):
        run(write_gate(tmp_path, looks="sequential"), write_rows(tmp_path, [1, 0.5]))
    with pytest.raises(UserError, match="of which the results hold nothing"):
        run(write_gate(tmp_path, kpis=compared), write_rows(tmp_path, [1, 1]))
    with pytest.raises(UserError, match="does not choose between two measurements"):
        run(gate, write_rows(tmp_path, [1, 1]), counts(tmp_path))
    with pytest.raises(UserError, match="no results are given"):
        run(gate)


def test_a_fixed_gate_looks_once(tmp_path: Path) -> None:
    gate, values = write_gate(tmp_path), [1] * 26 + [0] * 4
    first = run(gate, write_rows(tmp_path, values), artefact=ONE, history=tmp_path)
    again = run(gate, write_rows(tmp_path, values), artefact=ONE, history=tmp_path)
    assert first.content == again.content
    assert len(read_history(tmp_path)) == 1
    for other in (write_rows(tmp_path, [*values, 1]), write_rows(tmp_path, values[::-1])):
        with pytest.raises(UserError, match="has had its one look for shadow"):
            run(gate, other, artefact=ONE, history=tmp_path)
    with pytest.raises(UserError, match="has had its one look"):
        run(write_gate(tmp_path, confidence=0.9), write_rows(tmp_path, values), artefact=ONE, history=tmp_path)
    run(gate, write_rows(tmp_path, [*values, 1]), artefact="b" * 64, history=tmp_path)
    run(write_gate(tmp_path, **{"for": "canary"}), write_rows(tmp_path, values), artefact=ONE, history=tmp_path)


def test_a_sequential_gate_looks_while_data_grow(tmp_path: Path) -> None:
    def look(values: list[Any], **settings: Any) -> GateOutcome:
        gate = write_gate(tmp_path, **{"looks": "sequential", **settings})
        return run(gate, write_rows(tmp_path, values), artefact=ONE, history=tmp_path).outcome

    values = [1] * 26 + [0] * 4
    assert look(values) is GateOutcome.INCONCLUSIVE
    assert look([*values, *[1] * 100]) is GateOutcome.PASS
    assert len(read_history(tmp_path)) == 2
    for other in ([1, *values, *[1] * 100], values[:-1], [*values, *[1] * 99]):
        with pytest.raises(UserError, match="do not begin with those of the last look"):
            look(other)
    with pytest.raises(UserError, match="gate has changed since the first look"):
        look([*values, *[1] * 200], confidence=0.9)


def test_counts_only_grow(tmp_path: Path) -> None:
    kpis = {"resolved": {"threshold": 0.9}}
    gate = write_gate(tmp_path, kpis=kpis, looks="sequential")
    for successes, n, is_right in ((90, 100, True), (100, 110, True), (99, 120, False), (120, 125, False)):
        arms = {"candidate": {"successes": successes, "n": n}}
        file = tmp_path / "counts.json"
        file.write_text(json.dumps({"counts": {"resolved": arms}}))
        if is_right:
            run(gate, str(file), artefact=ONE, history=tmp_path)
        else:
            with pytest.raises(UserError, match="do not begin with"):
                run(gate, str(file), artefact=ONE, history=tmp_path)


def test_the_digest_covers_the_decision(tmp_path: Path) -> None:
    decision = run(write_gate(tmp_path), write_rows(tmp_path, [1] * 60), artefact=ONE)
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(decision.content))
    result = read_gate_result(file)
    assert (result.outcome, result.for_stage, result.artefact) == (GateOutcome.PASS, "shadow", ONE)
    assert result.summary[0].startswith("resolved: pass; mean 1, bound 0.95")
    for key, value in (("outcome", "fail"), ("artefact", "b" * 64), ("for", "production"), ("digest", "0" * 64)):
        file.write_text(json.dumps({**decision.content, key: value}))
        with pytest.raises(UserError, match="does not fit its digest"):
            read_gate_result(file)
    other = run(write_gate(tmp_path), write_rows(tmp_path, [1] * 61), artefact=ONE)
    assert other.content["digest"] != decision.content["digest"]


BAD_GATES: dict[str, tuple[dict[str, Any], str]] = {
    "no stage": ({"for": None}, "for_stage"),
    "a stage that is none": ({"for": "retired"}, "for_stage"),
    "no KPI": ({"kpis": {}}, "kpis is empty"),
    "a key that is none": ({"confidense": 0.9}, "confidense is no key of a gate"),
    "no threshold": ({"kpis": {"a": {}}}, "threshold is missing"),
    "no margin": ({"kpis": {"a": {"decided_by": "non_inferiority"}}}, "margin is missing"),
    "a negative margin": ({"kpis": {"a": {"decided_by": "superiority", "margin": -1}}}, "margin = -1"),
    "both": ({"kpis": {"a": {"threshold": 1, "margin": 0.1}}}, "margin has no effect"),
    "threshold of a comparison": (
        {"kpis": {"a": {"decided_by": "superiority", "threshold": 1}}},
        "threshold has no effect",
    ),
    "an empty range": ({"kpis": {"a": {"threshold": 1, "range": [1, 1]}}}, "is empty"),
    "no confidence": ({"confidence": 0.4}, "less than a coin"),
    "a certainty": ({"confidence": 1}, "confidence"),
    "a correction that is none": ({"correction": "fdr"}, "correction"),
    "one arm": ({"candidate": "a", "production": "a"}, "are one arm"),
}


@pytest.mark.parametrize("name", BAD_GATES)
def test_bad_gates_are_refused(tmp_path: Path, name: str) -> None:
    settings, message = BAD_GATES[name]
    with pytest.raises(UserError, match=message):
        load_gate(write_gate(tmp_path, **settings))


def test_a_gate_without_a_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("kpis: {a: {threshold: 1}}\n")
    with pytest.raises(UserError, match="for is missing"):
        load_gate(path)
