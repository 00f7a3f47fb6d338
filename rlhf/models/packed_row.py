"""One packed row: several sequences end to end, positions restarting at each, no padding and no attention mask.

transformers sees the restarting positions and builds a block-diagonal mask by itself, but only with
``use_cache=False``: with a cache the sequences silently see each other. ``hidden_states`` is the one place that runs a
backbone, so that the flag cannot be forgotten.

Shapes: N tokens in the row, B sequences, R response tokens, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.types import Sequences


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


def hidden_states(backbone: nn.Module, row: PackedRow, **attending: Any) -> Tensor:
    """(N, d) last hidden states, after the final norm; each sequence attends only to itself.

    ``attending`` is what an attention function of this project has to know besides.
    """
    output = backbone(input_ids=row.tokens, position_ids=row.positions, use_cache=False, **attending)
    return output.last_hidden_state[0]
