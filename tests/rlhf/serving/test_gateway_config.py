"""The gateway's file: relative names, and what is refused with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.serving.gateway_config import load_gateway

LEAST = "registry: registry.db\nmodel: travel\n"


def write(folder: Path, more: str = "") -> Path:
    file = folder / "gateway.yaml"
    file.write_text(LEAST + more)
    return file


def test_names_of_files_are_beside_the_file_except_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text("")
    file = write(tmp_path, "log: a/log.jsonl\nscorer: {function: 'score.py:score'}\nthumbs: {project: votes.db}\n")
    config = load_gateway(file, ["registry=other.db"])
    assert config.registry == "other.db"
    assert config.keys == str(tmp_path / "gateway-keys.jsonl")
    assert config.engines.logs == str(tmp_path / "engine-logs")
    assert config.log == str(tmp_path / "a/log.jsonl")
    assert config.scorer is not None
    assert config.scorer.function == str(tmp_path / "score.py") + ":score"
    assert config.thumbs is not None
    assert config.thumbs.project == str(tmp_path / "votes.db")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("chanary: {}", "chanary is no key of a gateway"),
        ("canary: {share: 1.5}", "canary.share"),
        ("canary: {check: before}", "canary.check = before needs a scorer"),
        ("kpis: [{kpi: low_scores, limit: 0.1}]", "low_scores needs a scorer"),
        ("kpis: [{kpi: thumbs_down, limit: 0.1}]", "thumbs_down needs a feedback project"),
        ("kpis: [{kpi: speed, limit: 0.1}]", "kpis.0.kpi"),
        ("scorer: {minimum: 1}", "scorer has neither function and url"),
        ("engines: {urls: {one: [ftp://x]}}", r"(?s)is no address of a service.*=http://127.0.0.1:8000, or"),
        ("listen: {port: 70000}", "is no port"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_gateway(write(tmp_path, more))
