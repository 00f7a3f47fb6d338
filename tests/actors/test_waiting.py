"""Tests of waits with a real Ray: failures are passed on and named, and every wait ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray

from actors.cluster import node_address
from actors.inspection import collect_heartbeats
from actors.pending import Pending
from actors.process import ProcessLocation
from actors.waiting import AnswerDeadlines, PhaseContext, wait
from actors.worker import HEARTBEAT, Worker, translate_failures
from rlhf.config.schema import (
    EarlyStopConfig,
    EndpointConfig,
    PlacementConfig,
    Recipe,
    RecoveryConfig,
    RewardSourceConfig,
)
from rlhf.errors import LostError, MachineryError, Stopped, UserError
from rlhf.recovery.diagnosis import Cause, named_cause

CONTEXT = PhaseContext(phase="update", step=7)


class Held:
    """What the worker holds in these tests."""

    def double(self, x: int) -> int:
        return 2 * x

    def users_mistake(self) -> None:
        raise UserError("the recipe is wrong", "because", "mend it")

    def bug(self) -> None:
        raise ZeroDivisionError("one by zero")

    def double_slowly(self, x: int) -> int:
        time.sleep(0.8)
        return 2 * x

    def die(self) -> None:
        os._exit(1)

    def hang(self) -> None:
        time.sleep(60)

    def lose_peer(self) -> None:
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4321")

    def fill_the_store(self) -> None:
        raise ray.exceptions.ObjectStoreFullError("no room for a chunk")

    def work(self, parts: int, then: float) -> str:
        """Complete a part each 0.4 s, and then none for a while."""
        from rlhf.progress import PROGRESS

        for _ in range(parts):
            time.sleep(0.4)
            PROGRESS.part_done()
        time.sleep(then)
        return "done"

    def device_error(self, name: str, text: str) -> None:
        import torch
        import torch.distributed

        kind = getattr(torch, name, None) or getattr(torch.distributed, name)
        raise kind(text)

    def lose_peer_for_a_bug(self) -> None:
        time.sleep(1)
        raise ZeroDivisionError("one by zero")

    def die_soon(self) -> None:
        time.sleep(1)
        os._exit(1)


def make_worker(name: str, log: Path) -> ray.actor.ActorHandle:
    return ray.remote(concurrency_groups={HEARTBEAT: 1})(Worker).options(num_cpus=0).remote(name, log)


@pytest.fixture
def worker(local_ray: None, tmp_path: Path) -> Iterator[ray.actor.ActorHandle]:
    """A worker that holds ``Held``."""
    actor = make_worker("policy rank 3", tmp_path / "log")
    ray.get(actor.build.remote(Held), timeout=60)
    yield actor
    ray.kill(actor)


def ask(worker: ray.actor.ActorHandle, method: str, *arguments: int, seconds: float = 30) -> list:  # type: ignore[type-arg]
    return wait([worker.call.remote(method, *arguments)], ["policy rank 3"], CONTEXT, deadlines(seconds))


def deadlines(seconds: float, check: Callable[[], None] = lambda: None) -> AnswerDeadlines:
    return AnswerDeadlines(Recipe(name="x", placement=PlacementConfig(phase_timeout_seconds=seconds)), check)


def test_values_come_in_the_order_of_the_references(worker: ray.actor.ActorHandle) -> None:
    refs = [worker.call.remote("double", x) for x in (1, 2, 3)]
    assert wait(refs, ["a", "b", "c"], CONTEXT, deadlines(30)) == [2, 4, 6]


def test_a_users_mistake_is_passed_on_whole(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(UserError) as caught:
        ask(worker, "users_mistake")
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("the recipe is wrong", "because", "mend it")


def test_a_bug_names_role_rank_node_process_and_what_it_did(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(
        MachineryError,
        match=r"policy rank 3 \(node 127\.0\.0\.1, process \d+\) failed in bug: ZeroDivisionError: one by",
    ):
        ask(worker, "bug")


def test_an_error_without_a_text_is_told_by_its_kind() -> None:
    where = ProcessLocation(name="policy rank 3", node="10.0.0.1", node_id="", process=7)
    said = "policy rank 3 .* failed in update: AssertionError: ;"
    with pytest.raises(MachineryError, match=said), translate_failures(where, "update"):
        raise AssertionError


def test_a_death_names_the_actor_and_the_moment(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(LostError, match="policy rank 3 died during update of step 7") as caught:
        ask(worker, "die")
    assert (caught.value.names, caught.value.kind) == (("policy rank 3",), "died")


def test_a_deadline_names_who_is_late(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(LostError, match="no answer within 1 s during update of step 7 from policy rank 3") as caught:
        ask(worker, "hang", seconds=1)
    assert (caught.value.names, caught.value.kind) == (("policy rank 3",), "stalled")


def test_a_worker_that_computes_says_what_it_is_doing(worker: ray.actor.ActorHandle) -> None:
    worker.call.remote("hang")
    while (beat := ray.get(worker.heartbeat.remote(), timeout=30)).activity != "hang":
        pass
    assert beat.seconds < 60 and (beat.parts, beat.idle_seconds) == (0, None)


def test_what_lost_a_peer_is_lost_itself(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(LostError, match="Connection closed by peer") as caught:
        ask(worker, "lose_peer")
    assert (caught.value.names, caught.value.kind) == (("policy rank 3",), "failed")


def test_what_ray_fails_an_actor_in_is_a_loss_of_that_actor(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(
        LostError, match="failed in fill_the_store: ObjectStoreFullError: no room for a chunk"
    ) as caught:
        ask(worker, "fill_the_store")
    assert (caught.value.names, caught.value.kind) == (("policy rank 3",), "failed")


def test_of_two_ranks_the_one_that_died_is_blamed(worker: ray.actor.ActorHandle, tmp_path: Path) -> None:
    """Even if the peer fails first, which only reports that another rank is gone."""
    other = make_worker("rank 4", tmp_path / "other")
    ray.get(other.build.remote(Held), timeout=60)
    refs = [worker.call.remote("lose_peer"), other.call.remote("die_soon")]
    with pytest.raises(LostError, match="rank 4 died") as caught:
        wait(refs, ["policy rank 3", "rank 4"], CONTEXT, deadlines(30))
    assert caught.value.names == ("rank 4",)


def test_of_two_ranks_the_one_with_the_bug_ends_the_run(worker: ray.actor.ActorHandle, tmp_path: Path) -> None:
    """Its peer is not replaced for having lost it."""
    other = make_worker("rank 4", tmp_path / "other")
    ray.get(other.build.remote(Held), timeout=60)
    refs = [worker.call.remote("lose_peer"), other.call.remote("lose_peer_for_a_bug")]
    with pytest.raises(MachineryError, match="ZeroDivisionError") as caught:
        wait(refs, ["policy rank 3", "rank 4"], CONTEXT, deadlines(30))
    assert not isinstance(caught.value, LostError)


DEVICE_ERRORS = {
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."): Cause.GPU_MEMORY,
    (
        "AcceleratorError",
        "CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA`",
    ): Cause.GPU_ECC,
    ("AcceleratorError", "CUDA error: an illegal memory access was encountered"): Cause.GPU_ACCESS,
    ("AcceleratorError", "CUDA error: device-side assert triggered"): Cause.GPU_ASSERT,
    ("DistBackendError", "NCCL error in: a.cpp:1, remote process exited or there was a network error"): Cause.NCCL,
    ("DistBackendError", "NCCL error in: a.cpp:1, unhandled system error (run with NCCL_DEBUG=INFO)"): Cause.NCCL,
}
"""Class of PyTorch and its text."""


def test_an_error_of_a_device_is_a_loss_of_the_process_that_is_told_by_its_cause(worker: ray.actor.ActorHandle) -> None:
    for (name, text), cause in DEVICE_ERRORS.items():
        with pytest.raises(LostError, match=f"failed in device_error: {name}: ") as caught:
            wait([worker.call.remote("device_error", name, text)], ["policy rank 3"], CONTEXT, deadlines(60))
        assert (caught.value.names, caught.value.kind) == (("policy rank 3",), "failed")
        assert named_cause(caught.value.message) is cause


def with_progress(worker: ray.actor.ActorHandle, limit: float) -> AnswerDeadlines:
    """Deadlines of a second, and of so many for an actor that makes progress."""

    def idle(names: Sequence[str]) -> dict[str, float]:
        beats = collect_heartbeats(dict.fromkeys(names, worker))
        return {name: beat.idle_seconds for name, beat in beats.items() if beat.idle_seconds is not None}

    recipe = Recipe(
        name="x",
        placement=PlacementConfig(phase_timeout_seconds=1.2),
        recovery=RecoveryConfig(progress_limit_seconds=limit),
    )
    return AnswerDeadlines(recipe, idle_seconds=idle)


def test_an_actor_that_completes_parts_is_not_late(worker: ray.actor.ActorHandle) -> None:
    """2.4 s in all, of 1.2 s; then 1.2 s are over without a part."""
    patient = with_progress(worker, limit=60)
    assert wait([worker.call.remote("work", 6, 0.0)], ["policy rank 3"], CONTEXT, patient) == ["done"]
    impatient, begin = with_progress(worker, limit=60), time.monotonic()
    with pytest.raises(LostError, match="no answer within 1 s") as caught:
        wait([worker.call.remote("work", 2, 20.0)], ["policy rank 3"], CONTEXT, impatient)
    assert caught.value.kind == "stalled" and 1.9 < time.monotonic() - begin < 12


def test_progress_extends_a_deadline_up_to_a_limit_and_other_work_not_at_all(worker: ray.actor.ActorHandle) -> None:
    # The abort first: the second call waits for the first one's end.
    for context, limit, least in ((CONTEXT.of("abort"), 60.0, 1.1), (CONTEXT, 2.0, 1.9)):
        begin = time.monotonic()
        with pytest.raises(LostError):
            wait([worker.call.remote("work", 20, 0.0)], ["policy rank 3"], context, with_progress(worker, limit))
        assert least < time.monotonic() - begin < 7.0


def test_a_wait_ends_when_the_run_is_to_stop(worker: ray.actor.ActorHandle) -> None:
    def stop() -> None:
        raise Stopped("SIGTERM")

    stopping = deadlines(60, stop)
    with stopping.undisturbed():
        assert wait([worker.call.remote("double", 2)], ["policy rank 3"], CONTEXT, stopping) == [4]
    with pytest.raises(Stopped):
        wait([worker.call.remote("hang")], ["policy rank 3"], CONTEXT, stopping)


def test_a_phase_that_has_been_fast_may_not_take_for_ever(worker: ray.actor.ActorHandle) -> None:
    quick = deadlines(1000)
    assert quick.seconds("policy rank 3", CONTEXT) == 1000
    wait([worker.call.remote("double", 2)], ["policy rank 3"], CONTEXT, quick)
    assert quick.seconds("policy rank 0", CONTEXT) == 120, "the floor, since twenty times a moment is less"
    assert quick.seconds("critic rank 0", CONTEXT) == 1000, "another role's update says nothing of its own"


def test_other_work_in_a_phase_teaches_nothing_of_how_long_the_phase_takes(worker: ray.actor.ActorHandle) -> None:
    quick = deadlines(1000)
    wait([worker.call.remote("double", 2)], ["policy rank 3"], CONTEXT.of("offload"), quick)
    assert quick.seconds("policy rank 3", CONTEXT) == 1000
    assert quick.seconds("policy rank 3", PhaseContext(phase="score").of("offload")) == 120, (
        "the same work in any phase"
    )
    assert quick.seconds("rollout engine 0", CONTEXT.of("abandon")) == 120, "it computes nothing: the floor at once"


def test_work_is_timed_from_its_begin_also_where_the_controller_waits_for_others(worker: ray.actor.ActorHandle) -> None:
    """Scores that are computed while responses are generated, for example."""
    learns = AnswerDeadlines(Recipe(name="x", recovery=RecoveryConfig(stall_floor_seconds=0.1, stall_factor=10.0)))
    pending = Pending({worker.call.remote("double_slowly", 2): "policy rank 3"})
    time.sleep(1.5)
    ref, name = learns.next_ready(pending, CONTEXT)
    learns.learn_duration(name, CONTEXT, is_sound=True)
    assert 8.0 <= learns.seconds(name, CONTEXT) < 14.0, "ten times 0.8 s"


def test_where_data_lies_decides_how_long_it_takes_and_nothing_is_learned(worker: ray.actor.ActorHandle) -> None:
    quick = deadlines(1000)
    for context in (
        PhaseContext(phase="restore"),
        PhaseContext(phase="restore").of("load"),
        PhaseContext(phase="load"),
    ):
        wait([worker.call.remote("double", 2)], ["policy rank 3"], context, quick)
        assert quick.seconds("policy rank 3", context) == 1000
    wait([worker.call.remote("double", 2)], ["policy rank 3"], PhaseContext(phase="restore").of("offload"), quick)
    assert quick.seconds("policy rank 3", PhaseContext(phase="restore").of("offload")) == 120


def test_a_failure_teaches_nothing_of_how_long_a_phase_takes(worker: ray.actor.ActorHandle) -> None:
    quick = deadlines(1000)
    with pytest.raises(LostError):
        wait([worker.call.remote("die")], ["policy rank 3"], CONTEXT, quick)
    assert quick.seconds("policy rank 3", CONTEXT) == 1000, "it died at once: what others take is not known"


def test_who_is_silent_is_late_however_much_others_say(worker: ray.actor.ActorHandle, tmp_path: Path) -> None:
    other = make_worker("rank 4", tmp_path / "other")
    ray.get(other.build.remote(Held), timeout=60)
    impatient, pending = deadlines(2), Pending({worker.call.remote("hang"): "policy rank 3"})

    def others_go_on() -> None:
        while True:
            answer = other.call.remote("double_slowly", 2)
            pending.add(answer, "rank 4")
            assert impatient.next_ready(pending, CONTEXT) == (answer, "rank 4")

    with pytest.raises(LostError, match="no answer within 2 s during update of step 7 from policy rank 3$") as caught:
        others_go_on()
    assert caught.value.names == ("policy rank 3",)


def test_who_answers_one_after_another_is_not_late(worker: ray.actor.ActorHandle) -> None:
    refs = [worker.call.remote("double_slowly", x) for x in range(4)]
    assert wait(refs, ["policy rank 3"] * 4, CONTEXT, deadlines(2)) == [0, 2, 4, 6], "3 s in all, of 2 s for each"


def test_own_ray_is_on_loopback(local_ray: None) -> None:
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    assert node_address() == "127.0.0.1"


def test_a_phase_that_asks_a_service_may_always_take_all_its_time() -> None:
    service = RewardSourceConfig(endpoint=EndpointConfig(url="http://127.0.0.1:9/score"))
    asks = Recipe(name="x", rewards={"b": service})
    watched = Recipe(name="x", early_stop=EarlyStopConfig(scorer=service))
    for recipe, limits in ((asks, (1800.0, 120.0, 120.0)), (watched, (120.0, 1800.0, 120.0))):
        deadlines = AnswerDeadlines(recipe)
        contexts = [PhaseContext(phase=phase) for phase in ("score", "judge", "update")]
        for context in contexts:
            deadlines.learned.took(context.work_of("judge rank 0"), 1.0)
        assert tuple(deadlines.seconds("judge rank 0", context) for context in contexts) == limits
        assert deadlines.seconds("judge rank 0", contexts[0].of("offload")) == 1800, "which has yet to be seen"
        deadlines.learned.took(contexts[0].of("offload").work_of("judge rank 0"), 1.0)
        assert deadlines.seconds("judge rank 0", contexts[0].of("offload")) == 120, "no service is asked for that"
