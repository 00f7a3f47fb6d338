"""The table of docs/models.md: ``python -m tests.models_page`` measures it anew and writes it into the page.

For every small model of ``tests/architectures.py``: what it computes here against plain PyTorch, then a real training
step, a real publish to a real engine, the comparison of the engine's weights with the trainer's, and that of their
log-probabilities.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- table: python -m tests.models_page -->\n", "<!-- end of the table -->\n"
HEAD = "| model | sequences | log-probabilities | gradient | adapters | vLLM: weights | vLLM: log-probabilities |\n"
DEADLINE_SECONDS = 240.0
PROMPTS, LENGTH = 4, 16


@dataclass(frozen=True, kw_only=True)
class Published:
    """What an engine holds after a training step's publish: the ``gap`` is a mean in nats; ``why`` not, if so."""

    differences: tuple[str, ...] = ()
    gap: float = float("nan")
    why: str = ""


def serve(folder: str, pipe: Connection) -> None:
    """In a process of its own: an engine that does what it is told by the trainer."""
    try:
        asyncio.run(_serve(folder, pipe))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(error if isinstance(error, RuntimeError) else RuntimeError(f"{type(error).__name__}: {error}"))


async def _serve(folder: str, pipe: Connection) -> None:
    from rlhf.config.schema import ModelConfig, RolloutConfig
    from rlhf.generation.engine import RolloutEngine
    from rlhf.types import Prompt

    config = RolloutConfig(max_response_length=LENGTH, enforce_eager=True, temperature=0.7)
    engine = RolloutEngine(folder, ModelConfig(), config, "cpu", 128, [1], "shared_memory")

    async def generate(prompts: list[tuple[int, ...]]) -> Any:
        asked = [Prompt(id=i, tokens=tokens) for i, tokens in enumerate(prompts)]
        answers = [answer async for answer in engine.generate(asked, range(len(asked)))]
        return [(a.position, a.rollout.tokens, a.rollout.logprobs, a.fault) for a in answers]

    await engine.prepare_workers()
    calls: dict[str, Callable[..., Any]] = {
        "generate": generate,
        "held_fingerprint": engine.held_fingerprint,
        "serve": engine.serve,
        "init_weight_transfer_engine": engine.connect,
        "start_weight_update": engine.start_update,
        "update_weights": engine.update,
        "finish_weight_update": engine.finish_update,
    }
    pipe.send("ready")
    while (call := await asyncio.to_thread(pipe.recv)) is not None:
        name, arguments = call
        pipe.send(await calls[name](*arguments))
    engine.stop()


class PipeClient:
    """vLLM's ``VLLMWeightSyncClient`` for an engine at the other end of a pipe."""

    seconds, left_out = DEADLINE_SECONDS, {}  # type: ignore[var-annotated]

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call the engine, and wait."""
        self.pipe.send((name, arguments))
        return self.answer()

    def answer(self) -> Any:
        """What the engine says next."""
        if not self.pipe.poll(DEADLINE_SECONDS):
            raise TimeoutError(f"the engine said nothing for {DEADLINE_SECONDS:.0f} s")
        found = self.pipe.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing has to be agreed on."""
        self.ask("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        """Open an update."""
        self.ask("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Give one chunk."""
        self.ask("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update."""
        self.ask("finish_weight_update")


def train_and_publish(rank: Any, name: str, folder: str, pipe: Connection) -> Published:
    """One update that moves every weight, a publish, its verification, and answers compared."""
    import torch

    from rlhf.config.schema import ModelConfig, OptimizerConfig, RoleConfig
    from rlhf.models.load import load_policy
    from rlhf.models.packed_row import pack_row
    from rlhf.models.policy import PolicyNet
    from rlhf.types import Sequences
    from rlhf.weights.fingerprint import differences
    from rlhf.weights.sender import make_sender
    from rlhf.zero.engine import ZeroEngine
    from rlhf.zero.process_group import join
    from rlhf.zero.source import ZeroSource
    from tests.architectures import VOCABULARY, examined

    place = join(rank)
    net = PolicyNet(load_policy(folder, ModelConfig(), 0))
    examined(net)
    optimizer = OptimizerConfig(lr=0.01, schedule="constant")
    engine = ZeroEngine(net, RoleConfig(), "float32", rank, place, optimizer, 1)
    random = np.random.default_rng(0)
    prompts = [tuple(int(t) for t in random.integers(2, VOCABULARY, 8)) for _ in range(PROMPTS)]
    taught = Sequences.pack((prompt, random.integers(2, VOCABULARY, 30).astype(np.int32)) for prompt in prompts)
    engine.update([taught], lambda s: -engine.engine(pack_row(s, range(PROMPTS), place), 0.7)[0].sum(), 120)
    client = PipeClient(pipe)
    client.answer()  # it is ready
    source = ZeroSource(engine, net.lm, torch.float32)
    sent_to: Any = client
    make_sender("shared_memory", 0, 1, sent_to, source, "", 0).send_weights()
    held = client.ask("held_fingerprint")
    client.ask("serve", 1)
    answers = client.ask("generate", prompts)
    faults = [fault for *_, fault in answers if fault]
    if faults:
        return Published(why=faults[0])
    answered = Sequences.pack((prompts[i], tokens) for i, tokens, _, _ in answers)
    ours = engine.forward(pack_row(answered, range(len(answers)), place), 0.7)[0].numpy()
    theirs = np.concatenate([logprobs for _, _, logprobs, _ in answers])
    return Published(differences=tuple(differences(source.fingerprint, held)), gap=float(np.abs(ours - theirs).mean()))


def publish(name: str, folder: Path, trainer: ProcessPoolExecutor, rank: Any) -> Published:
    """Start an engine for the model, and have the trainer send to it."""
    from tests.architectures import small_model

    small_model(name).save_pretrained(folder)
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    engine = context.Process(target=serve, args=(str(folder), theirs))
    engine.start()
    try:
        return trainer.submit(train_and_publish, rank, name, str(folder), ours).result(2 * DEADLINE_SECONDS)
    except Exception as error:
        return Published(why=" ".join(str(error).split())[:160])
    finally:
        engine.kill()


def measure(names: list[str]) -> list[str]:
    """A row of the table for each model."""
    import os

    from rlhf.config.schema import RolloutConfig
    from rlhf.device import engine_environment
    from rlhf.zero.process_group import Rank
    from tests.architectures import compare
    from tests.rlhf.models.test_architectures import sequences

    os.environ.update(engine_environment("cpu", RolloutConfig(enforce_eager=True), None))
    multiprocessing.get_context("forkserver").set_forkserver_preload(["rlhf.generation.engine", "transformers"])
    rows = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        meeting = (Path(folder) / "meeting").as_uri()
        rank = Rank(rank=0, world=1, rendezvous=meeting, device="cpu", threads=1, timeout_seconds=60.0)
        for name in names:
            found = compare(name, sequences())
            sent = publish(name, Path(folder) / "model", pool, rank)
            form = {"packed": "packed", "padded": "a row each"}[found.examination.form]
            numbers = (f"{value:.0e}" for value in (found.logprobs, found.gradient, found.adapted))
            proof = "equal" if not sent.differences else f"not proven: {', '.join(sent.differences[:3])}"
            engine = [proof, f"{sent.gap:.0e}"] if not sent.why else [f"not served: {sent.why}", ""]
            rows.append("| " + " | ".join([name, form, *numbers, *engine]) + " |\n")
            print(rows[-1], end="", flush=True)
    return rows


def main() -> None:
    """Measure the models named on the command line, or all, and write the table."""
    from tests.architectures import CONFIGS

    rows = measure(sys.argv[1:] or list(CONFIGS))
    if not sys.argv[1:]:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        table = [BEGIN, HEAD, "|---" * 7 + "|\n", *rows]
        PAGE.write_text("".join([before, *table, END, rest.partition(END)[2]]), encoding="utf-8")


if __name__ == "__main__":
    main()
