from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.source import read_source
from rlhf.errors import UserError


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def test_missing_file_names_its_neighbours(write):
    path = write("name: a")
    with pytest.raises(UserError) as error:
        read_source(path.with_name("rum.yaml"), [])
    assert "no recipe at" in error.value.what and "run.yaml" in error.value.fix


def test_folder_names_the_recipes_in_it(write):
    path = write("name: a")
    with pytest.raises(UserError, match="is a folder") as error:
        read_source(path.parent, [])
    assert "run.yaml" in error.value.fix


def test_neighbours_of_a_file_in_a_missing_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no recipe at"):
        read_source(tmp_path / "none" / "run.yaml", [])


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("name: a\nppo: [1, 2\n", ":3:1", "expected ',' or ']'"),
        ("name: a\n\tppo: 1\n", ":2:1", "cannot start any token"),
        ("name: a\nppo:\n  steps: 1\n  steps: 2\n", ":4:3", "'steps' is set twice"),
        ("name: a\nname: b\n", ":2:1", "'name' is set twice"),
        ('name: a\n"name": b\n', ":2:1", "'name' is set twice"),
        ("name: a\nppo: {steps: 1, steps: 2}\n", ":2:17", "'steps' is set twice"),
        ("name: a\nseed: !!timestamp 2024-13-45\n", ":2:7", "impossible value"),
        ("name: a\nseed: !!int ''\n", ":2:7", "impossible value"),
        ("name: a\n---\nname: b\n", ":2:1", "another document"),
        ("name: !!python/object:os.system x\n", ":1:7", "could not determine a constructor"),
        ("name: *nobody\n", ":1:7", "undefined alias"),
        ("name: a\0b", "", "special characters are not allowed"),
        ("[" * 2000, "", "nested too deeply"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(write, text, position, reason):
    path = write(text)
    with pytest.raises(UserError) as error:
        read_source(path, [])
    assert error.value.what.startswith(f"{path}{position}: not valid YAML: ") and reason in error.value.what


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_empty_file_is_refused(write, text):
    with pytest.raises(UserError, match="is empty"):
        read_source(write(text), ["name=a"])


@pytest.mark.parametrize(("text", "kind"), [("- name: a\n", "list"), ("hello\n", "str"), ("3\n", "int")])
def test_top_level_is_a_mapping(write, text, kind):
    with pytest.raises(UserError, match=f"holds {kind} at the top"):
        read_source(write(text), [])


def test_a_byte_order_mark_is_no_part_of_the_text(write):
    assert read_source(write(b"\xef\xbb\xbfname: a\n"), []).settings == {"name": "a"}


def test_a_file_that_is_not_text(write):
    with pytest.raises(UserError, match="is not text"):
        read_source(write(b"name: \xff\xfe\x80"), [])


def test_overrides_make_sections_and_the_last_one_wins(write):
    source = read_source(write("name: a\nppo: {steps: 1}\n"), ["ppo.steps=2", "ppo.optimizer.lr=0.5", "ppo.steps=3"])
    assert source.settings == {"name": "a", "ppo": {"steps": 3, "optimizer": {"lr": 0.5}}}


def test_override_values_are_yaml_and_may_hold_an_equals_sign(write):
    overrides = ["data.columns={chosen: better}", "data.path=a=b", "tracking.tags=[x, y]", "data.max_rows="]
    settings = read_source(write("name: a\n"), overrides).settings
    assert settings["data"] == {"columns": {"chosen": "better"}, "path": "a=b", "max_rows": None}
    assert settings["tracking"] == {"tags": ["x", "y"]}


def test_override_of_one_section_leaves_its_alias_alone(write):
    text = "name: a\nppo:\n  optimizer: &shared {lr: 1.0}\n  critic_optimizer: *shared\n"
    settings = read_source(write(text), ["ppo.optimizer.lr=2.0"]).settings
    assert settings["ppo"] == {"optimizer": {"lr": 2.0}, "critic_optimizer": {"lr": 1.0}}


def test_merge_key_lets_the_section_override_what_it_merges(write):
    text = "name: a\nppo:\n  optimizer: &o {lr: 1.0, eps: 1.0}\n  critic_optimizer: {<<: *o, lr: 2.0}\n"
    assert read_source(write(text), []).settings["ppo"]["critic_optimizer"] == {"lr": 2.0, "eps": 1.0}


@pytest.mark.parametrize("override", ["ppo.steps", "=3", ".steps=3", "ppo..steps=3", "ppo. steps=3", "", "--steps 3"])
def test_malformed_override(write, override):
    with pytest.raises(UserError) as error:
        read_source(write("name: a\n"), [override])
    assert repr(override) in error.value.what and "key.path=value" in error.value.fix


def test_all_bad_overrides_are_reported(write):
    with pytest.raises(UserError) as error:
        read_source(write("name: a\nseed: 1\n"), ["ppo.steps", "ppo.steps=[1", "seed.x=2"])
    text = str(error.value)
    assert "3 problems" in text and "not valid YAML" in text and "seed is a single value, not a section" in text


def test_place_knows_lines_and_the_command_line(write):
    path = write("name: a\nppo:\n  # comment\n  steps: 1\n  optimizer:\n    lr: 1.0\n")
    source = read_source(path, ["ppo.optimizer.eps=1.0", "algorithm={gamma: 1}"])
    assert source.place("ppo.steps") == f"{path}:4"
    assert source.place("ppo.optimizer.lr") == f"{path}:6"
    assert source.place("ppo.optimizer.eps") == "command line"
    assert source.place("algorithm.gamma") == "command line"
    assert source.place("ppo") == f"{path}:2"
    assert source.place("ppo.steps.more") == source.place("sft") == str(path)


def test_a_section_that_only_an_override_names_is_from_the_command_line(write):
    assert read_source(write("name: a\n"), ["pppo.optimizer.lr=1"]).place("pppo") == "command line"
