"""Loads a checkpoint at a different number of ranks or ZeRO stage.

Joins shards to whole parameters and writes them in the layout of DeepSpeed's universal checkpoints, which DeepSpeed
loads and shards again; for stage 0 it writes DeepSpeed's regular layout. DeepSpeed's own converter is not used: it
cannot convert between stage 3 and stages 1 and 2, does not support stage 0, and writes everything twice.

A shard stores its parameters end to end in flat tensors; a parameter that spans ranks has a piece on each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from rlhf.storage.write_errors import writing
from rlhf.zero.engine import ZeroEngine, full_shape

MASTER = "fp32"
AVERAGES = ("exp_avg", "exp_avg_sq")
COMMON = ("lr_scheduler", "global_steps", "global_samples", "skipped_steps", "dp_world_size", "mp_world_size")
"""Entries of DeepSpeed's model file other than weights and optimizer, equal on all ranks."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint: the folder with the files of all ranks, and how they are sharded."""

    folder: Path
    world: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A parameter's ``numel`` elements at offset ``start`` of the flat tensor number ``group``."""

    name: str
    group: int
    start: int
    numel: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's part of the training state; ``adam`` is torch's optimizer state, per flat tensor."""

    master: Sequence[Tensor]
    adam: Mapping[str, Any]
    pieces: Sequence[Piece]

    def part(self, piece: Piece, key: str) -> Tensor:
        """(numel,) piece of the master weights or of one of Adam's averages, which are 0 before the first update."""
        state = {MASTER: self.master[piece.group], **self.adam["state"].get(piece.group, {})}
        return state[key].view(-1)[piece.start :][: piece.numel] if key in state else torch.zeros(piece.numel)


class WholeState:
    """The training state of all ranks, by parameter; files are memory-mapped and read on access."""

    def __init__(self, saved: Saved, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes, self.shards = shapes, _shards(saved, list(shapes))
        adam = self.shards[0].adam
        self.hyperparameters = {name: value for name, value in adam["param_groups"][0].items() if name != "params"}
        self.step = adam["state"][0]["step"].clone() if adam["state"] else torch.tensor(0.0)
        model = _read(saved.folder / _model_file(saved.stage))
        self.common = {name: model[name] for name in COMMON}

    def parameter(self, name: str) -> dict[str, Tensor]:
        """The parameter's master weights and Adam averages, in its shape."""
        found = [(shard, piece) for shard in self.shards for piece in shard.pieces if piece.name == name]
        return {
            key: torch.cat([shard.part(piece, key) for shard, piece in found]).view(self.shapes[name])
            for key in (MASTER, *AVERAGES)
        }


def load_reshaped(engine: ZeroEngine, saved: Saved, work: Path) -> None:
    """Load a checkpoint of another number of ranks or stage, through files in the empty folder ``work``."""
    trained = {name: full_shape(p) for name, p in engine.network.named_parameters() if p.requires_grad}
    state, files = WholeState(saved, trained), work / "files"
    files.mkdir()
    if engine.stage == 0:
        _write_stage_0(engine, state, files)
    else:
        _write_universal(engine.stage, state, files)
    with _universal(engine, engine.stage > 0):
        engine.engine.load_checkpoint(str(work), tag=files.name, load_module_strict=False)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)  # a trusted file: see ``checkpoint.py``


def _model_file(stage: int) -> str:
    return f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"


def _shards(saved: Saved, names: Sequence[str]) -> list[Shard]:
    """The shard of each rank; at stage 0 a single one."""
    model = _read(saved.folder / _model_file(saved.stage))
    if saved.stage == 0:
        return [_shard_of_stage_0(model, names)]
    found = (next(saved.folder.glob(f"*zero_pp_rank_{r}_mp_rank_00_optim_states.pt")) for r in range(saved.world))
    shards = [_read(path)["optimizer_state_dict"] for path in found]
    if saved.stage < 3:
        return [_shard_of_optimizer(shard) for shard in shards]
    return [_shard_of_parameters(shard, model["param_shapes"], r, saved.world) for r, shard in enumerate(shards)]


def _shard_of_stage_0(model: Mapping[str, Any], names: Sequence[str]) -> Shard:
    """Stage 0: one tensor per parameter; separate master weights exist only if the weights are bfloat16."""
    optimizer = model["optimizer"]
    groups = optimizer.get("fp32_groups")
    master = groups[0] if groups else [model["module"][name] for name in names]
    pieces = [Piece(name=name, group=i, start=0, numel=master[i].numel()) for i, name in enumerate(names)]
    return Shard(master=master, adam=optimizer.get("optimizer_state_dict", optimizer), pieces=pieces)


def _shard_of_optimizer(shard: Mapping[str, Any]) -> Shard:
    """Stages 1 and 2: a range of all parameters end to end, with the offset of each parameter."""
    pieces = [
        Piece(name=name, group=group, start=part.start, numel=part.numel)
        for group, mapping in enumerate(shard["param_slice_mappings"])
        for name, part in mapping.items()
    ]
    return Shard(master=shard["single_partition_of_fp32_groups"], adam=shard["base_optimizer_state"], pieces=pieces)


def _shard_of_parameters(
    shard: Mapping[str, Any], groups: Sequence[Mapping[str, torch.Size]], rank: int, world: int
) -> Shard:
    """Stage 3: an equal part of each parameter, padded on the last ranks."""
    pieces = []
    for group, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            size = math.ceil(shape.numel() / world)
            numel = min(size, max(0, shape.numel() - rank * size))
            pieces.append(Piece(name=name, group=group, start=start, numel=numel))
            start += size
    return Shard(master=shard["fp32_flat_groups"], adam=shard["optimizer_state_dict"], pieces=pieces)


def _save(content: Any, path: Path) -> None:
    with writing(path):
        torch.save(content, path)


def _write_stage_0(engine: ZeroEngine, state: WholeState, files: Path) -> None:
    """Write the single file of stage 0."""
    parameters = {name: state.parameter(name) for name in state.shapes}
    master = [parameter.pop(MASTER) for parameter in parameters.values()]
    adam = {
        # Each parameter gets its own step tensor: torch would increment a shared one once per parameter.
        "state": {i: {**averages, "step": state.step.clone()} for i, averages in enumerate(parameters.values())},
        "param_groups": [{**state.hyperparameters, "params": list(range(len(parameters)))}],
    }
    current = engine.engine.optimizer.state_dict()
    optimizer = {**current, "optimizer_state_dict": adam, "fp32_groups": [master]} if "fp32_groups" in current else adam
    module = {name: weight.to(getattr(torch, engine.dtype)) for name, weight in zip(parameters, master)}
    _save({**state.common, "module": module, "optimizer": optimizer}, files / _model_file(0))


def _write_universal(stage: int, state: WholeState, files: Path) -> None:
    """Write a folder per parameter, and the remaining state in the files that the loaders of stages 1 to 3 read."""
    for name in state.shapes:
        folder = files / "zero" / name
        folder.mkdir(parents=True)
        for key, tensor in state.parameter(name).items():
            _save({"param": tensor}, folder / f"{key}.pt")
        _save(state.step, folder / "step.pt")
    groups = [state.hyperparameters]
    adam = {"state": {0: {"step": state.step}}, "param_groups": groups}
    rest = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": adam}
    _save(rest, files / "zero" / "optimizer_state.pt")
    _save(state.common, files / _model_file(stage))


@contextmanager
def _universal(engine: ZeroEngine, is_universal: bool) -> Iterator[None]:
    """Context in which DeepSpeed loads universal checkpoints or not, which its configuration otherwise fixes."""
    config = engine.engine._config
    before = config.load_universal_checkpoint
    config.load_universal_checkpoint = is_universal
    try:
        yield
    finally:
        config.load_universal_checkpoint = before
