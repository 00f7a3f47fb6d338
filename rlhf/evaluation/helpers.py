"""Imports of user functions: modules beside a function's file are visible to it alone.

Python keeps one module per name. Two files that each import a ``utils`` beside them would share the first one, so the
modules of each folder are kept apart and are in ``sys.modules`` only while a function of that folder runs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_MODULES: dict[Path, dict[str, ModuleType]] = {}
"""Folder → the modules that were imported from it, by name."""


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Context in which ``import`` finds the modules in ``folder``, before all others of the same name.

    Modules that this process had imported before, such as the standard library's, are not replaced.

    Args:
        folder: absolute path.
    """
    own = _MODULES.setdefault(folder, {})
    others = {name: sys.modules[name] for name in own if name in sys.modules}
    before = sys.modules.keys() - own.keys()
    sys.modules.update(own)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = {name: module for name, module in sys.modules.copy().items() if name not in before}
        beside = {name for name, module in new.items() if "." not in name and _lies_in(module, folder)}
        own.update({name: module for name, module in new.items() if name.partition(".")[0] in beside})
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(others)


def hidden_helper(source: Path) -> str | None:
    """Name of a module in a file's folder that the file imports and would not get: this process has another.

    The standard library's names are left out, because a file that imports one means it.
    """
    folder = source.parent
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # reported by the import
        return None
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module]
        for name in (module.partition(".")[0] for module in modules):
            is_beside = (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
            other = sys.modules.get(name) if is_beside and name not in sys.stdlib_module_names else None
            if other is not None and not _lies_in(other, folder):
                return name
    return None


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module is a file or a package directly in ``folder``, not in an environment below it."""
    spec = getattr(module, "__spec__", None)
    origins = list(getattr(module, "__path__", [])) or [getattr(spec, "origin", None)]
    paths = [Path(origin) for origin in origins if isinstance(origin, str)]
    return any(folder in (path.parent, path.resolve().parent) for path in paths)
