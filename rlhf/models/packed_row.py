"""Several sequences in one forward pass: end to end in one row, or each in a row of its own.

``hidden_states`` is the one place that runs a backbone. Sequences end to end restart their positions and attend only to
themselves (``rlhf/models/attention.py``); a cache, with which transformers would let them see each other, is off. A
model whose layers mix neighbouring tokens elsewhere than in attention (convolutions, recurrent states), or whose
attention cannot be chosen, has a row a sequence, filled up behind its end: what stands there comes later than all of
the sequence.

Shapes: N tokens in the row, B sequences, R response tokens, d hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf.models.attention import rows_of
from rlhf.types import Sequences

Form = Literal["packed", "padded"]
"""How the sequences of a pass lie: end to end in one row, or a row for each, filled up to the longest."""
UNFIT = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model raises that cannot be run so. Lost processes and numbers out of bounds are errors of other types."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """Several sequences as one row of a forward pass.

    Shapes: tokens, positions (1, N); predict_at (R,) the place whose hidden state predicts each response token;
    targets (R,) the response tokens; last (B,) the place of each sequence's last token; lengths (B,) of the sequences.
    """

    tokens: Tensor
    positions: Tensor
    predict_at: Tensor
    targets: Tensor
    last: Tensor
    lengths: tuple[int, ...]


def pack_row(sequences: Sequences, samples: Sequence[int], device: torch.device | str) -> PackedRow:
    """Build the row of the chosen samples, in the order given.

    With no samples it is one dummy token that predicts nothing: the forward and backward passes run, and contribute
    zero.
    """
    if not samples:
        zero = torch.zeros(1, 1, dtype=torch.long, device=device)
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return PackedRow(tokens=zero, positions=zero, predict_at=empty, targets=empty, last=empty, lengths=(1,))
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

    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    return PackedRow(
        tokens=joined(tokens)[None],
        positions=joined(positions)[None],
        predict_at=joined(predict_at),
        targets=joined(targets),
        last=torch.tensor(last, device=device),
        lengths=tuple(len(part) for part in tokens),
    )


def hidden_states(backbone: nn.Module, row: PackedRow, form: Form = "packed", **attending: Any) -> Tensor:
    """(N, d) last hidden states, after the final norm, of the sequences end to end; each sees only itself.

    ``attending`` is what an attention function of this project has to know besides.
    """
    is_packed = form == "packed"
    inputs = (_packed_inputs(row) if is_packed else _padded_inputs(row)) | without_cache(backbone)
    with rows_of(row.lengths):
        states = backbone(**inputs, **attending).last_hidden_state
    return states[0] if is_packed else states[inputs["attention_mask"].bool()]


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument with which a model keeps nothing of a pass, where it would."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _packed_inputs(row: PackedRow) -> dict[str, Any]:
    """The row as it is. Without a mask of ones transformers would look for the sequences itself, in N² numbers."""
    return {"input_ids": row.tokens, "position_ids": row.positions, "attention_mask": torch.ones_like(row.tokens)}


def _padded_inputs(row: PackedRow) -> dict[str, Any]:
    """(B, longest) a row a sequence. Positions count from each row's beginning, as every model does by itself."""
    width, tokens = max(row.lengths), row.tokens[0]
    inputs = (tokens, torch.ones_like(tokens))
    padded, mask = (pad_rows(each, row.lengths, width) for each in inputs)
    return {"input_ids": padded, "attention_mask": mask}


def pad_rows(values: Tensor, lengths: Sequence[int], width: int, filler: int = 0) -> Tensor:
    """(N,) numbers of sequences end to end → (B, width), one sequence a row, ``filler`` behind it."""
    rows = values.split(list(lengths))
    return torch.stack([functional.pad(row, (0, width - len(row)), value=filler) for row in rows])
