"""The metrics of a comparison: for each one value of every arm's answer to every item.

Shapes: I items, A arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.arms.answers import ArmAnswers, Arms
from rlhf.arms.spec import TEXT_METRICS, BertScoreConfig, ComparisonConfig
from rlhf.errors import UserError
from rlhf.evaluation.chat_endpoint import ChatEndpoint
from rlhf.evaluation.consistency import consistency
from rlhf.evaluation.judge import Exhibit, PairJudgements, judge_pairs, judge_scores
from rlhf.evaluation.metric_table import MetricScores
from rlhf.evaluation.retrieval_metrics import NEED_CONTEXTS, NEED_REFERENCE, RETRIEVAL_METRICS, RetrievalItem
from rlhf.evaluation.scorers import Scorer, load_scorer
from rlhf.evaluation.text_metrics import ROUGE, bleu, chrf, corpus_bleu, corpus_chrf, rouge
from rlhf.types import Float64


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All metrics, and the judgements of pairs behind ``judge_win_rate``, by arm."""

    scores: tuple[MetricScores, ...]
    pairs: Mapping[str, PairJudgements]
    """Of each arm against the base."""


def measure(arms: Arms, config: ComparisonConfig, judge: ChatEndpoint | None, device: str = "cpu") -> Measured:
    """Compute the metrics that a comparison names, in that order, then the arms' own scores and the scorers.

    Args:
        judge: client of ``config.judge``.
        device: of the encoder of BERTScore.

    Raises:
        UserError: a metric needs columns that items do not have, or a scorer failed, or the judge refuses requests.
        MachineryError: the judge replied to nothing.
    """
    require_columns(arms, config)
    scorers = {name: load_scorer(spec) for name, spec in config.scorers.items()}
    pairs: dict[str, PairJudgements] = {}
    scores = [_measure(name, arms, config, judge, pairs, device) for name in config.metrics]
    scores += [_given(name, arms) for name in config.scores]
    scores += [_scored(name, arms, scorer) for name, scorer in scorers.items()]
    return Measured(scores=tuple(scores), pairs=pairs)


def require_columns(arms: Arms, config: ComparisonConfig) -> None:
    """Refuse metrics whose columns an item lacks.

    Raises:
        UserError: names the metric and the first such item.
    """
    for metric in config.metrics:
        if metric in TEXT_METRICS or metric in NEED_REFERENCE:
            lacking = [item for item in arms.items if not item.references]
            if lacking:
                raise _lacking(metric, "reference", len(lacking), str(lacking[0].location))
        if metric in NEED_CONTEXTS:
            empty = [(arm, i) for arm in arms.arms for i, given in enumerate(arm.contexts) if not given]
            if empty:
                arm, i = empty[0]
                where = f"{arms.items[i].location}, arm {arm.name}"
                raise _lacking(metric, "contexts", len(empty), where)
        if metric == "consistency" and any(len(given) < 2 for given in arms.arms[0].answers):
            raise UserError("consistency compares several answers of an arm", "each item has one", "sample n answers")

    for name in config.scores:
        for arm in arms.arms:
            found = sorted({score for each in arm.scores for score in each})
            if name not in found:
                why = f"its rows have {', '.join(found) or 'none'}"
                fix = "name scores that every arm has: those of a log's scorers, or of the column scores"
                raise UserError(f"arm {arm.name} has no score {name!r}", why, fix)


def _lacking(metric: str, column: str, count: int, first: str) -> UserError:
    fix = f"add the column {column}, or leave {metric} out of metrics"
    return UserError(f"{metric} needs the column {column}", f"{count} rows have none, the first is {first}", fix)


def _measure(
    name: str,
    arms: Arms,
    config: ComparisonConfig,
    judge: ChatEndpoint | None,
    pairs: dict[str, PairJudgements],
    device: str,
) -> MetricScores:
    if name in TEXT_METRICS:
        return _text_metric(name, arms, config, device)
    if name == "consistency":
        return _by_arm(name, arms, lambda arm: [consistency(given, config.language) for given in arm.answers])
    if name == "length":
        return _by_arm(name, arms, lambda arm: [float(len(answer)) for answer in arm.first])
    assert judge is not None  # the schema refuses these metrics without one
    client, shown = judge, _exhibits(arms, config)
    if name == "judge_score":
        return _by_arm(name, arms, lambda arm: judge_scores(client, shown, arm.first))
    if name == "judge_win_rate":
        pairs.update(judge_all_pairs(arms, shown, client))
        return _by_arm(name, arms, lambda arm: pairs[arm.name].values)
    metric = RETRIEVAL_METRICS[name]
    return _by_arm(name, arms, lambda arm: metric(client, _retrieval_items(arms, arm)))


def _scored(name: str, arms: Arms, scorer: Scorer) -> MetricScores:
    prompts = [item.prompt for item in arms.items]
    return _by_arm(name, arms, lambda arm: scorer(prompts, arm.first))


def _given(name: str, arms: Arms) -> MetricScores:
    return _by_arm(name, arms, lambda arm: [each.get(name, math.nan) for each in arm.scores])


def judge_all_pairs(arms: Arms, shown: Sequence[Exhibit], judge: ChatEndpoint) -> dict[str, PairJudgements]:
    """Judgements of every arm's answers against the base's, by arm; the base ties with itself."""
    base = arms.arms[arms.base].first
    return {arm.name: judge_pairs(judge, shown, arm.first, base) for arm in arms.arms}


def _text_metric(name: str, arms: Arms, config: ComparisonConfig, device: str) -> MetricScores:
    references, language = [item.references for item in arms.items], config.language
    if name in ROUGE:
        return _by_arm(name, arms, lambda arm: rouge(arm.first, references, language)[name])
    if name == "bleu":
        corpus = tuple(corpus_bleu(arm.first, references, language) for arm in arms.arms)
        return _by_arm(name, arms, lambda arm: bleu(arm.first, references, language), corpus)
    if name == "chrf":
        corpus = tuple(corpus_chrf(arm.first, references) for arm in arms.arms)
        return _by_arm(name, arms, lambda arm: chrf(arm.first, references), corpus)
    from rlhf.evaluation.bertscore import bert_score  # torch and transformers take seconds

    encoder: BertScoreConfig | None = config.bert_score
    assert encoder is not None  # the schema refuses the metric without one
    model, layers = encoder.model, encoder.layers
    return _by_arm(name, arms, lambda arm: bert_score(arm.first, references, model=model, layers=layers, device=device))


def _by_arm(
    name: str,
    arms: Arms,
    values: Callable[[ArmAnswers], Sequence[float] | Float64],
    corpus: tuple[float, ...] = (),
) -> MetricScores:
    columns = [np.asarray(values(arm), dtype=np.float64) for arm in arms.arms]
    return MetricScores(name=name, values=np.column_stack(columns), corpus=corpus)


def _exhibits(arms: Arms, config: ComparisonConfig) -> list[Exhibit]:
    guided = config.reference_guided
    return [
        Exhibit(prompt=item.prompt, reference=item.references[0] if guided and item.references else "")
        for item in arms.items
    ]


def _retrieval_items(arms: Arms, arm: ArmAnswers) -> list[RetrievalItem]:
    return [
        RetrievalItem(
            question=item.prompt,
            answer=answer,
            contexts=contexts,
            reference=item.references[0] if item.references else "",
        )
        for item, answer, contexts in zip(arms.items, arm.first, arm.contexts)
    ]
