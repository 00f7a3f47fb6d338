"""The registry: steps, gates, rollback, one holder a stage, an audit that only grows, and commands that may repeat."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from rlhf.errors import MachineryError, UserError
from rlhf.serving.artefact import STEPS, Artefact, ServingStage
from rlhf.serving.audit_chain import RegistryDamaged
from rlhf.serving.gate_result import GateOutcome, GateResult
from rlhf.serving.registry import Registry

SHADOW, CANARY, PRODUCTION = STEPS[1:]
numbers = count()
BY = {"who": "ann", "why": "a test"}


def model(folder: Path, weights: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "config.json").write_text("{}")
    return folder


def passed(of: Artefact, stage: ServingStage, **changes: object) -> GateResult:
    fields = {"outcome": GateOutcome.PASS, "for_stage": str(stage), "artefact": of.digest, "baseline": ""}
    return GateResult(**{**fields, "digest": f"{next(numbers):064x}", **changes})  # type: ignore[arg-type]


def bring(registry: Registry, version: str, to: ServingStage) -> Artefact:
    """Promote through every step up to a stage."""
    artefact = registry.artefact(version)
    for stage in STEPS[1 : STEPS.index(to) + 1]:
        artefact = registry.promote(version, stage, passed(artefact, stage), **BY)
    return artefact


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.create(tmp_path / "registry.db", clock=lambda: 1000.0) as made:
        for version in ("one", "two", "three"):
            made.register(version, model(tmp_path / version, version), **BY)
        yield made


def test_a_model_goes_to_production_step_by_step_and_retires_the_former_one(registry: Registry) -> None:
    assert bring(registry, "one", PRODUCTION).stage is PRODUCTION
    bring(registry, "two", PRODUCTION)
    bring(registry, "three", CANARY)
    state = registry.serving()
    assert state.production is not None
    assert state.canary is not None
    assert (state.production.version, state.canary.version, state.shadow) == ("two", "three", None)
    assert registry.artefact("one").stage is ServingStage.RETIRED
    assert state.revision == registry.revision() == len(registry.audit()) == 3 + 3 + 3 + 2
    assert state.production.registered == 1000.0


@pytest.mark.parametrize("to", [CANARY, PRODUCTION, ServingStage.CANDIDATE, ServingStage.RETIRED])
def test_no_step_is_skipped(registry: Registry, to: ServingStage) -> None:
    artefact = registry.artefact("one")
    with pytest.raises(UserError):
        registry.promote("one", to, passed(artefact, to), **BY)
    assert registry.artefact("one") == artefact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": GateOutcome.FAIL}, "gate for shadow is fail"),
        ({"outcome": GateOutcome.INCONCLUSIVE}, "gate for shadow is inconclusive"),
        ({"for_stage": "canary"}, "gate is for canary and not for shadow"),
        ({"artefact": "0" * 64}, "gate measured 000000000000 and not one"),
        ({"baseline": "1" * 64}, "which is not in production"),
    ],
)
def test_only_a_passed_gate_of_this_step_and_these_files_promotes(
    registry: Registry, changes: dict[str, object], message: str
) -> None:
    before = registry.audit()
    with pytest.raises(UserError, match=message):
        registry.promote("one", SHADOW, passed(registry.artefact("one"), SHADOW, **changes), **BY)
    assert registry.audit() == before


def test_a_gate_against_a_former_production_artefact_promotes_no_more(registry: Registry) -> None:
    one = bring(registry, "one", PRODUCTION)
    bring(registry, "two", CANARY)
    two = registry.artefact("two")
    gate = passed(two, PRODUCTION, baseline=one.digest)
    assert registry.promote("two", PRODUCTION, gate, **BY).stage is PRODUCTION
    with pytest.raises(UserError, match="it is two"):
        registry.promote("three", SHADOW, passed(registry.artefact("three"), SHADOW, baseline=one.digest), **BY)


def test_a_gate_promotes_once(registry: Registry, tmp_path: Path) -> None:
    gate = passed(registry.artefact("one"), SHADOW)
    registry.promote("one", SHADOW, gate, **BY)
    revision = registry.revision()
    registry.promote("one", SHADOW, gate, **BY)  # the same command again
    assert registry.revision() == revision
    registry.withdraw("one", **BY)
    registry.withdraw("one", **BY)
    assert registry.revision() == revision + 1
    assert registry.register("one", tmp_path / "one", **BY).stage is ServingStage.CANDIDATE
    with pytest.raises(UserError, match="has promoted before"):
        registry.promote("one", SHADOW, gate, **BY)


def test_a_stage_holds_one_artefact(registry: Registry) -> None:
    bring(registry, "one", CANARY)
    with pytest.raises(UserError, match="one is in canary"):
        bring(registry, "two", CANARY)
    registry.withdraw("one", **BY)
    registry.promote("two", CANARY, passed(registry.artefact("two"), CANARY), **BY)
    assert registry.serving().canary == registry.artefact("two")


def test_a_rollback_returns_the_exact_former_artefact(registry: Registry) -> None:
    for version in ("one", "two", "three"):
        bring(registry, version, PRODUCTION)
    one = registry.artefact("one")
    assert registry.roll_back(**BY).version == "two"
    assert registry.artefact("three").stage is ServingStage.WITHDRAWN
    assert registry.roll_back(to_digest=one.digest, **BY).version == "one"
    revision = registry.revision()
    registry.roll_back(to_digest=one.digest, **BY)  # the same command again
    assert registry.revision() == revision
    with pytest.raises(UserError, match="no artefact was in production before one"):
        registry.roll_back(**BY)
    assert registry.roll_back(to_digest=registry.artefact("three").digest[:12], **BY).version == "three"


def test_a_rollback_goes_only_to_what_was_in_production(registry: Registry) -> None:
    with pytest.raises(UserError, match="nothing is in production"):
        registry.roll_back(**BY)
    bring(registry, "one", PRODUCTION)
    with pytest.raises(UserError, match="two has never been in production"):
        registry.roll_back(to_digest=registry.artefact("two").digest, **BY)
    with pytest.raises(UserError, match="one is in production"):
        registry.withdraw("one", **BY)


@pytest.mark.parametrize("damage", ["changed", "missing", "new", "gone"])
def test_changed_files_are_neither_promoted_nor_rolled_back_to(registry: Registry, tmp_path: Path, damage: str) -> None:
    bring(registry, "one", PRODUCTION)
    bring(registry, "two", PRODUCTION)
    folder = tmp_path / "one"
    if damage == "changed":
        (folder / "model.safetensors").write_text("onf")  # of the same length
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "new":
        (folder / "added.json").write_text("{}")
    else:
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not what was registered"):
        registry.roll_back(**BY)
    (tmp_path / "three" / "config.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"config\.json has other content"):
        registry.promote("three", SHADOW, passed(registry.artefact("three"), SHADOW), **BY)
    production = registry.serving().production
    assert production is not None
    assert production.version == "two"


def test_one_operation_key_is_one_command(registry: Registry) -> None:
    for version in ("one", "two", "three"):
        bring(registry, version, PRODUCTION)
    for _ in range(3):
        assert registry.roll_back(operation="monday", **BY).version == "two"
    with pytest.raises(UserError, match="the operation 'monday' was a rollback"):
        registry.withdraw("three", operation="monday", **BY)
    assert registry.roll_back(operation="tuesday", **BY).version == "one"


def test_registrations_are_one_to_one(registry: Registry, tmp_path: Path) -> None:
    revision = registry.revision()
    registry.register("one", tmp_path / "one", **BY)
    assert registry.revision() == revision
    with pytest.raises(UserError, match="one is another artefact"):
        registry.register("one", tmp_path / "two", **BY)
    with pytest.raises(UserError, match="registered as one"):
        registry.register("four", model(tmp_path / "copy", "one"), **BY)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, message in ((empty, "no weights"), (tmp_path / "none", "is no folder")):
        with pytest.raises(UserError, match=message):
            registry.register("five", folder, **BY)
    with pytest.raises(UserError, match="is no version"):
        registry.register("../five", tmp_path / "one", **BY)
    with pytest.raises(UserError, match="no why is given"):
        registry.withdraw("one", who="ann", why=" ")


STATEMENTS = {
    "update": "UPDATE audit SET who = 'eve' WHERE number = 1",
    "delete": "DELETE FROM audit WHERE number = 1",
    "replace": "INSERT OR REPLACE INTO audit SELECT number, time, 'eve', action, version, stage, replaces, why, gate, "
    "operation, detail, previous, hash FROM audit WHERE number = 1",
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_the_file_itself_refuses_to_change_its_audit(registry: Registry, statement: str) -> None:
    before = registry.audit()
    with sqlite3.connect(registry.path) as db, pytest.raises(sqlite3.IntegrityError, match="audit of a registry"):
        db.execute(statement)
    assert registry.audit() == before


EDITS = {
    "edited": "UPDATE audit SET who = 'eve' WHERE number = 2",
    "another reason": "UPDATE audit SET detail = '{}' WHERE number = 1",
    "removed": "DELETE FROM audit WHERE number = 2",
    "moved": "UPDATE audit SET number = number + 1 WHERE number = 3",
    "no JSON": "UPDATE audit SET detail = '{' WHERE number = 1",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_who_removes_the_triggers_breaks_the_chain(registry: Registry, edit: str) -> None:
    with sqlite3.connect(registry.path) as db:
        for name in ("audit_never_changes", "audit_never_shrinks", "audit_grows_at_its_end"):
            db.execute(f"DROP TRIGGER {name}")
        db.execute(edit)
    with pytest.raises(RegistryDamaged, match="does not fit the chain"):
        registry.serving()
    with pytest.raises(RegistryDamaged):
        Registry(registry.path)
    with pytest.raises(RegistryDamaged):
        registry.withdraw("one", **BY)


def test_other_files_are_no_registries(tmp_path: Path) -> None:
    text, database = tmp_path / "a.txt", tmp_path / "b.db"
    text.write_text("text")
    with sqlite3.connect(database) as db:
        db.execute("CREATE TABLE audit (number INTEGER)")
    for path, message in ((text, "no SQLite file"), (database, "another program"), (tmp_path / "none", "cannot be")):
        with pytest.raises(UserError, match=message):
            Registry(path)
    with pytest.raises(UserError, match="exists"):
        Registry.create(text)
    with pytest.raises(UserError, match="cannot be created"):
        Registry.create(tmp_path / "none" / "registry.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.db"]


def test_a_damaged_file_is_an_error_of_the_machinery(registry: Registry) -> None:
    path = registry.path
    registry.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(MachineryError, match="the registry .* cannot be read or written"):
        Registry(path)


def test_of_concurrent_promotions_to_one_stage_one_wins(registry: Registry) -> None:
    gates = [passed(registry.artefact(version), SHADOW) for version in ("one", "two", "three")]

    def promote(number: int) -> bool:
        with Registry(registry.path) as own:
            try:
                own.promote(("one", "two", "three")[number], SHADOW, gates[number], **BY)
            except UserError:
                return False
            return True

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(promote, range(3))) == 1
    assert registry.revision() == 4


def test_what_hashes_do_not_cover_is_refused(registry: Registry, tmp_path: Path) -> None:
    beside = model(tmp_path / "beside", "x")
    linked = model(tmp_path / "linked", "linked")
    (linked / "code").symlink_to(beside)
    with pytest.raises(UserError, match="code is a link to a folder"):
        registry.register("linked", linked, **BY)
    (linked / "code").unlink()
    (linked / "generation_config.json").symlink_to(beside / "config.json")
    registry.register("linked", linked, **BY)
    (beside / "config.json").write_text('{"changed": true}')
    with pytest.raises(UserError, match="generation_config.json has other content"):
        registry.verify("linked")
    (tmp_path / "one" / "code").symlink_to(beside)
    with pytest.raises(UserError, match="is not what was registered") as refusal:
        registry.verify("one")
    assert "code is a link to a folder" in refusal.value.why


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused_before_anything_is_written(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    before = registry.audit()
    model(tmp_path / "four", "four")
    (tmp_path / "four" / name).touch()
    with pytest.raises(UserError, match="four"):
        registry.register("four", tmp_path / "four", **BY)
    with pytest.raises(UserError, match="is not printable"):
        registry.register("five", model(tmp_path / name, "five"), **BY)
    assert registry.audit() == before


def test_a_reason_in_another_encoding_is_kept(registry: Registry) -> None:
    registry.withdraw("one", who="\udcff", why="caf\udce9", operation="\udcff")
    registry.withdraw("two", who="ann", why="again", operation="\udcff")  # the same key: nothing happens
    assert (registry.audit()[-1].why, registry.audit()[-1].version) == ("caf\\udce9", "one")
