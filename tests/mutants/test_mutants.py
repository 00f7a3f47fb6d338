"""The mutants fit the code as it is, and the runner tells which are noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.run import ROOT, Mutant, read_mutants, try_mutant

MUTANTS = read_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_mutant_changes_a_line_that_is_there_into_a_program(mutant: Mutant) -> None:
    """Where its line was rewritten, the mutant is to be rewritten too."""
    broken = mutant.applied(ROOT)
    assert broken is not None, f"{mutant.file} does not have {mutant.find!r} {mutant.count} times"
    assert broken != (ROOT / mutant.file).read_text(encoding="utf-8")
    compile(broken, mutant.file, "exec")
    assert mutant.tests and all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests)


def test_no_two_mutants_have_one_name() -> None:
    assert [name for name, count in Counter(mutant.id for mutant in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize(
    ("find", "replace", "verdict"),
    [
        ("return a + b", "return a - b", "killed"),
        ("return a + b", "return b + a", "SURVIVED"),
        ("return a * b", "return a", "moved"),
        ("return a + b", "return (", "no test ran"),
    ],
)
def test_the_runner_tells_what_became_of_a_mutant(find: str, replace: str, verdict: str, tmp_path: Path) -> None:
    code = "def add(a, b):\n    return a + b\n"
    (tmp_path / "sums.py").write_text(code)
    (tmp_path / "test_sums.py").write_text("from sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n")
    mutant = Mutant(id="m", file="sums.py", find=find, replace=replace, why="a bug", tests=("test_sums.py",))
    assert try_mutant(mutant, tmp_path).verdict == verdict
    assert (tmp_path / "sums.py").read_text() == code
