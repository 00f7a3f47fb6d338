"""A small run's folder, with hostile text wherever a run can contain text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.tracking.spans import Span
from rlhf.tracking.trace import TraceFile

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\"'&<!--"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def hostile_run(root: Path) -> Path:
    """An unfinished PPO stage: five steps, one KL that is null, an actor that died, an incomplete last line."""
    ppo = root / "ppo"
    metrics = [
        {"step": k, "objective/scores": k / 2, "objective/kl": None if k == 2 else k, "time/step": 4.0, HOSTILE: k}
        | {"time/rollout": 3.0, "time/update": 1.0, "health/restarts": 1, "health/seconds_lost": 9.5}
        for k in range(5)
    ]
    write_rows(ppo / "metrics.jsonl", metrics)
    with (ppo / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "objective/sco')
    score = {"kl": 0.1, "finish_reason": "stop", "weight_version": 0}
    responses = [("low", -1.0), ("high", 9.0), ("middle", 10.0), (HOSTILE, 2.0)]
    write_rows(
        ppo / "samples.jsonl", [{"step": 0, "prompt": HOSTILE, "response": r, "score": s} | score for r, s in responses]
    )
    write_rows(ppo / "answers.jsonl", [{"prompt": HOSTILE, "before": "\ud800 \u0007", "after": HOSTILE}])
    died = {"time": "2026-01-01T00:00:00", "kind": "actor_died", "member": HOSTILE, "what": HOSTILE, "step": 1}
    back = {"time": "2026-01-01T00:00:09", "kind": "actor_replaced", "member": HOSTILE, "seconds": 9.5}
    write_rows(ppo / "events.jsonl", [died, back])
    config = {"name": HOSTILE, "canaries": {"max_kl": 5.0}, "tracking": {"api_key": "open sesame"}, HOSTILE: 1}
    (ppo / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    (ppo / "status.json").write_text(json.dumps({"phase": HOSTILE, "step": 5}), encoding="utf-8")
    (ppo / "summary.json").write_text(json.dumps({HOSTILE: HOSTILE}), encoding="utf-8")
    (root / "evaluation").mkdir()
    (root / "evaluation" / "summary.json").write_text(json.dumps({HOSTILE: HOSTILE, "win rate": 0.5}), encoding="utf-8")
    timeline_of(ppo, steps=5)
    return root


def timeline_of(stage: Path, steps: int) -> None:
    """A timeline of steps of 10 s: an engine busy for the first 4, a policy for the last 5, a second between."""
    trace = TraceFile(stage / "trace.json")
    for step in range(steps):
        begin = 1e9 + 10.0 * step
        own = [
            ("step", 0.0, 10.0),
            ("rollout", 0.0, 4.0),
            ("wait for rollout engine 0", 0.0, 4.0),
            ("update", 5.0, 10.0),
        ]
        trace.add("controller", "controller", [_span(name, begin + a, begin + b, step) for name, a, b in own])
        trace.add("node a", "rollout engine 0", [_span("generate", begin, begin + 4.0, step)])
        trace.add("node a", "policy rank 0", [_span("update", begin + 5.0, begin + 10.0, step)])
        trace.add("node a", HOSTILE, [_span(HOSTILE, begin + 6.0, begin + 7.0, step)])


def _span(name: str, begin: float, end: float, step: int) -> Span:
    return Span(name=name, begin=begin, end=end, step=step)
