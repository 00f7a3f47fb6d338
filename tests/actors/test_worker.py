"""Tests of what a worker's results cost the controller, which owns them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.experimental import get_object_locations

from actors.cluster import worker_environment
from actors.process import ProcessLocation
from actors.waiting import AnswerDeadlines, PhaseContext, fetch
from actors.worker import HEARTBEAT, Worker, translate_failures
from rlhf.config.schema import Recipe
from rlhf.errors import LostError, MachineryError, RLHFError, UserError
from rlhf.roles.block_result import BlockResult
from rlhf.types import RolloutBlock
from tests.actors.test_blocks import BLOCK

CONTEXT = PhaseContext(phase="score", step=2)


class Role:
    """Scores a sample by its prompt, beside a thousand numbers that no other part of this test needs."""

    def scores(self, block: RolloutBlock) -> BlockResult:
        return BlockResult(samples=block.prompt_ids, values=np.zeros(1000, dtype=np.float32))


def first_values(prefix: str, values: list[Any]) -> list[str]:
    return [f"{prefix} {value.samples.tolist()}" for value in values]


@pytest.fixture
def worker(local_ray: None, tmp_path: Path) -> Iterator[Any]:
    """A worker with the environment of a run's actors."""
    environment = {"env_vars": worker_environment(1, own_ray=True)}
    make = ray.remote(num_cpus=0, concurrency_groups={HEARTBEAT: 1}, runtime_env=environment)(Worker)
    actor = make.remote("reward rank 0", tmp_path / "log")
    ray.get(actor.build.remote(Role), timeout=60)
    yield actor
    ray.kill(actor)


def score(worker: Any) -> tuple[ray.ObjectRef, ray.ObjectRef]:
    """The result of a unit of two blocks, and its marker, which is ready."""
    result, marker = worker.score.options(num_returns=2).remote("scores", ray.put(BLOCK), ray.put(BLOCK))
    ray.get(marker, timeout=60)
    return result, marker


def test_results_stay_in_the_object_store_and_outlive_the_actor(worker: Any) -> None:
    result, marker = score(worker)
    end = time.monotonic() + 60
    while not (places := get_object_locations([result])[result]["node_ids"]) and time.monotonic() < end:
        time.sleep(0.05)  # the store tells the owner later
    assert len(places) == 1, "not in the controller's own memory"
    assert get_object_locations([marker])[marker]["node_ids"] == [], "small enough to come with the message"
    ray.kill(worker)
    ids = BLOCK.prompt_ids.tolist()
    assert ray.get(result, timeout=60).samples.tolist() == ids * 2, "the blocks one after another"


def test_many_values_reach_a_function_as_one_argument(worker: Any) -> None:
    refs, ids = [score(worker)[0] for _ in range(3)], BLOCK.prompt_ids.tolist()
    found = ray.get(worker.run_on_values.remote(first_values, refs, "of"), timeout=60)
    assert found == [f"of {ids * 2}"] * 3


@pytest.mark.parametrize(
    "fails", [ray.exceptions.ObjectLostError("ab" * 28, None, ""), ray.exceptions.OwnerDiedError("ab" * 28, None, "")]
)
def test_a_lost_value_is_no_failure_of_the_worker_that_reads_it(worker: Any, fails: Exception) -> None:
    def is_lost() -> None:
        raise fails

    value = ray.remote(num_cpus=0, max_retries=0)(is_lost).remote()
    task = worker.run_on_values.remote(first_values, [value], "of")
    with pytest.raises(LostError, match="lost, during score of step 2") as caught:
        fetch(task, "reward rank 0", CONTEXT, AnswerDeadlines(Recipe(name="x")))
    assert caught.value.names == ()


class UserFailure(Role):
    """A role whose scores end with a user's error of any text."""

    def scores(self, block: RolloutBlock) -> BlockResult:
        try:
            raise ValueError("no number in \ud83d")
        except ValueError as error:
            raise UserError("scorer x failed", f"{error}", "correct it") from error

    def fails(self) -> None:
        raise ValueError("no number in \ud83d")


@pytest.mark.parametrize(("method", "kind"), [("scores", UserError), ("fails", MachineryError)])
def test_an_error_with_text_that_utf8_lacks_does_not_end_the_process(method: str, kind: type[RLHFError]) -> None:
    where = ProcessLocation(name="reward rank 0", node="10.0.0.1", node_id="n", process=1)
    with pytest.raises(kind) as caught, translate_failures(where, method):
        getattr(UserFailure(), method)(*(BLOCK,) * (method == "scores"))
    shown = "".join(traceback.format_exception(caught.value))  # which Ray sends
    assert shown.encode() and "no number in \\ud83d" in shown
