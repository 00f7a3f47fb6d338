"""Model cards: facts of a run, licences, escaped texts, and what a card refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from launch.cli import main
from rlhf.checkpoints.manifest import hash_files
from tests.rlhf.serving.test_registry import model


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def finished_stage(root: Path, base: str | None) -> Path:
    """The folder of a finished PPO stage with a tiny model, as a run leaves it."""
    stage = root / "travel" / "ppo"
    folder = model(stage / "model", "weights")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n```\n# not a heading of the card\n```\n")
    settings: dict[str, Any] = {"name": "travel", "model": {"path": base, "dtype": "float32"}, "ppo": {"steps": 40}}
    (stage / "config.yaml").write_text(yaml.safe_dump(settings))
    data = [{"file": "data/<b>prompts</b>.jsonl", "rows": 1500, "digest": "7a84"}]
    done = {"digest": "d", "data": data, "model": [asdict(entry) for entry in hash_files(folder)]}
    (stage / "done.json").write_text(json.dumps(done))
    (stage / "summary.json").write_text(json.dumps({"score of the last tenth of the steps": 2.207}))
    return folder


def card(tmp_path: Path, folder: Path, *more: object) -> str:
    registry, out = tmp_path / "registry.db", tmp_path / "card.md"
    why = "third | round\n# [click](http://evil) <script>"
    assert run("registry", "register", registry, "travel-3", folder, "--why", why, "--who", "ann") == 0
    assert run("registry", "card", registry, "travel-3", "--out", out, *more) == 0
    return out.read_text()


def base_model(folder: Path, readme: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(readme)
    return folder


def test_a_card_says_what_the_run_knows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = base_model(tmp_path / "base", "---\nlicense: apache-2.0\n---\n# Base\n")
    about = tmp_path / "about.yaml"
    about.write_text("intended_use: Questions of travellers\nlanguages: [en]\ncontact: team@example.org\n")
    text = card(tmp_path, finished_stage(tmp_path, str(base)), "--about", about)
    data = ModelCard(text).data
    assert (data.license, data.model_name, data.language) == ("apache-2.0", "travel-3", ["en"])
    assert "apache-2.0, the licence of the base model." in text
    assert "Questions of travellers" in text
    assert "steps: 40" in text
    assert "| score of the last tenth of the steps | 2.207 |" in text
    assert "7a84" in text
    assert "licence of the base model is not known" not in capfd.readouterr().out
    assert text.count("**Not stated.**") == 2  # out of scope, limitations


def test_texts_of_others_are_escaped(tmp_path: Path) -> None:
    text = card(tmp_path, finished_stage(tmp_path, None))
    assert "<script>" not in text
    assert "<b>" not in text
    assert "](http" not in text
    assert "third \\| round \\# " in text
    assert "````jinja\n{{ messages }}\n```\n# not a heading" in text


def test_an_unknown_licence_is_said_loudly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = card(tmp_path, finished_stage(tmp_path, "Qwen/Qwen2.5-0.5B"))
    assert "**THE LICENCE IS UNKNOWN: Qwen/Qwen2.5-0.5B names none that could be read here.**" in text
    assert ModelCard(text).data.license == "unknown"
    assert ModelCard(text).data.base_model == "Qwen/Qwen2.5-0.5B"
    assert "is not known" in capfd.readouterr().out


def test_a_run_whose_model_was_changed_is_not_quoted(tmp_path: Path) -> None:
    folder = finished_stage(tmp_path, None)
    (folder / "model.safetensors").write_text("other weights")
    text = card(tmp_path, folder)
    assert "nothing is known of it" in text
    assert "2.207" not in text


def test_a_card_never_goes_into_the_artefact(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = finished_stage(tmp_path, None)
    card(tmp_path, folder)
    for other in ("travel-3", "none"):
        assert run("registry", "card", tmp_path / "registry.db", other, "--out", folder / "README.md") == 2
    assert "would change its digest" in capfd.readouterr().err
    assert not (folder / "README.md").exists()
    about = tmp_path / "about.yaml"
    about.write_text("license: mit\n")
    assert run("registry", "card", tmp_path / "registry.db", "travel-3", "--about", about) == 2
    assert "license is no key of a model card" in capfd.readouterr().err
