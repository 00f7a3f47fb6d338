"""File names of a comparison are relative to its folder, and those of the command line to the current one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf.arms.spec import load_comparison
from rlhf.errors import UserError


def test_names_of_files_are_relative_to_the_comparison_and_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / "models" / "ppo").mkdir(parents=True)
    (tmp_path / "own.py").touch()
    content = {
        "items": "items.jsonl",
        "arms": {"base": "base.jsonl", "ppo": "/data/ppo.jsonl"},
        "base": "base",
        "scorers": {"own": "own.py:score", "refusals": "rlhf.evaluation.refusals:answered"},
        "lm_eval": {"models": {"base": "org/name", "ppo": "models/ppo"}, "tasks": ["models"], "folder": "models"},
        "bert_score": {"model": "org/encoder", "layers": 1},
    }
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump(content))
    found = load_comparison(path, ["train=[t.jsonl]", "votes=v.db"])
    assert (found.items, found.arms) == (
        f"{tmp_path}/items.jsonl",
        {"base": f"{tmp_path}/base.jsonl", "ppo": "/data/ppo.jsonl"},
    )
    assert (found.cache, found.train, found.votes) == (f"{tmp_path}/judge_replies.jsonl", ("t.jsonl",), "v.db")
    assert found.scorers == {"own": f"{tmp_path}/own.py:score", "refusals": "rlhf.evaluation.refusals:answered"}
    assert found.lm_eval is not None and found.bert_score is not None
    assert found.lm_eval.models == {"base": "org/name", "ppo": f"{tmp_path}/models/ppo"}
    assert (found.lm_eval.folder, found.lm_eval.tasks) == (f"{tmp_path}/models", ("models",))
    assert found.bert_score.model == "org/encoder"
    assert load_comparison(path, ["arms={base: here.jsonl}", "lm_eval=null"]).arms["base"] == "here.jsonl"


def small(folder: Path, **settings: object) -> Path:
    content = {"items": "items.jsonl", "arms": {"base": "base.jsonl"}, "base": "base", **settings}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("key", ["sk-9QmZx4Tt71LcVb2n", "hf_aBcDeFgHiJkLmNoP", "JBSWY3DPEHPK3PXP", "two words", ""])
def test_a_key_in_the_place_of_its_variable_is_refused_without_being_shown(tmp_path: Path, key: str) -> None:
    judge = {"url": "http://127.0.0.1:1/v1", "model": "m", "key_variable": key}
    with pytest.raises(UserError, match="judge.key_variable is no name of an environment variable") as caught:
        load_comparison(small(tmp_path, judge=judge))
    assert not key or key not in str(caught.value)
