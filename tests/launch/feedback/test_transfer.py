"""``rlhf feedback import`` and ``export``: summaries, refusals, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from launch.feedback import transfer
from launch.feedback.transfer import export, import_
from rlhf.errors import UserError
from rlhf.feedback.aggregate import Ties
from rlhf.feedback.formats.reading import FORMATS
from rlhf.feedback.project import RULES
from rlhf.feedback.store import Store

ROW = {"instruction": "Two?", "response1": "2", "response2": "3", "annotator1": 1, "annotator2": 1, "annotator3": 9}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A PandaLM file with a bad label in its first row and a bad second row."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({"instruction": "Three?"}) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def project(tmp_path: Path, file: str) -> Path:
    """A project with that file's votes."""
    import_(tmp_path / "votes.db", file, "pandalm")
    return tmp_path / "votes.db"


def test_the_options_are_those_of_the_library() -> None:
    assert set(get_args(transfer.ImportFormat)) == {"native", *FORMATS}
    assert set(get_args(transfer.Aggregation)) == set(RULES)
    assert set(get_args(transfer.TieRule)) == {ties.value for ties in Ties}


def test_an_import_says_what_was_added_and_what_was_not_used(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project, bad = tmp_path / "votes.db", tmp_path / "bad.jsonl"
    import_(project, file, "pandalm", bad)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{file}: 1 item, 2 votes", f"{project}: 1 item, 2 votes, 2 raters added"]
    assert lines[2] == "not used: 2"
    assert "rows.jsonl:2" in "\n".join(lines[3:])
    assert [json.loads(line)["line"] for line in bad.read_text().splitlines()] == [1, 2]
    import_(project, file, "pandalm")
    assert f"{project}: nothing added" in capsys.readouterr().out


def test_a_project_survives_export_and_import(project: Path, tmp_path: Path) -> None:
    export(project, tmp_path / "all.jsonl")
    import_(tmp_path / "new.db", str(tmp_path / "all.jsonl"), "native")
    with Store.open(project) as old, Store.open(tmp_path / "new.db") as new:
        assert new.digest() == old.digest()
        assert new.votes() == old.votes()


def test_preferences_are_exported_by_the_named_rule(project: Path, tmp_path: Path) -> None:
    export(project, tmp_path / "out.jsonl", "trl", "bradley_terry")
    [row] = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("Two?", "2", "3")
    assert row["provenance"]["aggregation"] == "bradley_terry"
    assert row["provenance"]["judged_by"] == ["pandalm:annotator1", "pandalm:annotator2"]


def test_nothing_is_overwritten(project: Path, file: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.out"
    out.write_text("mine")
    with pytest.raises(UserError, match="rows.out exists"):
        export(project, out)
    with pytest.raises(UserError, match="rows.out exists"):
        import_(project, file, "pandalm", out)
    assert out.read_text() == "mine"


def test_a_failed_export_leaves_no_file(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        yield {"kind": "project"}
        raise OSError("disk")

    monkeypatch.setattr(transfer, "_rows", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk"):
        export(project, tmp_path / "out.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_import_leaves_no_new_project(project: Path, tmp_path: Path) -> None:
    export(project, tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines(keepends=True)
    without_items = [line for line in lines if json.loads(line)["kind"] != "item"]
    (tmp_path / "broken.jsonl").write_text("".join(without_items))
    for name, message in (("broken.jsonl", "there is no item"), ("rows.jsonl", "no line of a project")):
        with pytest.raises(UserError, match=message):
            import_(tmp_path / "new.db", str(tmp_path / name), "native")
        assert not list(tmp_path.glob("new.db*"))


@pytest.mark.parametrize("format", ["native", "trl-unpaired"])
@pytest.mark.parametrize("options", [{"aggregation": "majority"}, {"ties": "drop"}])
def test_options_without_effect_are_refused(
    project: Path, tmp_path: Path, format: str, options: dict[str, str]
) -> None:
    with pytest.raises(UserError, match="has no effect with --format"):
        export(project, tmp_path / "out.jsonl", format, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_in_a_missing_folder_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder that you can write"):
        export(project, tmp_path / "missing" / "out.jsonl")
