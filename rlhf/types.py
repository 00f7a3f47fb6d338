"""Data types that pass between actors: immutable, packed end to end, without padding.

Shapes: B samples, N tokens of all samples together (prompt and response), R response tokens of all samples together.
Arrays are NumPy arrays, which Ray shares between the processes of a node without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rlhf.records import Messages

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


UNVERIFIED = -1
"""Weight version of an engine whose weights have not been verified; such an engine does not serve."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts that a model's folder gives without reading its weights."""

    context: int
    """Longest sequence that the model supports, in tokens."""
    embedding_rows: int
    """Valid token ids are smaller than this."""
    end_tokens: tuple[int, ...]
    """Token ids that end a response according to the tokenizer's and the model's settings, sorted."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Report on a training step to the controller."""

    metrics: dict[str, float]

    def with_metrics(self, more: Mapping[str, float]) -> Self:
        """Return a copy with ``more`` added to the metrics."""
        return replace(self, metrics={**self.metrics, **more})


class FinishReason(IntEnum):
    """Why a response ended."""

    STOP = 0
    """The model emitted an end token."""
    LENGTH = 1
    """The response reached the longest allowed length and is truncated."""
    SET_ASIDE = 2
    """Quarantined: the engine failed on the prompt or returned no token. An all-false mask excludes the sample."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt. All fields after ``tokens`` are for rewards that read text."""

    id: int
    """Unique within a run, and equal in every run with the same data and seed."""
    tokens: tuple[int, ...]
    """Token ids up to the first token of the response."""
    text: str = ""
    """The whole prompt as the user wrote it, or a transcript of its messages; empty if unknown."""
    turns: Messages = ()
    """The prompt's messages; empty if the prompt is plain text."""
    row: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of the prompt's data row, by name."""
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Variables that the row passes to the chat template beside the messages: ``tools``, ``documents``, ..."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One demonstration for supervised fine-tuning; ``response`` ends with an end token.

    Shapes: prompt (P,), response (R,), mask (R,) true where a token is trained on. If several turns are trained on, the
    response also contains the turns between them, with a false mask.
    """

    prompt: Int32
    response: Int32
    mask: Bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One human comparison of two responses to the same prompt.

    ``prompt_id`` is equal for all pairs of one prompt, which are therefore in one batch element and one split.
    """

    prompt: Int32
    chosen: Int32
    rejected: Int32
    margin: float
    prompt_id: int


@dataclass(frozen=True, kw_only=True)
class LabelledResponse:
    """One response that a person found good or bad; ``prompt_id`` as of a ``Pair``."""

    prompt: Int32
    response: Int32
    is_good: bool
    prompt_id: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response.

    Shapes: tokens (R_i,), including the end token if ``finish_reason`` is STOP; logprobs (R_i,) of the sampled tokens
    at the sampling temperature, computed by the engine, in nats; mask (R_i,) true for tokens that the policy sampled,
    false for tokens that an environment inserted. ``cached_tokens`` of the prompt came from the engine's prefix cache.
    """

    prompt: Prompt
    tokens: Int32
    logprobs: Float32
    mask: Bool
    weight_version: int
    finish_reason: FinishReason
    seed: int
    cached_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Prompts with their responses, packed end to end.

    Shapes: tokens (N,), each sample's prompt followed by its response; prompt_lengths, response_lengths (B,).
    """

    tokens: Int32
    prompt_lengths: Int32
    response_lengths: Int32

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @cached_property
    def lengths(self) -> Int32:
        """(B,) tokens of each sample, prompt and response."""
        return self.prompt_lengths + self.response_lengths

    @cached_property
    def starts(self) -> Int64:
        """(B,) index in ``tokens`` of each sample's first token."""
        return exclusive_sum(self.lengths)

    @cached_property
    def response_starts(self) -> Int64:
        """(B,) index of each sample's first response token in a packed (R,) array."""
        return exclusive_sum(self.response_lengths)

    def response(self, i: int) -> Int32:
        """(R_i,) response tokens of sample i."""
        end = self.starts[i] + self.lengths[i]
        return self.tokens[end - self.response_lengths[i] : end]

    def prompt(self, i: int) -> Int32:
        """(P_i,) prompt tokens of sample i."""
        return self.tokens[self.starts[i] : self.starts[i] + self.prompt_lengths[i]]

    @classmethod
    def pack(cls, samples: Iterable[tuple[Sequence[int] | Int32, Sequence[int] | Int32]]) -> Sequences:
        """Pack (prompt, response) pairs of token ids."""
        pairs = [(np.asarray(p, dtype=np.int32), np.asarray(r, dtype=np.int32)) for p, r in samples]
        flat = [part for pair in pairs for part in pair]
        return cls(
            tokens=np.concatenate(flat) if flat else np.zeros(0, dtype=np.int32),
            prompt_lengths=np.array([len(p) for p, _ in pairs], dtype=np.int32),
            response_lengths=np.array([len(r) for _, r in pairs], dtype=np.int32),
        )

    def select(self, samples: Int64) -> Sequences:
        """The given samples, in the given order."""
        return Sequences(
            tokens=self.tokens[packed_index(self.starts[samples], self.lengths[samples])],
            prompt_lengths=self.prompt_lengths[samples],
            response_lengths=self.response_lengths[samples],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Sequences]) -> Sequences:
        """Join several batches into one, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def exclusive_sum(lengths: NDArray[np.integer]) -> Int64:
    """(B,) sum of the elements before each one: the start offsets of packed items."""
    return np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) if len(lengths) else np.zeros(0, np.int64)


def packed_index(starts: Int64, lengths: NDArray[np.integer]) -> Int64:
    """(Σ lengths,) indices of items in a packed array: for each item, ``lengths[i]`` integers from ``starts[i]`` on."""
    return np.repeat(starts - exclusive_sum(lengths), lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True, kw_only=True)
class RolloutBlock:
    """Several rollouts, packed; the unit that actors exchange.

    Shapes: ``sequences`` B samples; logprobs (R,) computed by the engine; response_mask (R,) true for tokens that the
    policy sampled; prompt_ids, weight_versions, finish_reasons, seeds, cached_tokens (B,).
    """

    sequences: Sequences
    logprobs: Float32
    response_mask: Bool
    prompt_ids: Int64
    weight_versions: Int64
    finish_reasons: Int32
    seeds: Int64
    cached_tokens: Int32
    """Prompt tokens that came from the engine's prefix cache."""

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def set_aside(self) -> Bool:
        """(B,) true for quarantined samples, which keep their position in the batch with an all-false response mask."""
        return self.finish_reasons == FinishReason.SET_ASIDE

    @classmethod
    def pack(cls, rollouts: Sequence[Rollout]) -> RolloutBlock:
        """Pack rollouts into a block."""
        return cls(
            sequences=Sequences.pack((r.prompt.tokens, r.tokens) for r in rollouts),
            logprobs=np.concatenate([r.logprobs for r in rollouts]).astype(np.float32),
            response_mask=np.concatenate([r.mask for r in rollouts]),
            prompt_ids=np.array([r.prompt.id for r in rollouts], dtype=np.int64),
            weight_versions=np.array([r.weight_version for r in rollouts], dtype=np.int64),
            finish_reasons=np.array([r.finish_reason for r in rollouts], dtype=np.int32),
            seeds=np.array([r.seed for r in rollouts], dtype=np.int64),
            cached_tokens=np.array([r.cached_tokens for r in rollouts], dtype=np.int32),
        )

    def select(self, samples: Sequence[int] | Int64) -> RolloutBlock:
        """The block of the given samples, in the given order."""
        chosen = np.asarray(samples, dtype=np.int64)
        tokens = packed_index(self.sequences.response_starts[chosen], self.sequences.response_lengths[chosen])
        per_sample = ("prompt_ids", "weight_versions", "finish_reasons", "seeds", "cached_tokens")
        return RolloutBlock(
            sequences=self.sequences.select(chosen),
            logprobs=self.logprobs[tokens],
            response_mask=self.response_mask[tokens],
            **{name: getattr(self, name)[chosen] for name in per_sample},
        )

    @classmethod
    def concatenate(cls, blocks: Sequence[RolloutBlock]) -> RolloutBlock:
        """Join several blocks into one, in order."""
        arrays = {
            f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(cls) if f.name != "sequences"
        }
        return cls(sequences=Sequences.concatenate([b.sequences for b in blocks]), **arrays)


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A global batch of rollouts with everything that an update needs.

    Shapes: ``rollouts`` B samples; scores (B,) shaped score of each response, penalties included; response_mask (R,)
    true where a token is trained on; old_logprobs, ref_logprobs, advantages, importance_weights (R,), 0 outside the
    mask; values, returns (R,), or None without a critic; kl_coef is β of this step.
    """

    rollouts: RolloutBlock
    scores: Float32
    response_mask: Bool
    old_logprobs: Float32
    ref_logprobs: Float32
    advantages: Float32
    importance_weights: Float32
    kl_coef: float
    values: Float32 | None = None
    returns: Float32 | None = None

    def select(self, samples: Int64) -> Experience:
        """The experience of the given samples, in the given order."""
        sequences = self.rollouts.sequences
        tokens = packed_index(sequences.response_starts[samples], sequences.response_lengths[samples])
        return Experience(
            rollouts=self.rollouts.select(samples),
            scores=self.scores[samples],
            response_mask=self.response_mask[tokens],
            old_logprobs=self.old_logprobs[tokens],
            ref_logprobs=self.ref_logprobs[tokens],
            advantages=self.advantages[tokens],
            importance_weights=self.importance_weights[tokens],
            kl_coef=self.kl_coef,
            values=None if self.values is None else self.values[tokens],
            returns=None if self.returns is None else self.returns[tokens],
        )
