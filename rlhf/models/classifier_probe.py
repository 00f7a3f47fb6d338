"""Finds a loaded classifier's scoring method by trial, without a list of known architectures.

Random sequences are scored by the classifier's own forward pass, one at a time. The fastest method that returns the
same scores is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.packed_row import UNFIT, Form, pack_row
from rlhf.models.scalar import Reader, ScalarNet
from rlhf.types import Sequences

LENGTHS = (17, 3, 9, 2, 33, 5)
"""Tokens of the probe's sequences. Short sequences reveal state that convolutions and recurrent layers carry over."""
WAYS: tuple[tuple[Reader, Form], ...] = (("head", "packed"), ("head", "padded"), ("own", "padded"))
"""Scoring methods and forms to try, fastest first; if none agrees, each sequence is a forward pass of its own."""
TOLERANCE = {torch.float32: (1e-3, 1e-5), torch.bfloat16: (0.1, 0.02)}
"""Largest difference, relative to the scores' standard deviation and to the largest score."""

Run = Callable[..., Tensor]
"""The network's forward pass without gradients, on this rank."""
Agreed = Callable[[bool], bool]
"""Whether the condition holds on all ranks."""


def choose_reader(network: ScalarNet, reads_ends: bool, run: Run, agreed: Agreed, device: torch.device) -> str:
    """Select the fastest scoring method that matches the classifier's own forward pass; returns a description of it.

    Collective over the role's ranks. ``reads_ends``: whether the model ``is_causal``, so that it may be read at an end.

    Raises:
        UserError: under sequence parallelism, if the head over packed rows does not match.
    """
    network.use("own_alone")
    if not network.model.config.is_encoder_decoder:  # these search for end tokens, which random sequences lack
        row = pack_row(_probe(network.model), range(len(LENGTHS)), device)
        expected = run(row)
        for reader, form in _supported_readers(network, reads_ends):
            network.use(reader)
            network.form = form
            if agreed(_is_close(run(row), expected, network.model.dtype)):
                return _describe_reader(network)
    if network.sequence_group is not None:
        raise UserError(
            f"placement.reward.sequence_parallel = {network.sequence_group.size} and a {type(network.model).__name__}",
            "its scores over a row split across ranks differ from those of its own forward pass",
            "placement.reward.sequence_parallel=1",
        )
    network.use("own_alone")
    network.form = "padded"
    return _describe_reader(network)


def _supported_readers(network: ScalarNet, reads_ends: bool) -> list[tuple[Reader, Form]]:
    """Scoring methods and forms that this network supports."""
    if network.sequence_group is not None:
        return [("head", "packed")]
    padding = getattr(network.model.config.get_text_config(), "pad_token_id", None)
    forms = ("packed", "padded") if network.form == "packed" else ("padded",)
    return [
        (reader, form)
        for reader, form in WAYS
        if form in forms and (padding is not None if reader == "own" else network.has_head and reads_ends)
    ]


def is_causal(network: ScalarNet, run: Run, agreed: Agreed, device: torch.device) -> bool:
    """Whether a token's state does not depend on the tokens after it (collective).

    Sequence parallelism is only used for models known to be causal.
    """
    if network.sequence_group is not None or network.model.config.is_encoder_decoder:
        return network.sequence_group is not None
    network.use("head")
    whole = _probe(network.model).response(0)
    beginning = len(whole) // 2
    states = []
    try:
        for length in (beginning, len(whole)):
            row = pack_row(Sequences.pack([((), whole[:length])]), [0], device)
            states.append(run(row, torch.arange(beginning, device=device), True).float())
    except torch.OutOfMemoryError:  # no evidence about the model
        raise
    except UNFIT:  # the model does not return one state per token
        return False
    return agreed(_is_close(states[1], states[0], network.model.dtype))


def _probe(model: PreTrainedModel) -> Sequences:
    """Random tokens, all of them responses, without padding and end tokens."""
    text = model.config.get_text_config()
    ends = getattr(text, "eos_token_id", None)
    special = {getattr(text, "pad_token_id", None), *(ends if isinstance(ends, list) else [ends])}
    usable = [token for token in range(min(text.vocab_size, 100_000)) if token not in special]
    context = getattr(text, "max_position_embeddings", None) or 0
    longest = context // 2 if context > 1 else max(LENGTHS)
    random = np.random.default_rng(0)
    return Sequences.pack([((), random.choice(usable, min(length, longest))) for length in LENGTHS])


def _is_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether the scores are equal up to the rounding of ``dtype``."""
    share, of_largest = TOLERANCE[dtype]
    limit = share * expected.std() + of_largest * expected.abs().max()
    return bool(((found - expected).abs() <= limit).all())


def _describe_reader(network: ScalarNet) -> str:
    rows = {"packed": "over packed rows", "padded": "over padded rows"}
    readers = {
        "head": f"by its head at the last token, {rows[network.form]}",
        "own": "by its own forward pass, over padded rows",
        "own_alone": "by its own forward pass, one sequence at a time",
    }
    return readers[network.reader]
