"""What stages share: whose model is whose, and what is refused before anything is rebuilt."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from actors.session import Session
from rlhf.config.load import load_recipe
from rlhf.config.schema import RewardSourceConfig
from rlhf.errors import UserError
from rlhf.models.scratch import train_tokenizer
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
    with pytest.raises(UserError, match="another vocabulary") as caught:
        _ = starting_at(tmp_path).dpo_start
    assert "dpo.init" in caught.value.fix


def test_a_critic_reads_the_policys_tokens(session: Session, tmp_path: Path) -> None:
    """A reward model with another vocabulary scores by text, but a critic started from it would read nonsense."""
    foreign, own = tmp_path / "foreign", tmp_path / "own"
    train_tokenizer([], 258).save_pretrained(foreign)
    pair_tokenizer("bert").save_pretrained(tmp_path / "encoder")
    session.tokenizer.save_pretrained(own)
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
    with pytest.raises(UserError, match="another configuration"):
        _ = other.policy_start
    given = with_recipe(session, ppo=replace(session.recipe.ppo, policy_init="elsewhere"))
    assert given.policy_start == Path("elsewhere")
