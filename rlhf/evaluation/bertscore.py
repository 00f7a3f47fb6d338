"""BERTScore (Zhang et al. 2020, arXiv:1904.09675) by ``bert-score``.

In a file of its own, because the library imports torch and transformers, which take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bert_score import BERTScorer

from rlhf.errors import UserError, first_line
from rlhf.types import Float64

_LONGEST = 10**6
"""Tokenizers without a limit of their own state a larger one."""


def bert_score(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, model: str, layers: int, device: str = "cpu"
) -> Float64:
    """F1 of BERTScore, (n,), of the best reference, without rescaling or idf weights.

    Args:
        model: folder or hub name of an encoder that reads the answers' language.
        layers: the layer whose states are compared, from 1; ``bert-score`` recommends one for each public model.

    Raises:
        UserError: the encoder cannot be loaded, or has fewer layers, or there is no such device.
    """
    try:
        scorer = BERTScorer(model_type=model, num_layers=layers, device=device)
    except (OSError, ValueError, LookupError, AssertionError, RuntimeError) as error:
        what = f"bert_score.model = {model!r} cannot be loaded with layer {layers} on {device!r}"
        fix = "name a folder or hub name of a transformers encoder, one of its layers, and --device cpu or cuda"
        raise UserError(what, first_line(error), fix) from error
    tokenizer = scorer._tokenizer
    if tokenizer.model_max_length > _LONGEST:
        tokenizer.model_max_length = scorer._model.config.max_position_embeddings
    return np.asarray(scorer.score(list(answers), [list(given) for given in references])[2], dtype=np.float64)
