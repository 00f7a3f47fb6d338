"""The controller's state survives JSON bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from rlhf.algorithms.moments import Moments
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import Recipe
from rlhf.data.order import OrderState
from rlhf.errors import UserError
from rlhf.evaluation.overoptimisation import HeldOutEvaluation, Watch
from rlhf.run_state import RunState, StageState, WatchState

EVALUATED = HeldOutEvaluation(step=4, reward=1 / 3, scores=(0.1, math.inf, -0.0))
STATE = RunState(
    step=7,
    order=OrderState(epoch=1, position=3),
    algorithm=AlgorithmState(kl_coef=0.1 / 3, scores=Moments(count=9, mean=math.pi, squares=1e-300)),
    watch=WatchState(
        watch=Watch(judgements=3, patience=1, best=EVALUATED, last=EVALUATED), rewards=(0.5,), stop="it fell"
    ),
    sizes={"metrics.jsonl": 123},
    set_aside=2,
    goodput={"useful": 1.5, "lost_by_kind": {"died": 0.25}},
    wandb_id="abc",
)


def through_a_file(state: RunState) -> RunState:
    return RunState.from_json(json.loads(json.dumps(state.to_json())))


def test_a_state_comes_back_as_it_was() -> None:
    assert through_a_file(STATE) == STATE
    start = RunState.start(Recipe(name="x"))
    assert through_a_file(start) == start
    assert (start.step, start.order, start.algorithm.kl_coef) == (0, OrderState(0, 0), 0.05)


def test_a_supervised_stage_s_state_comes_back_as_it_was_and_ignores_what_ppo_adds() -> None:
    state = StageState(step=7, sizes={"metrics.jsonl": 123}, goodput=STATE.goodput, wandb_id="abc")
    assert StageState.from_json(json.loads(json.dumps(state.to_json()))) == state
    assert StageState.from_json(json.loads(json.dumps(STATE.to_json()))) == state


def test_other_data_begins_an_epoch_of_prompts() -> None:
    assert STATE.with_other_data() == replace(STATE, order=OrderState(epoch=2, position=0))
    state = StageState(step=7)
    assert state.with_other_data() == state


def test_a_step_counts_its_further_rounds_of_sampling() -> None:
    after = replace(STATE, extra_rounds=4).after_step(OrderState(2, 0), STATE.algorithm, 5, rounds=3)
    assert (after.step, after.order, after.set_aside, after.extra_rounds) == (8, OrderState(2, 0), 5, 6)
    assert through_a_file(after) == after
    earlier = {key: value for key, value in STATE.to_json().items() if key != "extra_rounds"}
    assert RunState.from_json(earlier).extra_rounds == 0  # checkpoints of earlier versions have none


def test_a_missing_score_comes_back_as_missing() -> None:
    assert STATE.watch is not None
    evaluated = replace(EVALUATED, scores=(math.nan, 1.0))
    state = replace(STATE, watch=replace(STATE.watch, watch=replace(STATE.watch.watch, best=evaluated)))
    again = through_a_file(state).watch
    assert again is not None
    assert again.watch.best is not None
    assert again.watch.best.given == (1.0,)


@pytest.mark.parametrize(
    "damage", [{"step": "seven"}, {"order": None}, {"algorithm": {}}, {"watch": {"watch": 3}}, {"sizes": {"a": "b"}}]
)
def test_another_programs_state_is_refused_by_name(damage: dict[str, object]) -> None:
    with pytest.raises(UserError, match="state is not in this version's format") as caught:
        RunState.from_json({**STATE.to_json(), **damage})
    assert next(iter(damage)) in str(caught.value)
