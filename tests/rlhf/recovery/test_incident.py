"""Tests of an incident's message, word for word, and of its record."""

from __future__ import annotations

import json
from dataclasses import replace

from rlhf.recovery.diagnosis import Cause
from rlhf.recovery.facts import Facts
from rlhf.recovery.incident import Incident

STALL = Incident(
    when=1_700_000_000.25,
    member="policy rank 1",
    role="policy",
    rank=1,
    node="127.0.0.1",
    process=4711,
    step=12,
    phase="update",
    kind="stalled",
    what="no answer\nfor 120 s",
    cause="the process is stopped",
    advice="find out who stops it",
    facts=Facts(
        alive=True,
        process_state="T",
        rss_bytes=2254857830,
        host_total_bytes=25769803776,
        heartbeat_age_seconds=118.2,
        doing="update",
    ),
    seconds_lost=131.5,
    samples_redone=8,
)


def test_an_incident_is_one_line_with_all_that_is_known() -> None:
    assert STALL.text() == (
        "policy rank 1 (node 127.0.0.1, process 4711) stalled during update of step 12: no answer for 120 s; last "
        "heartbeat 118 s ago; doing update; memory 2.1 GiB of 24; likely cause: the process is stopped; what to do: "
        "find out who stops it"
    )


def test_the_headline_says_who_where_when_and_why() -> None:
    assert STALL.headline() == (
        "policy rank 1 (node 127.0.0.1, process 4711) stalled during update of step 12: the process is stopped"
    )
    broken = replace(STALL, kind="failed", cause=Cause.GPU_ECC, advice="take the node\nout")
    assert broken.headline().endswith("uncorrectable error (ECC); what to do: take the node out")


def test_a_group_that_fails_as_a_whole_is_one_incident() -> None:
    few = replace(STALL, others=("policy rank 2", "policy rank 3"))
    assert few.text().startswith(
        "policy rank 1 (node 127.0.0.1, process 4711) and policy rank 2, policy rank 3 stalled"
    )
    whole = replace(STALL, others=tuple(f"policy rank {rank}" for rank in range(2, 513)))
    assert "policy rank 1 and policy rank 2, policy rank 3, policy rank 4, policy rank 5, 507 more st" in whole.row()
    assert len(whole.details()["others"]) == 511


def test_what_is_not_known_is_not_said() -> None:
    bare = Incident(
        when=0.0,
        member="critic rank 0",
        role="critic",
        phase="start",
        kind="died",
        what="end of file",
        cause="not known",
    )
    assert bare.text() == "critic rank 0 died during start: end of file; likely cause: not known"
    dead = replace(bare, node="10.0.0.2", facts=Facts(alive=False, rss_bytes=0, host_total_bytes=2**34))
    assert dead.text() == "critic rank 0 (node 10.0.0.2) died during start: end of file; likely cause: not known"
    blind = replace(bare, process=7, facts=Facts(alive=True, rss_bytes=2**30))
    assert "critic rank 0 (process 7) died" in blind.text()
    assert "memory 1.0 GiB; likely" in blind.text()


def test_events_keep_what_can_be_counted() -> None:
    assert json.loads(json.dumps(STALL.details())) == {
        "when": "2023-11-14T22:13:20.250+00:00",
        "member": "policy rank 1",
        "role": "policy",
        "rank": 1,
        "node": "127.0.0.1",
        "process": 4711,
        "step": 12,
        "phase": "update",
        "others": [],
        "what": "no answer for 120 s",
        "cause": "the process is stopped",
        "advice": "find out who stops it",
        "samples_redone": 8,
        "heartbeat_age_seconds": 118.2,
        "process_state": "T",
        "doing": "update",
        "memory_gib": 2254857830 / 2**30,
        "host_memory_gib": 24.0,
    }
    without = replace(STALL, facts=None).details()
    assert without["memory_gib"] is None and without["heartbeat_age_seconds"] is None
