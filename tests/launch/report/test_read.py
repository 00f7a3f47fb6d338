from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.report.read import flatten, read_run
from rlhf.errors import UserError
from tests.launch.report.folder import hostile_run, write_rows


def test_an_unfinished_run_of_one_stage_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = read_run(hostile_run(tmp_path / "r"))
    (stage,) = run.stages
    assert (run.name, stage.name) == ("r", "ppo")
    assert stage.metrics["objective/kl"] == ((0, 0.0), (1, 1.0), (2, None), (3, 3.0), (4, 4.0))
    assert (stage.first("objective/scores"), stage.last("objective/scores")) == (0.0, 2.0)
    assert run.notes == ("ppo/metrics.jsonl: its last line is incomplete and left out",)


@pytest.mark.parametrize(("step", "where"), [(3, "rollout of step 3"), (None, "rollout")])
def test_an_unfinished_stage_is_where_it_was_last_seen(step: int | None, where: str, tmp_path: Path) -> None:
    hostile_run(tmp_path)
    (tmp_path / "ppo" / "status.json").write_text(json.dumps({"phase": "rollout", "step": step}))
    assert read_run(tmp_path).stages[0].state == f"unfinished; last seen in {where}"


def test_lines_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft" / "metrics.jsonl", [{"step": 1, "a": 2, "b": "text", "c": 10**400, "d": True}])
    with (tmp_path / "sft" / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"a": 3}\n{"step": 0, "a": NaN}\n')
    run = read_run(tmp_path)
    assert run.stages[0].metrics == {"a": ((1, 2.0),)}
    assert run.notes == ("sft/metrics.jsonl: 2 unreadable lines left out",)


def test_secrets_are_hidden_and_an_unreadable_configuration_is_not_shown(tmp_path: Path) -> None:
    config = read_run(hostile_run(tmp_path)).stages[0].config
    assert dict(flatten(config))["tracking.api_key"] == "***"
    (tmp_path / "ppo" / "config.yaml").write_text("api_key: [open sesame", encoding="utf-8")
    run = read_run(tmp_path)
    assert run.stages[0].config == {} and "ppo/config.yaml: unreadable" in run.notes


def test_what_is_no_run_is_refused_with_the_way_out(tmp_path: Path) -> None:
    hostile_run(tmp_path / "r")
    (tmp_path / "empty").mkdir()
    for folder, fix in (("none", "runs/<name>"), ("empty", "runs/<name>"), ("r/ppo", str(tmp_path / "r"))):
        with pytest.raises(UserError) as refused:
            read_run(tmp_path / folder)
        assert fix in refused.value.fix
