"""Snapshots of one trained network. Training resumes bit for bit with the same number of ranks and ZeRO stage.

A snapshot is a DeepSpeed checkpoint with two additional files: ``topology.json`` describes the model and its sharding,
``rank_<r>.pt`` holds the state of one process. Ranks may run on different hosts: each writes to its own folder, and the
files of all ranks together form a checkpoint. ``reshape.py`` loads one at another number of ranks or another stage.

Of frozen weights only a fingerprint is saved, because they are loaded when the network is built.

Security: DeepSpeed's files are pickles. Callers must pass only files that this run wrote, after verifying their hashes.
"""

from __future__ import annotations

import json
import logging
import math
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rlhf.errors import UserError
from rlhf.recovery.leftovers import prefix, roomy_folder
from rlhf.weights.fingerprint import differences
from rlhf.zero.engine import ZeroEngine, full_shape
from rlhf.zero.file_segments import Files, MemoryFiles, Segments, file_bytes, save_to_segments, write_segments
from rlhf.zero.reshape import Saved, load_reshaped

TOPOLOGY = "topology.json"
FORMAT = 1
BYTES_PER_WEIGHT = 16
"""Largest size of all ranks' files per weight: weight, master copy and Adam's two averages, in float32."""
OWN = re.compile(r"zero_pp_rank_\d+_|^rank_\d+\.pt$")
"""Names of files that only the rank reads which saved them."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The model of a snapshot and how it is sharded; the content of ``topology.json``."""

    format: int
    world: int
    stage: int
    dtype: str
    parameters: Mapping[str, list[int]]
    """Name of each parameter → full shape."""
    frozen: Mapping[str, int]
    """Fingerprint of the frozen parameters."""
    split: int = 1
    """Tensor-parallel size."""

    @classmethod
    def of(cls, engine: ZeroEngine) -> Self:
        """The topology of an engine (collective under ZeRO-3)."""
        return cls(
            format=FORMAT,
            world=engine.world,
            stage=engine.stage,
            dtype=engine.dtype,
            parameters={name: list(full_shape(p)) for name, p in engine.network.named_parameters()},
            frozen=engine.frozen_fingerprint,
            split=engine.tensor_ranks,
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse the content of ``topology.json``.

        Raises:
            UserError: another version of this project wrote it.
        """
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise UserError(
                f"a checkpoint of format {found['format']}",
                f"this version reads format {FORMAT}",
                "resume with the version that wrote it, or start a new run",
            )
        return cls(**found)

    def fits(self, engine: Topology) -> bool:
        """Whether DeepSpeed can load the files unchanged; at stage 0, where all ranks hold all state, for any world."""
        same = self.stage == engine.stage and self.split == engine.split
        return same and (self.world == engine.world or self.stage == 0)


def snapshot(engine: ZeroEngine) -> Files:
    """This rank's files: weights, optimizer, schedule, counters, random states (collective).

    State in host memory is not copied: copy or write the files before the next update. Ray copies what a task returns.
    """
    memory = MemoryFiles()
    with engine.offloader.on_host(), _in_memory(memory, engine.engine):
        topology = Topology.of(engine)
        engine.engine.save_checkpoint("memory", tag="files", save_latest=False, exclude_frozen_parameters=True)
    files = {**memory.files, f"rank_{engine.rank}.pt": save_to_segments(_process_state(engine))}
    if engine.rank == 0:
        files[TOPOLOGY] = (np.frombuffer(json.dumps(asdict(topology)).encode(), np.uint8),)
    return files


def divide(files: Files) -> tuple[Files, Files]:
    """Divide a rank's files into those that it alone reads again, and those that all ranks of its group read.

    The latter are few, and only the ``ranks_with_shared_files`` have any.
    """
    own = {name: content for name, content in files.items() if OWN.search(name)}
    return own, {name: content for name, content in files.items() if name not in own}


@contextmanager
def _in_memory(memory: MemoryFiles, engine: Any) -> Iterator[None]:
    """Context in which DeepSpeed saves to and loads from memory, without adding its conversion scripts."""
    own = engine.checkpoint_engine
    engine.checkpoint_engine, engine._copy_recovery_script = memory, lambda folder: None
    try:
        yield
    finally:
        engine.checkpoint_engine = own
        del engine._copy_recovery_script


def restore(engine: ZeroEngine, shards: Sequence[Files]) -> None:
    """Resume from the snapshots of all ranks, or from the files that this rank reads, see ``divide`` (collective).

    DeepSpeed's files are read where they are, unless they have to be converted for another number of ranks or stage.

    Raises:
        UserError: the snapshots are of another model; the engine is unchanged.
    """
    engine.offloader.reload("weights", "states")
    files = {name: content for shard in shards for name, content in shard.items()}
    fits = Topology.read(_text(files[TOPOLOGY])).fits(Topology.of(engine))
    size = 0 if fits else engine.world * sum(map(file_bytes, files.values()))
    with private_folder(size) as folder, _in_memory(MemoryFiles(files), engine.engine) if fits else nullcontext():
        for name, content in files.items():
            is_read_here = not fits or name == TOPOLOGY or name.startswith("rank_")
            write_segments(content if is_read_here else (), folder / name)  # DeepSpeed looks for files by name
        _load(engine, folder)


def _text(content: Segments) -> str:
    return b"".join(segment.tobytes() for segment in content).decode()


def load(engine: ZeroEngine, folder: Path) -> None:
    """Resume from a folder with the files of all ranks that took the snapshot (collective).

    Raises:
        UserError: the folder holds no snapshot, or one of another model; the engine is unchanged.
    """
    if not (folder / TOPOLOGY).is_file():
        raise UserError(f"{folder} holds no checkpoint", f"there is no {TOPOLOGY} in it")
    with private_folder(0) as work:
        link = work / "files"  # DeepSpeed would interpret special characters in the folder's name as a glob pattern
        link.symlink_to(folder.resolve(), target_is_directory=True)
        _load(engine, link)


@contextmanager
def private_folder(size: int) -> Iterator[Path]:
    """A temporary folder with space for ``size`` bytes, in shared memory if it has the space, else on disk."""
    with tempfile.TemporaryDirectory(prefix=prefix("checkpoint"), dir=roomy_folder(size)) as folder:
        yield Path(folder)


def _load(engine: ZeroEngine, folder: Path) -> None:
    engine.offloader.reload("weights", "states")
    saved, own = Topology.read((folder / TOPOLOGY).read_text()), Topology.of(engine)
    _check_compatible(saved, own)
    with _quiet():
        if saved.fits(own):
            # Not strict, because the files lack the frozen weights; the check above replaces DeepSpeed's.
            engine.engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        else:
            weights = sum(math.prod(shape) for shape in own.parameters.values())
            with private_folder(engine.world * BYTES_PER_WEIGHT * weights) as work:
                load_reshaped(engine, Saved(folder=folder, world=saved.world, stage=saved.stage), work)
    _set_process_state(engine, folder)


def _check_compatible(saved: Topology, own: Topology) -> None:
    """Raise UserError if a checkpoint cannot be loaded into this model."""
    if saved.dtype != own.dtype:
        raise UserError(
            f"a checkpoint of a model in {saved.dtype}, for one in {own.dtype}",
            "training would not continue as before",
            f"set model.dtype to {saved.dtype}, or start a new run",
        )
    if max(saved.split, own.split) > 1 and not saved.fits(own):
        raise UserError(
            f"a checkpoint of {saved.world} ranks with tensor_parallel = {saved.split} at ZeRO stage {saved.stage}, "
            f"for {own.world} ranks with {own.split} at stage {own.stage}",
            "with tensor parallelism, training resumes only with the same number of ranks and the same stage",
            "resume with those, or start a new run from a saved model",
        )
    both = saved.parameters.keys() | own.parameters.keys()
    differing = sorted(name for name in both if saved.parameters.get(name) != own.parameters.get(name))
    if differing:
        raise UserError(
            f"a checkpoint of another model: {len(differing)} of {len(both)} parameters differ",
            ", ".join(f"{name} {_shapes(saved, own, name)}" for name in differing[:3]),
            "resume with the model section that the run started with, or start a new run",
        )
    frozen = differences(saved.frozen, own.frozen)
    if frozen:
        raise UserError(
            f"a checkpoint of adapters, or of a partly frozen model, on other frozen weights: {', '.join(frozen[:3])}",
            "the trained weights are valid only with the frozen weights that they were trained with",
            "resume with the model that the run started from, or start a new run",
        )


def _shapes(saved: Topology, own: Topology, name: str) -> str:
    found, expected = (topology.parameters.get(name, "missing") for topology in (saved, own))
    return f"(checkpoint: {found}, model: {expected})"


def _process_state(engine: ZeroEngine) -> dict[str, Any]:
    return {
        "learning_rate": engine.learning_rate,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_process_state(engine: ZeroEngine, folder: Path) -> None:
    """Restore the learning rate, and the random states if this rank took part in the snapshot."""
    own = folder / f"rank_{engine.rank}.pt"
    is_new = not own.is_file()
    state = torch.load(folder / "rank_0.pt" if is_new else own, map_location="cpu", weights_only=False)
    engine.learning_rate = state["learning_rate"]
    if is_new:
        return
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Context that suppresses DeepSpeed's log lines and prints while it loads."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
