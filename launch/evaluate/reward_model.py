"""``rlhf evaluate RECIPE --reward-model``: compares a reward model with people's votes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.options import writable
from launch.run import Work, run_work
from rlhf.errors import UserError, raise_all

if TYPE_CHECKING:
    from actors.session import Session
    from rlhf.feedback.judged_pairs import JudgedPair
    from rlhf.feedback.reward_accuracy import Accuracy, RewardAccuracy, ScoredJudgement
    from rlhf.types import Pair


def evaluate_reward_model(
    recipe: str, overrides: Sequence[str], reward_model: str, preferences: str, category: str | None, out: Path | None
) -> None:
    """Score both answers of every comparison, and print how often the model agrees."""

    def load(session: Session) -> Work:
        return partial(evaluate, read_comparisons(session, reward_model, preferences, category, out))

    run_work("generate", recipe, overrides, load, log="evaluate")


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """What is evaluated, checked before any model is loaded."""

    session: Session
    model: str
    pairs: tuple[JudgedPair, ...]
    tokens: tuple[Pair, ...]
    """The pairs' tokens, parallel to ``pairs``."""
    out: Path | None


def read_comparisons(
    session: Session, model: str, preferences: str, category: str | None, out: Path | None
) -> Comparisons:
    """Read and tokenise the comparisons.

    Args:
        category: column with the category of a comparison; None for no accuracy by category.

    Raises:
        UserError: the model or the comparisons cannot be used, or the output file cannot be written.
    """
    from rlhf.config.named_files import check_path
    from rlhf.data.tokenise import describe_tokenised, tokenise_preferences
    from rlhf.feedback.judged_pairs import load_judged_pairs
    from rlhf.models.classifier import inspect_classifier

    place = None if out is None else writable(out)
    data = replace(session.recipe.data, preferences=preferences)
    session = replace(session, recipe=replace(session.recipe, data=data))
    raise_all(list(check_path("--reward-model", model)), "rlhf evaluate")
    folder = session.verified(Path(model).expanduser())
    inspect_classifier(folder, session.recipe.model, own=True).require_whole("--reward-model")
    pairs = load_judged_pairs(data, category)
    tokenised = tokenise_preferences([pair.row for pair in pairs], session.chat, data, session.facts)
    session.console.print(describe_tokenised(tokenised, "comparisons"))
    kept = tuple(pairs[i] for i in tokenised.row_of_item)
    return Comparisons(session=session, model=str(folder), pairs=kept, tokens=tokenised.items, out=place)


def evaluate(comparisons: Comparisons) -> RewardAccuracy:
    """Score the answers, print and write the result."""
    from actors.answer_scoring import block_of_pairs, score_answers
    from rlhf.config.schema import RewardSourceConfig
    from rlhf.feedback.reward_accuracy import reward_accuracy
    from rlhf.storage.durable import write_atomically

    session, pairs = comparisons.session, comparisons.pairs
    block, prompts = block_of_pairs(comparisons.tokens, [pair.row for pair in pairs])
    source = RewardSourceConfig(model=comparisons.model)
    scores = score_answers(session, source, block, prompts, session.root / "logs", "Scores")
    differences = (scores[0::2].astype(float) - scores[1::2]).tolist()
    judged = list(zip(pairs, differences, strict=True))
    outcomes = [found for pair, difference in judged if (found := pair.outcome(difference)) is not None]
    if not outcomes:
        raise UserError("every comparison is a tie", "accuracy counts preferences", "collect more votes")
    result = reward_accuracy(outcomes, [vote for pair, difference in judged for vote in pair.judgements(difference)])
    _show(session, comparisons.model, result, _held_out(session, outcomes))
    if comparisons.out is not None:
        write_atomically(comparisons.out, json.dumps(result.as_json(), indent=2, allow_nan=False) + "\n")
        session.console.print(f"→ {comparisons.out}")
    return result


def _held_out(session: Session, outcomes: Sequence[ScoredJudgement]) -> Accuracy | None:
    """The accuracy on prompts that the recipe holds out of training; None if it holds out none of these."""
    from rlhf.data.split import split_by_prompt
    from rlhf.feedback.reward_accuracy import reward_accuracy

    keys = [str(each.prompt) for each in outcomes]
    _, held_out = split_by_prompt(keys, session.recipe.data.held_out_fraction, session.recipe.seed)
    return reward_accuracy([outcomes[i] for i in held_out]).overall if held_out else None


def _show(session: Session, model: str, result: RewardAccuracy, held_out: Accuracy | None) -> None:
    unseen = {} if held_out is None else {"accuracy, prompts that the recipe holds out": _describe(held_out)}
    session.console.summary(
        f"{model}: {result.overall.judgements:,} comparisons that prefer an answer",
        {
            "accuracy, all": _describe(result.overall),
            **unseen,
            "log loss (a coin: 0.693)": result.log_loss,
            "Brier score (a coin: 0.25)": result.brier,
            "calibration error": result.calibration_error,
            **{
                f"predicted {each.predicted:.2f}": f"won {each.observed:.2f} of {each.judgements:,}"
                for each in result.calibration
            },
            **{f"rater {name}": _describe(each) for name, each in result.by_rater.items()},
            **{f"guidelines {name}": _describe(each) for name, each in result.by_guideline.items()},
        },
    )
    if result.mean_accuracy is not None:
        of = "RewardBench's sections" if result.by_section else "categories"
        session.console.summary(
            "accuracy by category",
            {name: _describe(each) for name, each in result.by_category.items()}
            | {f"section {name}": f"{accuracy:.3f}" for name, accuracy in result.by_section.items()}
            | {f"mean over {of}": f"{result.mean_accuracy:.3f}", "all": _describe(result.overall)},
        )


def _describe(found: Accuracy) -> str:
    ties = f", {found.ties:,} equal rewards" if found.ties else ""
    return f"{found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}] of {found.judgements:,}{ties}"
