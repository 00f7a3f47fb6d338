"""The types that flow through the system: frozen, packed end to end, never padded.

Shapes: B samples, N tokens of all samples together (prompt and response), R response tokens of all samples together.
Arrays are NumPy so that Ray hands them between processes on one node without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rlhf.records import Messages

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


UNVERIFIED = -1
"""Weight version of an engine whose weights have not been proven; it does not serve."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model's folder says before any weight is read."""

    context: int
    """Longest sequence in tokens that the model was made for."""
    embedding_rows: int
    """Token ids at or beyond this do not exist for the model."""
    end_tokens: tuple[int, ...]
    """Token ids that end a response by the tokenizer's and the model's settings, sorted."""


class FinishReason(IntEnum):
    """Why a response ended."""

    STOP = 0
    """The model emitted an end token."""
    LENGTH = 1
    """The response reached its longest allowed length: it is truncated."""
    SET_ASIDE = 2
    """There is no response: the engine failed on the prompt, or said nothing. An empty mask keeps it out of all."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt ready to be answered.

    ``id`` tells it from the other prompts of its run, and is the same in every run with the same data and seed;
    ``tokens`` end exactly where the response begins. The rest is for rewards that read text.
    """

    id: int
    tokens: tuple[int, ...]
    text: str = ""
    """The prompt as the user wrote it, whole; of messages a transcript. Empty where it is not known."""
    turns: Messages = ()
    """The prompt's messages, where it was written as such."""
    row: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of the prompt's data row, under their names in the file."""
    variables: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What the row gives the chat template beside its messages: ``tools``, ``documents``, ..."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One demonstration for supervised fine-tuning; ``response`` ends with an end token.

    Shapes: prompt (P,), response (R,), mask (R,) true where a token is trained on: where several turns are, those of
    others stand between them.
    """

    prompt: Int32
    response: Int32
    mask: Bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One human comparison. ``chosen`` and ``rejected`` are responses to the same ``prompt``.

    ``prompt_id`` is equal for all pairs of one prompt, which therefore share a batch element and a split.
    """

    prompt: Int32
    chosen: Int32
    rejected: Int32
    margin: float
    prompt_id: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response.

    Shapes: tokens (R_i,) with the end token inside when ``finish_reason`` is STOP; logprobs (R_i,) in nats, of the
    sampled tokens at the sampling temperature, by the engine; mask (R_i,) true where the policy chose the token, false
    where an environment put it there.
    """

    prompt: Prompt
    tokens: Int32
    logprobs: Float32
    mask: Bool
    weight_version: int
    finish_reason: FinishReason
    seed: int


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
        """(B,) where each sample begins in ``tokens``."""
        return exclusive_sum(self.lengths)

    @cached_property
    def response_starts(self) -> Int64:
        """(B,) where each sample begins in an array of response tokens, shape (R,)."""
        return exclusive_sum(self.response_lengths)

    def response(self, i: int) -> Int32:
        """(R_i,) the response tokens of sample i."""
        end = self.starts[i] + self.lengths[i]
        return self.tokens[end - self.response_lengths[i] : end]

    def prompt(self, i: int) -> Int32:
        """(P_i,) the prompt tokens of sample i."""
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

    @classmethod
    def concatenate(cls, parts: Sequence[Sequences]) -> Sequences:
        """One batch out of several, in their order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def exclusive_sum(lengths: NDArray[np.integer]) -> Int64:
    """(B,) running total before each element: where packed items begin."""
    return np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]) if len(lengths) else np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class RolloutBlock:
    """Several rollouts, packed: what travels between actors.

    Shapes: ``sequences`` B samples; logprobs (R,) by the engine; response_mask (R,) true where the policy chose the
    token; prompt_ids, weight_versions, finish_reasons, seeds (B,).
    """

    sequences: Sequences
    logprobs: Float32
    response_mask: Bool
    prompt_ids: Int64
    weight_versions: Int64
    finish_reasons: Int32
    seeds: Int64

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def set_aside(self) -> Bool:
        """(B,) samples that have no response; a mask that is all false keeps their place in the batch."""
        return self.finish_reasons == FinishReason.SET_ASIDE

    @classmethod
    def pack(cls, rollouts: Sequence[Rollout]) -> RolloutBlock:
        """Pack finished rollouts into a block."""
        return cls(
            sequences=Sequences.pack((r.prompt.tokens, r.tokens) for r in rollouts),
            logprobs=np.concatenate([r.logprobs for r in rollouts]).astype(np.float32),
            response_mask=np.concatenate([r.mask for r in rollouts]),
            prompt_ids=np.array([r.prompt.id for r in rollouts], dtype=np.int64),
            weight_versions=np.array([r.weight_version for r in rollouts], dtype=np.int64),
            finish_reasons=np.array([r.finish_reason for r in rollouts], dtype=np.int32),
            seeds=np.array([r.seed for r in rollouts], dtype=np.int64),
        )

    def select(self, samples: Sequence[int] | Int64) -> RolloutBlock:
        """The chosen samples, in that order."""
        chosen = np.asarray(samples, dtype=np.int64)
        parts = [(self.sequences.prompt(i), self.sequences.response(i)) for i in chosen]
        starts, lengths = self.sequences.response_starts, self.sequences.response_lengths
        tokens = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in chosen] or [np.zeros(0, int)])
        per_sample = ("prompt_ids", "weight_versions", "finish_reasons", "seeds")
        return RolloutBlock(
            sequences=Sequences.pack(parts),
            logprobs=self.logprobs[tokens],
            response_mask=self.response_mask[tokens],
            **{name: getattr(self, name)[chosen] for name in per_sample},
        )

    @classmethod
    def concatenate(cls, blocks: Sequence[RolloutBlock]) -> RolloutBlock:
        """One block out of several, in their order."""
        arrays = {
            f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(cls) if f.name != "sequences"
        }
        return cls(sequences=Sequences.concatenate([b.sequences for b in blocks]), **arrays)


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A global batch of rollouts with all that an update needs.

    Shapes: ``rollouts`` B samples; scores (B,) the reward of each whole response, shaped and with its penalties;
    response_mask (R,) true where a token is trained on; old_logprobs, ref_logprobs, advantages, importance_weights
    (R,), 0 outside the mask; values, returns (R,), or None where there is no critic; kl_coef β of this step.
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
