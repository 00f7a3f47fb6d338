"""Snapshots of one trained network, from which training goes on: bit for bit where ranks and ZeRO stage are the same.

A snapshot is DeepSpeed's own checkpoint, with two files more: ``topology.json`` says what it is a snapshot of, and
``rank_<r>.pt`` holds what belongs to the process. Ranks may be on different hosts: each writes to a folder of its own,
and only together do their files make a checkpoint. Another number of ranks, or another stage, goes through
``reshape.py``.

Frozen weights are not among the files, only their fingerprint: whoever builds the network again has them already.

Security: DeepSpeed's files are pickles. Only files that this run wrote may be restored or loaded; whoever calls has
compared their hashes.
"""

from __future__ import annotations

import json
import logging
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.errors import UserError
from rlhf.recovery.leftovers import prefix, roomy_folder
from rlhf.weights.fingerprint import differences
from rlhf.zero.engine import ZeroEngine, full_shape
from rlhf.zero.reshape import Saved, load_reshaped

Files = Mapping[str, NDArray[np.uint8]]
"""Name in the checkpoint's folder → (bytes,) the file's content."""

TOPOLOGY = "topology.json"
FORMAT = 1
BYTES_PER_WEIGHT = 16
"""Of all ranks' files together, at most: weight, master copy and Adam's two averages, in float32."""
SPARE_BYTES = 64 * 2**20
"""For what is not weights."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """What a snapshot is of."""

    format: int
    world: int
    stage: int
    dtype: str
    parameters: Mapping[str, list[int]]
    """Name of each parameter of the network → whole shape."""
    frozen: Mapping[str, int]
    """Fingerprint of the parameters that are not trained."""
    split: int = 1
    """Ranks that share each matrix (``tensor_parallel``)."""

    @classmethod
    def of(cls, engine: ZeroEngine) -> Self:
        """An engine's own (collective under ZeRO-3)."""
        return cls(
            format=FORMAT,
            world=engine.world,
            stage=engine.stage,
            dtype=engine.dtype,
            parameters={name: list(full_shape(p)) for name, p in engine.network.named_parameters()},
            frozen=engine.frozen_fingerprint,
            split=engine.split,
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """From the content of ``topology.json``.

        Raises:
            UserError: another version of this project wrote it.
        """
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise UserError(
                f"a checkpoint of format {found['format']}",
                f"this version reads format {FORMAT}",
                "go on with the version that wrote it, or start a new run",
            )
        return cls(**found)

    def fits(self, engine: Topology) -> bool:
        """Whether DeepSpeed loads the files as they are. At stage 0 every rank has everything."""
        same = self.stage == engine.stage and self.split == engine.split
        return same and (self.world == engine.world or self.stage == 0)


def snapshot(engine: ZeroEngine) -> Files:
    """This rank's own files: weights, optimizer, schedule, counters, random states (collective)."""
    trained = sum(int(np.prod(full_shape(p))) for p in engine.network.parameters() if p.requires_grad)
    with private_folder(BYTES_PER_WEIGHT * trained + SPARE_BYTES) as folder:
        with engine.parking.on_host():
            _save(engine, folder)
        return {path.name: np.fromfile(path, dtype=np.uint8) for path in sorted((folder / "files").iterdir())}


def restore(engine: ZeroEngine, shards: Sequence[Files]) -> None:
    """Go on from the snapshots of all ranks (collective).

    Raises:
        UserError: they are of another model. Nothing is changed then.
    """
    engine.parking.come_back("weights", "states")
    files = {name: content for shard in shards for name, content in shard.items()}
    if Topology.read(files[TOPOLOGY].tobytes().decode()).fits(Topology.of(engine)):
        files = {name: content for name, content in files.items() if _is_read_by(engine, name)}
    with private_folder(engine.world * sum(content.nbytes for content in files.values())) as folder:
        for name, content in files.items():
            content.tofile(folder / name)
        _load(engine, folder)


def load(engine: ZeroEngine, folder: Path) -> None:
    """Go on from a folder that holds the files of all ranks that took the snapshot (collective).

    Raises:
        UserError: they are of another model, or there are none. Nothing is changed then.
    """
    if not (folder / TOPOLOGY).is_file():
        raise UserError(f"{folder} holds no checkpoint", f"there is no {TOPOLOGY} in it")
    with private_folder(0) as place:
        link = place / "files"  # DeepSpeed would take special characters in the folder's name for a pattern
        link.symlink_to(folder.resolve(), target_is_directory=True)
        _load(engine, link)


@contextmanager
def private_folder(size: int) -> Iterator[Path]:
    """A new folder with room for ``size`` bytes: in shared memory if they are free there, else on the disk."""
    with tempfile.TemporaryDirectory(prefix=prefix("checkpoint"), dir=roomy_folder(size)) as folder:
        yield Path(folder)


def _save(engine: ZeroEngine, folder: Path) -> None:
    """Write this rank's files to ``folder/files``."""
    engine.engine.save_checkpoint(str(folder), tag="files", save_latest=False, exclude_frozen_parameters=True)
    files, topology = folder / "files", Topology.of(engine)
    files.mkdir(exist_ok=True)  # DeepSpeed makes it only where it writes to it
    torch.save(_process_state(engine), files / f"rank_{engine.rank}.pt")
    if engine.rank == 0:
        (files / TOPOLOGY).write_text(json.dumps(asdict(topology)))


def _is_read_by(engine: ZeroEngine, name: str) -> bool:
    """Whether a rank reads this file when it loads all as they are: of the shards and parts, only its own."""
    shard = re.search(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_", name)
    return shard is None or (int(shard[1]), int(shard[2])) == divmod(engine.rank, engine.split)


def _load(engine: ZeroEngine, folder: Path) -> None:
    engine.parking.come_back("weights", "states")
    saved, own = Topology.read((folder / TOPOLOGY).read_text()), Topology.of(engine)
    _refuse_others(saved, own)
    with _quiet():
        if saved.fits(own):
            # Frozen weights are missing from the files, so that the check is not DeepSpeed's but the one above.
            engine.engine.load_checkpoint(str(folder.parent), tag=folder.name, load_module_strict=False)
        else:
            with private_folder(engine.world * BYTES_PER_WEIGHT * _size(own.parameters)) as place:
                load_reshaped(engine, Saved(folder=folder, world=saved.world, stage=saved.stage), place)
    _set_process_state(engine, folder)


def _refuse_others(saved: Topology, own: Topology) -> None:
    """Raise UserError where weights of the one cannot be those of the other."""
    if saved.dtype != own.dtype:
        raise UserError(
            f"a checkpoint of a model in {saved.dtype}, for one in {own.dtype}",
            "training would not go on as it was",
            f"set model.dtype to {saved.dtype}, or start a new run",
        )
    if max(saved.split, own.split) > 1 and not saved.fits(own):
        raise UserError(
            f"a checkpoint of {saved.world} ranks with tensor_parallel = {saved.split} at ZeRO stage {saved.stage}, "
            f"for {own.world} ranks with {own.split} at stage {own.stage}",
            "where ranks share matrices, training goes on with the same ranks and stage alone",
            "go on with those, or start a new run from a saved model",
        )
    both = saved.parameters.keys() | own.parameters.keys()
    differing = sorted(name for name in both if saved.parameters.get(name) != own.parameters.get(name))
    if differing:
        raise UserError(
            f"a checkpoint of another model: {len(differing)} of {len(both)} parameters differ",
            ", ".join(f"{name} {_shapes(saved, own, name)}" for name in differing[:3]),
            "go on with the model section that the run started with, or start a new run",
        )
    frozen = differences(saved.frozen, own.frozen)
    if frozen:
        raise UserError(
            f"a checkpoint of adapters, or of a partly frozen model, on other frozen weights: {', '.join(frozen[:3])}",
            "what was trained fits only the weights that it was trained on",
            "go on from the model that the run started from, or start a new run",
        )


def _shapes(saved: Topology, own: Topology, name: str) -> str:
    there, here = (side.parameters.get(name, "missing") for side in (saved, own))
    return f"(checkpoint: {there}, model: {here})"


def _size(parameters: Mapping[str, list[int]]) -> int:
    return sum(int(np.prod(shape)) for shape in parameters.values())


def _process_state(engine: ZeroEngine) -> dict[str, Any]:
    return {
        "learning_rate": engine.learning_rate,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_process_state(engine: ZeroEngine, folder: Path) -> None:
    """Random states are set where this rank was there at the snapshot; a new rank keeps its own."""
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
    """Without DeepSpeed's remarks on what it loads, some of them printed."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
