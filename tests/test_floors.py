"""The three floors: imports go down only, the bottom floor knows nothing of Ray, every file says what it is about."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {"rlhf": {"actors", "launch", "ray"}, "actors": {"launch"}, "launch": set()}
MODULES = [path.relative_to(ROOT) for floor in ABOVE for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def upward(source: str, floor: str) -> list[tuple[int, str]]:
    """The imports of a file on ``floor`` that reach above it."""
    return [(line, package) for line, package in imported(ast.parse(source)) if package in ABOVE[floor]]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    assert upward((ROOT / path).read_text(encoding="utf-8"), path.parts[0]) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_file_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES}
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_upward_imports_are_found_wherever_they_hide() -> None:
    hidden = "import rlhf.types\ndef f():\n    import ray.util\n    from actors.cluster import connect\n"
    assert upward(hidden, "rlhf") == [(3, "ray"), (4, "actors")]
    assert upward("import ray\nfrom launch import cli\n", "actors") == [(2, "launch")]
    assert upward("from .launch import x\nimport launching\n", "actors") == []


def dotted(path: Path) -> str:
    """The name of a module, or of a package where the file is its ``__init__.py``."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The folder of a file; files that lie directly in a floor are rooms of their own."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else module


def links(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, for type checkers alone too. ``sources`` are texts by module."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found[module] |= {name if name in sources else node.module for name in names}
            elif isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
    return {module: {name for name in names if name in sources and name != module} for module, names in found.items()}


def rooms(files: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, names in files.items():
        found[room(module)] |= {room(name) for name in names} - {room(module)}
    return dict(found)


def test_no_files_and_no_rooms_import_each_other_in_a_circle() -> None:
    files = links({dotted(path): (ROOT / path).read_text(encoding="utf-8") for path in MODULES})
    TopologicalSorter(files).prepare()  # raises CycleError, which names the circle
    TopologicalSorter(rooms(files)).prepare()


def test_a_circle_is_found_between_files_and_between_rooms() -> None:
    apart = {"rlhf.a.x": "from rlhf.b import y", "rlhf.b.y": "", "rlhf.b.z": "import rlhf.a.x"}
    files = links(apart)
    TopologicalSorter(files).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(rooms(files)).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(
            links({"rlhf.a": "if TYPE_CHECKING:\n    from rlhf.b import B", "rlhf.b": "import rlhf.a"})
        ).prepare()


def test_the_training_loop_fits_on_two_screens() -> None:
    assert len((ROOT / "actors" / "trainer.py").read_text(encoding="utf-8").splitlines()) < 100


def test_a_class_name_exists_once() -> None:
    trees = [ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []
