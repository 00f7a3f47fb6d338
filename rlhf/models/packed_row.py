"""Runs several sequences in one forward pass: packed into one row, or padded to one row each.

Backbones run only in ``hidden_states``. Packed sequences restart their positions and attend only to themselves
(``rlhf/models/attention.py``); the KV cache, through which transformers would join them, is off. Padded rows are for
models whose attention cannot be replaced, or whose layers mix neighbouring tokens outside attention (convolutions,
recurrent states). Padding follows the sequence, so it does not affect the sequence's states.

Shapes: N tokens in the row, B sequences, R response tokens, d hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf.device import copy_to_device
from rlhf.models.attention import rows_of
from rlhf.types import Bool, Int64, Sequences

Form = Literal["packed", "padded"]
"""Layout of a pass: all sequences end to end in one row, or one row each, padded to the longest."""
FILL = 16
"""Packed rows are filled to a multiple of this many tokens, so that matrix products have few shapes."""
UNFIT = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors of models that do not support a layout. Lost processes and numeric errors have other types."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Several sequences as one row of a forward pass.

    Shapes: tokens, positions (1, N); predict_at (R,) the position whose hidden state predicts each response token that
    is predicted; targets (R,) these tokens; last (B,) the position of each sequence's last token; lengths (B,) of
    sequences.
    """

    tokens: Tensor
    positions: Tensor
    predict_at: Tensor
    targets: Tensor
    last: Tensor
    lengths: tuple[int, ...]


def pack_row(
    sequences: Sequences, samples: Sequence[int], device: torch.device | str, kept: Bool | None = None
) -> PackedRow:
    """Build the row of the selected samples, in the given order.

    Without samples it is one dummy token that predicts nothing: forward and backward pass run and contribute zero.

    Args:
        kept: true for the samples' response tokens that are predicted, in the order of the samples; by default all.
    """
    tokens, positions, predict_at, targets, last = [], [], [], [], []
    offset = 0
    for i in samples:
        length, answer = int(sequences.lengths[i]), int(sequences.response_lengths[i])
        begin = int(sequences.starts[i])
        tokens.append(sequences.tokens[begin : begin + length])
        positions.append(np.arange(length))
        predict_at.append(offset + length - answer - 1 + np.arange(answer))
        targets.append(sequences.response(i))
        last.append(offset + length - 1)
        offset += length
    selected = slice(None) if kept is None else kept
    dummy = [] if samples else [np.zeros(1)]
    arrays = (
        _joined(tokens + dummy),
        _joined(positions + dummy),
        _joined(predict_at)[selected],
        _joined(targets)[selected],
        np.array(last, dtype=np.int64),
    )
    row, places, predicting, predicted, ends = copy_to_device(arrays, torch.device(device))
    return PackedRow(
        tokens=row[None],
        positions=places[None],
        predict_at=predicting,
        targets=predicted,
        last=ends,
        lengths=tuple(len(part) for part in tokens) or (1,),
    )


def _joined(parts: Sequence[np.ndarray]) -> Int64:
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def fill(row: PackedRow, multiple: int = FILL) -> PackedRow:
    """The row with N a multiple of ``multiple``, by an extra sequence that is never read."""
    rest = -row.tokens.shape[1] % multiple
    if not rest:
        return row
    more = torch.arange(rest, device=row.tokens.device)[None]
    return replace(
        row,
        tokens=functional.pad(row.tokens, (0, rest)),
        positions=torch.cat([row.positions, more], dim=1),
        lengths=(*row.lengths, rest),
    )


def hidden_states(backbone: nn.Module, row: PackedRow, form: Form = "packed", **attending: Any) -> Tensor:
    """(N, d) last hidden states after the final norm, sequences end to end; each attends only to itself.

    ``attending`` holds extra arguments of this project's attention functions.
    """
    is_packed = form == "packed"
    inputs = (_packed_inputs(row) if is_packed else _padded_inputs(row)) | without_cache(backbone)
    with rows_of(row.lengths):
        states = backbone(**inputs, **attending).last_hidden_state
    return states.squeeze(0) if is_packed else states[inputs["attention_mask"].bool()]


def without_cache(model: nn.Module) -> dict[str, Any]:
    """Arguments that disable the KV cache, if the model has one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _packed_inputs(row: PackedRow) -> dict[str, Any]:
    """Inputs of the packed row. The mask of ones keeps transformers from detecting sequences, in O(N²) memory."""
    return {"input_ids": row.tokens, "position_ids": row.positions, "attention_mask": torch.ones_like(row.tokens)}


def _padded_inputs(row: PackedRow) -> dict[str, Any]:
    """(B, longest) inputs, one sequence a row. Positions count from the start of each row, the models' default."""
    width, tokens = max(row.lengths), row.tokens[0]
    inputs = (tokens, torch.ones_like(tokens))
    padded, mask = (pad_rows(each, row.lengths, width) for each in inputs)
    return {"input_ids": padded, "attention_mask": mask}


def pad_rows(values: Tensor, lengths: Sequence[int], width: int, filler: int = 0) -> Tensor:
    """(N,) values of sequences end to end → (B, width), one sequence a row, padded with ``filler``."""
    rows = values.split(list(lengths))
    return torch.stack([functional.pad(row, (0, width - len(row)), value=filler) for row in rows])
