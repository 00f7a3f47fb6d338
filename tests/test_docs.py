"""What the pages tell a reader to open, type, set or watch is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import COMMANDS, CommandGroup, parse
from rlhf.config.keys import all_keys
from rlhf.config.load import load_recipe
from rlhf.config.schema import DataConfig
from rlhf.data.formats import load_demonstrations, load_preferences, load_prompts
from rlhf.metrics import METRICS, unknown_metrics

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FOLDERS = ("actors", "docs", "examples", "launch", "recipes", "requirements", "rlhf", "tests")
SOURCE = "".join(
    file.read_text(encoding="utf-8") for floor in ("rlhf", "actors", "launch") for file in ROOT.glob(f"{floor}/**/*.py")
)
METRIC = re.compile(rf"(?:{'|'.join({name.partition('/')[0] for name in METRICS if '/' in name})})/\w+")

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path) -> str:
    """The text in fences, without their marks."""
    return "".join(re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE))


def quoted(page: Path) -> list[str]:
    """What stands between back-ticks in the running text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path) -> list[list[str]]:
    """Arguments of every whole ``rlhf`` command: of each line that is one, and of those in back-ticks."""
    lines = [line.strip() for line in page.read_text(encoding="utf-8").splitlines()] + quoted(page)
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"(\.venv/bin/)?rlhf \w+ ", line)]
    return [line[1:] for line in words if len(line) > 2 and not is_name(line[1:])]


def is_name(words: list[str]) -> bool:
    """Whether words are the name of a command of a group and no more."""
    group = COMMANDS.get(words[0])
    return isinstance(group, CommandGroup) and words[1:] in [[name] for name in group.commands]


def targets(page: Path) -> set[str]:
    """Targets of every ``make`` command."""
    text = "\n".join([blocks(page), *quoted(page)])
    return set(re.findall(r"^make (?!-)([a-z][\w-]*)", text, flags=re.MULTILINE))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@each_page
def test_named_files_are_there(page: Path) -> None:
    begins = tuple(f"{name}/" for name in FOLDERS)
    paths = [re.split(r":|\s", text)[0] for text in quoted(page) if text.startswith(begins)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@each_page
def test_commands_parse_and_their_recipes_load(page: Path) -> None:
    for arguments in commands(page):
        options = parse(arguments).options
        if options.get("recipe"):
            load_recipe(ROOT / options["recipe"], options["overrides"])


def test_the_front_page_shows_every_command_and_both_first_targets() -> None:
    readme = ROOT / "README.md"
    assert {arguments[0] for arguments in commands(readme)} == set(COMMANDS)
    assert {"quickstart", "test", "gpu-check"} <= targets(readme)


@each_page
def test_make_targets_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert targets(page) - known == set()


@each_page
def test_metrics_are_recorded(page: Path) -> None:
    metrics = {text for text in quoted(page) if METRIC.fullmatch(text)}
    assert unknown_metrics([dict.fromkeys(metrics)]) - {"weights/fingerprint"} == set()  # a check, and no number


@each_page
def test_settings_exist(page: Path) -> None:
    sections = {key.partition(".")[0] for key in all_keys() if "." in key}
    named = {match.group() for text in quoted(page) if (match := re.match(r"-?[a-z]+(\.[a-z_0-9]+)+(?==|$)", text))}
    settings = {name.lstrip("-") for name in named}
    assert {name for name in settings if name.partition(".")[0] in sections} - set(all_keys()) - _sections() == set()


def _sections() -> set[str]:
    """Keys that hold keys."""
    return {key.rpartition(".")[0] for key in all_keys()}


def test_every_named_test_exists() -> None:
    named = [text.split("::") for text in quoted(ROOT / "docs/numerics.md") if "::" in text]
    bodies = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in named}
    assert len(named) > 20
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in bodies[path]] == []


def test_the_errors_that_are_explained_are_raised() -> None:
    """A heading is an error's text with … for its values; each piece of it stands in the source, joined over lines."""
    source = re.sub(r'"\s*\n\s*f?"', "", SOURCE) + (ROOT / "launch/setup_env.sh").read_text(encoding="utf-8")
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)
    assert len(headings) > 15
    missing = [(heading, piece) for heading in headings for piece in heading.split("…") if piece.strip() not in source]
    assert missing == []


@pytest.mark.parametrize(
    ("title", "load"),
    [
        ("Demonstrations", load_demonstrations),
        ("Preferences", load_preferences),
        ("Prompts", load_prompts),
        ("Anthropic's HH transcripts", load_preferences),
    ],
)
def test_example_rows_are_read(title: str, load: Callable, tmp_path: Path) -> None:
    section = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition(f"**{title}**")[2]
    rows = re.search(r"```jsonl\n(.*?)```", section, flags=re.DOTALL).group(1)
    file = tmp_path / "rows.jsonl"
    file.write_text(rows, encoding="utf-8")
    loaded = load(DataConfig(path=str(file)))
    assert loaded.bad == ()
    assert len(loaded.rows) == len(rows.splitlines())
