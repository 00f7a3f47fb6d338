"""Tests of the session: the models of stages, and refusals before anything is rebuilt."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from actors.pipeline import STAGES, run_stage
from actors.session import Session
from rlhf.checkpoints.manifest import write_files
from rlhf.checkpoints.store import CheckpointStore
from rlhf.config.load import load_recipe, to_yaml
from rlhf.config.schema import RewardSourceConfig
from rlhf.data.template import template_date
from rlhf.errors import UserError
from rlhf.feedback.items import make_item
from rlhf.feedback.records import Answer, Choice, Vote
from rlhf.feedback.store import Store
from rlhf.models.folder import load_tokenizer
from rlhf.models.scratch import train_tokenizer
from rlhf.records import Message
from rlhf.tracking.console import Console
from rlhf.tracking.run_folder import RunFolder
from tests.end_to_end.small import RECIPE, make_small_data, overrides
from tests.rlhf.tiny import tiny_model
from tests.rlhf.tiny_classifiers import pair_tokenizer


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session on small data, with its base model made."""
    folder = tmp_path_factory.mktemp("session")
    make_small_data(folder)
    made = Session(
        recipe=load_recipe(RECIPE, overrides(folder, "x")), console=Console(sys.stdout), device="cpu", gpus=0
    )
    assert (made.base / "model.safetensors").exists()
    return made


def with_recipe(session: Session, **changes: object) -> Session:
    return replace(session, recipe=replace(session.recipe, **changes))  # type: ignore[arg-type]


def test_base_is_made_again_only_when_what_it_is_made_from_changed(session: Session) -> None:
    weights = session.base / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert with_recipe(session).base == session.base
    assert weights.stat().st_mtime_ns == made
    narrower = replace(session.recipe.model.scratch, hidden_size=32, heads=1)  # type: ignore[type-var]
    changed = with_recipe(session, model=replace(session.recipe.model, scratch=narrower))
    assert changed.base == session.base and weights.stat().st_mtime_ns > made


def test_a_stage_without_its_predecessor_is_refused_with_the_right_key(session: Session) -> None:
    with pytest.raises(UserError) as caught:
        _ = session.policy_start
    assert "ppo.policy_init" in str(caught.value)


def test_dpo_without_a_start_is_refused_with_its_own_key_before_data_is_read(session: Session) -> None:
    with pytest.raises(UserError, match="dpo.init"):
        session.read_data("dpo")


def test_dpo_starts_from_what_the_recipe_names_if_its_vocabulary_is_the_runs(session: Session, tmp_path: Path) -> None:
    def starting_at(folder: Path) -> Session:
        return with_recipe(session, dpo=replace(session.recipe.dpo, init=str(folder)))

    assert starting_at(session.base).dpo_start == session.base
    train_tokenizer([], 258).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="another vocabulary") as caught:
        _ = starting_at(tmp_path).dpo_start
    assert "dpo.init" in caught.value.fix


def test_a_critic_reads_the_policys_tokens(session: Session, tmp_path: Path) -> None:
    """A reward model with another vocabulary scores by text, but a critic started from it would read nonsense."""
    foreign, own = tmp_path / "foreign", tmp_path / "own"
    train_tokenizer([], 258).save_pretrained(foreign)
    pair_tokenizer("bert").save_pretrained(tmp_path / "encoder")
    session.tokenizer.save_pretrained(own)
    for folder in (foreign, tmp_path / "encoder"):
        (folder / "model.safetensors").touch()
    tiny_model(AutoModelForSequenceClassification, "llama", num_labels=1).save_pretrained(own)
    policy = replace(session.recipe.ppo, policy_init=str(session.base))
    given = {"one": foreign, "encoder": tmp_path / "encoder", "two": own}
    models = {name: RewardSourceConfig(model=str(path)) for name, path in given.items()}
    assert with_recipe(session, ppo=policy, rewards=models).critic_start == own
    assert with_recipe(session, ppo=policy, rewards={"one": models["one"]}).critic_start == session.base
    named = with_recipe(session, ppo=replace(policy, critic_init=str(foreign)))
    with pytest.raises(UserError, match=r"ppo.critic_init = .* another vocabulary"):
        _ = named.critic_start


def test_a_finished_model_is_used_and_one_of_another_configuration_refused(session: Session) -> None:
    run = RunFolder.create(session.root, "sft", "", session.digest("sft"))
    with run.writing_model() as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").touch()
    with pytest.raises(UserError):
        _ = session.policy_start  # the model is there, but the stage is not finished
    run.finish({})
    assert session.policy_start == session.dpo_start == run.model
    other = with_recipe(session, sft=replace(session.recipe.sft, epochs=7))
    with pytest.raises(UserError, match=r"another configuration\n  why"):  # of which nothing more is known
        _ = other.policy_start
    run.config.write_text(to_yaml(session.recipe))
    with pytest.raises(UserError, match=r"another configuration:\n  sft.epochs: 1 then, 7 now\n"):
        _ = other.policy_start
    given = with_recipe(session, ppo=replace(session.recipe.ppo, policy_init="elsewhere"))
    assert given.policy_start == Path("elsewhere")
    less_memory = with_recipe(session, model=replace(session.recipe.model, gradient_checkpointing=True))
    assert less_memory.policy_start == run.model, "which is what a run that ran out of memory is advised to change"


def test_a_finished_model_whose_tokenizer_is_not_the_runs_is_refused(session: Session) -> None:
    """A scratch model's tokenizer is trained on the data, which may have changed since."""
    run = RunFolder.create(session.root, "sft", "", session.digest("sft"))
    with run.writing_model() as folder:
        (folder / "model.safetensors").touch()
        tiny_model(AutoModelForSequenceClassification, "llama", num_labels=1).config.save_pretrained(folder)
        train_tokenizer([], 258).save_pretrained(folder)
    run.finish({})
    with pytest.raises(UserError, match="has another vocabulary than"):
        session.read_data("ppo")
    session.tokenizer.save_pretrained(run.model)
    session.read_data("ppo")


def test_a_template_is_told_one_day_in_all_commands_of_a_run(session: Session, tmp_path: Path) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d %b') }}: {% for m in messages %}{{ m.content }}{% endfor %}")
    model = replace(session.recipe.model, chat_template=str(template))
    recipe = replace(session.recipe, model=model, runs_dir=str(tmp_path))

    def on(day: int) -> Session:
        return replace(session, recipe=recipe, today=lambda: date(2026, 2, day))

    def told(command: Session) -> str:
        return command.chat.prompt((Message("user", "hi"),), {}).prompt

    first = on(3)
    assert told(first) == "03 Feb: hi"
    assert told(on(4)) == "04 Feb: hi", "nothing was kept: the first command has begun nothing"
    run = RunFolder(first.root, "sft")
    run.path.mkdir(parents=True)
    first.report_data(first.demonstrations, run)
    assert told(on(4)) == "03 Feb: hi"
    saved = tmp_path / "saved"
    first.tokenizer.save_pretrained(saved)
    assert template_date(load_tokenizer(saved, replace(model, scratch=None))) == date(2026, 2, 3)


def test_the_data_and_the_engine_have_one_set_of_end_tokens(session: Session, tmp_path: Path) -> None:
    """End tokens in another model folder's settings are added once."""
    tokenizer = session.tokenizer
    assert session.chat.ends == {tokenizer.eos_token_id} == set(session.end_tokens(session.base))
    shutil.copytree(session.base, tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokenizer.eos_token_id, 7]})
    )
    assert session.end_tokens(tmp_path / "other") == sorted([tokenizer.eos_token_id, 7])


def with_data(session: Session, name: str, **files: Path) -> Session:
    """A session of a new run that reads these files, and has the same base model."""
    policy = replace(session.recipe.ppo, policy_init=str(session.base))
    return with_recipe(
        session, name=name, data=replace(session.recipe.data, **{k: str(v) for k, v in files.items()}), ppo=policy
    )


def accepting(session: Session) -> Session:
    return with_recipe(session, checkpoint=replace(session.recipe.checkpoint, changed_data="accept"))


def copied(session: Session, kind: str, folder: Path) -> tuple[Path, list[str]]:
    """A copy of one of the session's data files, and its lines."""
    lines = Path(getattr(session.recipe.data, kind)).read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl", lines


def test_a_finished_stage_is_skipped_with_its_own_data_only(session: Session, tmp_path: Path) -> None:
    file, lines = copied(session, "demonstrations", tmp_path)
    run = with_data(session, "finished", demonstrations=file)
    done = RunFolder.create(run.root, "sft", "", run.digest("sft"), run.files_of("sft"))
    done.finish({})
    with_recipe(run).read_data("sft")
    file.write_text("".join(lines[:-1]))
    with pytest.raises(
        UserError, match=r"finished sft stage in .* was made with other data:\n.*rows\.jsonl has other"
    ) as caught:
        with_recipe(run).read_data("sft")
    assert f"{len(lines)} rows then, {len(lines) - 1} rows now" in caught.value.what
    accepting(run).read_data("sft")


def test_a_stage_puts_down_what_it_read(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage as the command does, with a fake training function."""
    monkeypatch.setitem(STAGES, "sft", lambda session, run, tracker: {"rows": len(session.demonstrations.train)})
    file, lines = copied(session, "demonstrations", tmp_path)
    run = with_data(session, "whole", demonstrations=file)
    first = run_stage(run, "sft")
    [kept] = RunFolder(run.root, "sft").finished_data() or ()
    assert (kept.file, kept.rows) == (str(file), len(lines))
    assert run_stage(with_recipe(run), "sft")["rows"] == first["rows"]


def test_a_renamed_file_and_a_stage_from_before_are_gone_on_with(session: Session, tmp_path: Path) -> None:
    file, lines = copied(session, "demonstrations", tmp_path)
    run = with_data(session, "renamed", demonstrations=file)
    RunFolder.create(run.root, "sft", to_yaml(run.recipe), run.digest("sft"), run.files_of("sft")).finish({})
    file.rename(tmp_path / "moved.jsonl")
    moved = with_data(session, "renamed", demonstrations=tmp_path / "moved.jsonl")
    moved.read_data("sft")
    with pytest.raises(UserError, match="another configuration"):
        with_recipe(moved, data=replace(moved.recipe.data, max_response_length=7)).read_data("sft")
    old = with_data(session, "before", demonstrations=tmp_path / "moved.jsonl")
    RunFolder.create(old.root, "sft", "", old.digest("sft")).finish({})
    (tmp_path / "moved.jsonl").write_text("".join(lines[1:]))
    with_recipe(old).read_data("sft")


def test_a_checkpoint_goes_on_with_its_own_prompts_only(session: Session, tmp_path: Path) -> None:
    file, lines = copied(session, "prompts", tmp_path)
    run = with_data(session, "resumed", prompts=file)
    folder = RunFolder(run.root, "ppo").checkpoints
    store = CheckpointStore(folder, 1, 0, run.files_of("ppo"))
    store.commit(3, write_files({}, store.begin(3)), {"step": 3}, to_yaml(run.recipe), None)
    with_recipe(run).read_data("ppo")
    file.write_text("".join([*lines, '{"prompt": "one more"}\n']))
    with pytest.raises(UserError, match=r"step_3 was made with other data") as caught:
        with_recipe(run).read_data("ppo")
    assert f"{len(lines)} rows then, {len(lines) + 1} rows now" in caught.value.what
    accepting(run).read_data("ppo")


def test_a_damaged_record_is_refused_before_a_stage_resumes(session: Session, tmp_path: Path) -> None:
    file, _ = copied(session, "prompts", tmp_path)
    run = with_data(session, "damaged-record", prompts=file)
    found = RunFolder(run.root, "ppo")
    store = CheckpointStore(found.checkpoints, 1, 0, run.files_of("ppo"))
    state = {"step": 3, "sizes": {"metrics.jsonl": 11, "samples.jsonl": 0}}
    store.commit(3, write_files({}, store.begin(3)), state, to_yaml(run.recipe), None)
    found.metrics.write_text('{"step":0}\n{"step":1, "torn')
    with_recipe(run).read_data("ppo")
    found.before.mkdir()
    with pytest.raises(UserError, match=r"before\.json is a folder"):
        with_recipe(run).read_data("ppo")
    found.before.rmdir()
    found.before.write_text("[3]")
    with pytest.raises(UserError, match=r"before\.json holds something else than texts"):
        with_recipe(run).read_data("ppo")
    found.before.unlink()
    found.metrics.write_text('{"step":x}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl has no JSON object in line 1"):
        with_recipe(run).read_data("ppo")


def test_in_a_cluster_the_nodes_read_a_checkpoint_before_the_run_is_changed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process looks at sizes alone; the refusal is the same."""
    place = replace(session.recipe.placement, ray_address="10.0.0.1:6379")
    run = with_recipe(session, name="cluster", placement=place)
    folder = RunFolder(run.root, "ppo").checkpoints
    store = CheckpointStore(folder, 1, 0, run.files_of("ppo"))
    entries = write_files({"policy/rank_0.pt": np.arange(9)}, store.begin(3))
    state = {"step": 3, "sizes": {"metrics.jsonl": 0, "samples.jsonl": 0}}
    checkpoint = store.commit(3, entries, state, to_yaml(run.recipe), None)
    (checkpoint.path / "policy" / "rank_0.pt").write_bytes(np.arange(1, 10).tobytes())
    metrics = RunFolder(run.root, "ppo").metrics
    metrics.write_text("{}\n")
    with_recipe(run).read_data("ppo")
    monkeypatch.setattr("actors.pipeline.verify_on_nodes", lambda checkpoint, *_: checkpoint.verify())
    for read in (
        lambda: run_stage(with_recipe(run), "ppo"),
        lambda: with_recipe(run, placement=replace(place, ray_address=None)).read_data("ppo"),
    ):
        with pytest.raises(UserError, match="policy/rank_0.pt has other content than was written"):
            read()
        assert metrics.read_text() == "{}\n", "nothing was cut off"
    (checkpoint.path / "policy" / "rank_0.pt").unlink()
    with pytest.raises(UserError, match="policy/rank_0.pt is missing"):
        with_recipe(run).read_data("ppo")


def test_a_chat_template_is_part_of_the_data(session: Session, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    model = replace(session.recipe.model, chat_template=str(template))
    run = with_recipe(with_data(session, "templated"), model=model)
    before = run.files_of("ppo")
    template.write_text("{{ messages[0].content }}\n")
    assert len(before) == 2 and before[0] == run.files_of("ppo")[0] and before[1] != run.files_of("ppo")[1]


def test_an_engine_holds_a_prompt_and_the_longest_response_that_it_writes(session: Session) -> None:
    """PPO's responses may be longer or shorter than those of the data; no sequence is longer than the context."""

    def longest(response: int) -> int:
        return with_recipe(session, rollout=replace(session.recipe.rollout, max_response_length=response)).longest

    assert longest(7) - longest(3) == 4
    assert longest(10**6) == session.facts.context


def test_a_changed_model_of_a_finished_stage_is_refused_where_it_is_used(session: Session, tmp_path: Path) -> None:
    """Each use refuses it: skipping the stage, starting from it, and naming its folder. It is read once per command."""
    run = with_recipe(session, name="changed")
    done = RunFolder.create(run.root, "sft", to_yaml(run.recipe), run.digest("sft"))
    with done.writing_model() as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        session.tokenizer.save_pretrained(folder)
    done.finish({})
    known = with_recipe(run)
    assert known.policy_start == done.model
    (done.model / "model.safetensors").write_bytes(b"weighty")
    assert known.policy_start == done.model, "it was verified, and is not read again"
    named = replace(run.recipe.ppo, policy_init=str(done.model))
    for use in (
        lambda: with_recipe(run).policy_start,
        lambda: with_recipe(run).dpo_start,
        lambda: with_recipe(run).read_data("sft"),
        lambda: with_recipe(run, ppo=named).policy_start,
        lambda: with_recipe(run, model=replace(run.recipe.model, path=str(done.model), scratch=None)).base,
        lambda: with_recipe(run, ppo=replace(run.recipe.ppo, critic_init=str(done.model))).critic_start,
    ):
        with pytest.raises(UserError, match=r"model\.safetensors has other content than was written"):
            use()
    copy = tmp_path / "copy"
    shutil.copytree(done.model, copy)
    given = with_recipe(run, ppo=replace(run.recipe.ppo, policy_init=str(copy)))
    assert given.policy_start == copy, "the fix that the message names"


def test_a_pipeline_does_not_read_a_model_that_it_wrote(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(session: Session, run: RunFolder, tracker: object) -> dict[str, float | str]:
        with run.writing_model() as folder:
            (folder / "model.safetensors").touch()
        return {}

    monkeypatch.setitem(STAGES, "sft", train)
    run = with_recipe(session, name="written")
    run_stage(run, "sft")
    monkeypatch.setattr(RunFolder, "verify_model", lambda run: pytest.fail("read again"))
    assert run.policy_start == RunFolder(run.root, "sft").model


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("base", Path.touch, "base is a file"),
        ("base.partial", Path.touch, "base.partial is a file"),
        ("base/made-from", lambda path: path.write_bytes(b"\xff"), "made-from is not UTF-8"),
        ("base/made-from", Path.mkdir, "made-from cannot be read: Is a directory"),
        ("chat_template_date", lambda path: path.write_bytes(b"\xff"), "chat_template_date is not UTF-8"),
        ("chat_template_date", lambda path: path.write_text("soon"), "chat_template_date holds 'soon' and no date"),
        ("chat_template_date", lambda path: path.write_text(""), "chat_template_date holds '' and no date"),
        ("chat_template_date", Path.mkdir, "chat_template_date cannot be read: Is a directory"),
        ("sft/metrics.jsonl", Path.mkdir, r"metrics\.jsonl is a folder"),
        ("sft/checkpoints", Path.touch, "checkpoints is a file"),
        ("sft/done.json", Path.mkdir, r"done\.json cannot be read: Is a directory"),
        ("chat_template_date", lambda path: path.write_text("2026-02-03\n"), ""),
    ],
)
def test_damaged_files_of_a_run_are_named(
    session: Session, tmp_path: Path, name: str, make: Callable[[Path], object], what: str
) -> None:
    run = with_recipe(session, runs_dir=str(tmp_path))
    path = run.root / name
    path.parent.mkdir(parents=True)
    make(path)

    def use() -> object:
        found = (run.day, run.digest("sft"), run.base)
        run.read_data("sft")
        return found

    if not what:
        assert use()[0] == date(2026, 2, 3)  # type: ignore[index]
        return
    with pytest.raises(UserError, match=what) as caught:
        use()
    assert str(run.root) in caught.value.what and caught.value.fix
    assert path.exists(), "nothing was removed"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda base: (base / "model.safetensors").write_bytes(b"cut"), r"model\.safetensors has 3 of \d+ bytes"),
        (lambda base: (base / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda base: (base / "hashes.json").write_text("{"), r"hashes\.json is not JSON"),
        (lambda base: (base / "hashes.json").write_text("[3]"), r"hashes\.json does not list"),
        (lambda base: (base / "hashes.json").unlink(), ""),  # of an earlier version
    ],
)
def test_a_changed_initial_model_is_refused(
    session: Session, tmp_path: Path, change: Callable[[Path], object], what: str
) -> None:
    shutil.copytree(session.base, tmp_path / session.recipe.name / "base")
    run = with_recipe(session, runs_dir=str(tmp_path))
    assert run.base == tmp_path / session.recipe.name / "base"
    change(run.base)
    if not what:
        assert with_recipe(run).base == run.base
        return
    with pytest.raises(UserError, match=what) as caught:
        _ = with_recipe(run).base
    assert f"delete the folder {run.base}" in caught.value.fix


def test_preferences_are_read_from_a_feedback_project(session: Session, tmp_path: Path) -> None:
    items = [make_item(f"Question {i}?", (Answer(text=" yes"), Answer(text=" no"))) for i in range(8)]
    with Store.create(tmp_path / "votes.db") as store:
        store.add_rater("ann")
        store.add_rater("bo")
        store.add_items(items)
        store.import_votes([Vote(id=f"a{i.id}", item=i.id, rater="ann", choice=Choice.FIRST_MUCH) for i in items])

    def reading() -> Session:
        data = replace(session.recipe.data, preferences=str(tmp_path / "votes.db"), aggregation="majority")
        return with_recipe(session, data=data)

    before = reading()
    pairs = [*before.preferences.train, *before.preferences.held_out]
    assert len(pairs) == 8 and {pair.margin for pair in pairs} == {1.0}
    assert {session.tokenizer.decode(pair.chosen, skip_special_tokens=True) for pair in pairs} == {" yes"}
    assert "8 votes of 1 rater" in before.preferences.report
    assert str(tmp_path / "votes.db") in [file.file for file in before.files_of("dpo")]
    with Store.open(tmp_path / "votes.db") as store:
        store.import_votes([Vote(id="b", item=items[0].id, rater="bo", choice=Choice.SECOND_MUCH)])
    assert reading().files_of("dpo") != before.files_of("dpo")
    other = with_recipe(session, data=replace(before.recipe.data, aggregation="bradley_terry"))
    assert other.digest("dpo") != before.digest("dpo")
