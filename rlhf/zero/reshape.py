"""A checkpoint of one number of ranks and ZeRO stage, loaded at another.

Shards are read into whole parameters and written in the layout of DeepSpeed's universal checkpoints, which DeepSpeed
then loads and shards anew. Its own converter is not used: of what it makes from stage 3, stages 1 and 2 can read
nothing, nor the other way round; it knows no stage 0; and it writes everything twice. Stage 0 is written as DeepSpeed
writes it.

A shard keeps parameters end to end in flat tensors; a parameter that lies across ranks has a piece on each.
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

from rlhf.zero.engine import ZeroEngine, full_shape

MASTER = "fp32"
AVERAGES = ("exp_avg", "exp_avg_sq")
COMMON = ("lr_scheduler", "global_steps", "global_samples", "skipped_steps", "dp_world_size", "mp_world_size")
"""What DeepSpeed keeps beside weights and optimizer, the same on every rank."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Where the files of all ranks are, and how they were sharded."""

    folder: Path
    world: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """``numel`` elements of a parameter, from ``start`` on in the flat tensor ``group``."""

    name: str
    group: int
    start: int
    numel: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One rank's part of the training state. ``adam`` is torch's state of the optimizer, by flat tensor."""

    master: Sequence[Tensor]
    adam: Mapping[str, Any]
    pieces: Sequence[Piece]

    def part(self, piece: Piece, key: str) -> Tensor:
        """(numel,) the piece of master weights or of one of Adam's averages, which are 0 before the first update."""
        state = {MASTER: self.master[piece.group], **self.adam["state"].get(piece.group, {})}
        return state[key].view(-1)[piece.start :][: piece.numel] if key in state else torch.zeros(piece.numel)


class WholeState:
    """The training state of all ranks, by parameter. Files are mapped, not read, until a parameter is asked for."""

    def __init__(self, saved: Saved, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes, self.shards = shapes, _shards(saved, list(shapes))
        adam = self.shards[0].adam
        self.hyperparameters = {name: value for name, value in adam["param_groups"][0].items() if name != "params"}
        self.step = adam["state"][0]["step"].clone() if adam["state"] else torch.tensor(0.0)
        model = _read(saved.folder / _model_file(saved.stage))
        self.common = {name: model[name] for name in COMMON}

    def parameter(self, name: str) -> dict[str, Tensor]:
        """Its master weights and averages, in its shape."""
        found = [(shard, piece) for shard in self.shards for piece in shard.pieces if piece.name == name]
        return {
            key: torch.cat([shard.part(piece, key) for shard, piece in found]).view(self.shapes[name])
            for key in (MASTER, *AVERAGES)
        }


def load_reshaped(engine: ZeroEngine, saved: Saved, place: Path) -> None:
    """Load what was saved at another number of ranks or stage, by way of files in the empty folder ``place``."""
    trained = {name: full_shape(p) for name, p in engine.network.named_parameters() if p.requires_grad}
    state, files = WholeState(saved, trained), place / "files"
    files.mkdir()
    if engine.stage == 0:
        _write_stage_0(engine, state, files)
    else:
        _write_universal(engine.stage, state, files)
    with _universal(engine, engine.stage > 0):
        engine.engine.load_checkpoint(str(place), tag=files.name, load_module_strict=False)


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)  # the run's own file


def _model_file(stage: int) -> str:
    return f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"


def _shards(saved: Saved, names: Sequence[str]) -> list[Shard]:
    """One a rank; at stage 0 one in all."""
    model = _read(saved.folder / _model_file(saved.stage))
    if saved.stage == 0:
        return [_whole_shard(model, names)]
    found = (next(saved.folder.glob(f"*zero_pp_rank_{r}_mp_rank_00_optim_states.pt")) for r in range(saved.world))
    shards = [_read(path)["optimizer_state_dict"] for path in found]
    if saved.stage < 3:
        return [_shard_of_optimizer(shard) for shard in shards]
    return [_shard_of_parameters(shard, model["param_shapes"], r, saved.world) for r, shard in enumerate(shards)]


def _whole_shard(model: Mapping[str, Any], names: Sequence[str]) -> Shard:
    """Stage 0: a tensor for each parameter. Master weights are kept apart only where the weights are bfloat16."""
    optimizer = model["optimizer"]
    kept = optimizer.get("fp32_groups")
    master = kept[0] if kept else [model["module"][name] for name in names]
    pieces = [Piece(name=name, group=i, start=0, numel=master[i].numel()) for i, name in enumerate(names)]
    return Shard(master=master, adam=optimizer.get("optimizer_state_dict", optimizer), pieces=pieces)


def _shard_of_optimizer(shard: Mapping[str, Any]) -> Shard:
    """Stages 1 and 2: a range of all parameters end to end; the file says where in it each lies."""
    pieces = [
        Piece(name=name, group=group, start=place.start, numel=place.numel)
        for group, mapping in enumerate(shard["param_slice_mappings"])
        for name, place in mapping.items()
    ]
    return Shard(master=shard["single_partition_of_fp32_groups"], adam=shard["base_optimizer_state"], pieces=pieces)


def _shard_of_parameters(
    shard: Mapping[str, Any], groups: Sequence[Mapping[str, torch.Size]], rank: int, world: int
) -> Shard:
    """Stage 3: an equal part of each parameter, the last ones padded."""
    pieces = []
    for group, shapes in enumerate(groups):
        start = 0
        for name, shape in shapes.items():
            share = math.ceil(shape.numel() / world)
            own = min(share, max(0, shape.numel() - rank * share))
            pieces.append(Piece(name=name, group=group, start=start, numel=own))
            start += share
    return Shard(master=shard["fp32_flat_groups"], adam=shard["optimizer_state_dict"], pieces=pieces)


def _write_stage_0(engine: ZeroEngine, state: WholeState, files: Path) -> None:
    """The one file of stage 0."""
    parameters = {name: state.parameter(name) for name in state.shapes}
    master = [parameter.pop(MASTER) for parameter in parameters.values()]
    adam = {
        # A count of its own for each: torch would add to a shared one once for every parameter.
        "state": {i: {**averages, "step": state.step.clone()} for i, averages in enumerate(parameters.values())},
        "param_groups": [{**state.hyperparameters, "params": list(range(len(parameters)))}],
    }
    kept = engine.engine.optimizer.state_dict()
    optimizer = {**kept, "optimizer_state_dict": adam, "fp32_groups": [master]} if "fp32_groups" in kept else adam
    module = {name: weight.to(getattr(torch, engine.dtype)) for name, weight in zip(parameters, master)}
    torch.save({**state.common, "module": module, "optimizer": optimizer}, files / _model_file(0))


def _write_universal(stage: int, state: WholeState, files: Path) -> None:
    """A folder for each parameter, and the rest in the places where the loaders of stages 1 to 3 look for it."""
    for name in state.shapes:
        folder = files / "zero" / name
        folder.mkdir(parents=True)
        for key, tensor in state.parameter(name).items():
            torch.save({"param": tensor}, folder / f"{key}.pt")
        torch.save(state.step, folder / "step.pt")
    groups = [state.hyperparameters]
    adam = {"state": {0: {"step": state.step}}, "param_groups": groups}
    rest = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": adam}
    torch.save(rest, files / "zero" / "optimizer_state.pt")
    torch.save(state.common, files / _model_file(stage))


@contextmanager
def _universal(engine: ZeroEngine, is_universal: bool) -> Iterator[None]:
    """Within it DeepSpeed takes what it loads for a universal checkpoint, which it otherwise decides once for all."""
    config = engine.engine._config
    before = config.load_universal_checkpoint
    config.load_universal_checkpoint = is_universal
    try:
        yield
    finally:
        config.load_universal_checkpoint = before
