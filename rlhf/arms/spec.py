"""The file of a comparison: items, arms, metrics, judge and votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictStr, model_validator

from rlhf.config.fields import Count, PartName, Seed, Texts, refuse, section
from rlhf.config.plain_file import validate_settings
from rlhf.config.source import read_source
from rlhf.data.columns import is_within
from rlhf.errors import UserError
from rlhf.evaluation.academic_tasks import AcademicTasksConfig
from rlhf.evaluation.chat_endpoint import ServiceConfig
from rlhf.evaluation.retrieval_metrics import NEED_EMBEDDINGS, RETRIEVAL_METRICS
from rlhf.evaluation.text_metrics import ROUGE, Language

TEXT_METRICS = (*ROUGE, "bleu", "chrf", "bert_score")
JUDGE_METRICS = ("judge_win_rate", "judge_score")
OTHER_METRICS = ("consistency", "length")
METRICS = (*TEXT_METRICS, *JUDGE_METRICS, *RETRIEVAL_METRICS, *OTHER_METRICS)
DEFAULT_METRICS = ("rouge1", "rougeL", "chrf", "length")
FILES = ("items", "arms", "votes", "train", "cache")
"""Keys with names of files."""
PERHAPS_FILES = ("scorers", "bert_score.model", "lm_eval.models", "lm_eval.folder")
"""Keys whose values may also be names of modules or of models on the hub: files if there is such a file."""


@section
class BertScoreConfig:
    """The encoder of BERTScore."""

    model: StrictStr
    """Folder or hub name."""
    layers: Count
    """Layer whose states are compared."""


@section
class ComparisonConfig:
    """What is compared, and by which metrics."""

    items: StrictStr
    """File of items: ``prompt``, and where a metric needs them ``reference`` (or a list ``references``, or ``answer``),
    ``contexts``, ``label`` and ``group``."""
    arms: dict[PartName, StrictStr]
    """Name of each arm → file of its answers, rows with ``prompt`` and ``response``, as ``rlhf generate`` writes; or a
    log of Inspect."""
    base: StrictStr
    """The arm of the untouched base model, with which all others are compared."""
    language: Language = "en"
    """``ja`` and ``zh`` change the tokens of ROUGE and BLEU; ``en`` is for all languages with spaces."""
    metrics: Texts = DEFAULT_METRICS
    scores: Texts = ()
    """Numbers that the arms' files hold, as metrics: the scorers of Inspect's logs, or entries of the column
    ``scores``; a larger one is better."""
    scorers: dict[PartName, StrictStr] = field(default_factory=dict)
    """Name of a metric → ``module:function`` or ``file.py:function`` as in ``rewards.<name>.function``: a larger score
    is better. ``rlhf.evaluation.refusals:answered`` is 1 for an answer and 0 for a refusal."""
    bert_score: BertScoreConfig | None = None
    judge: ServiceConfig | None = None
    reference_guided: StrictBool = False
    """The judge also sees the reference."""
    lm_eval: AcademicTasksConfig | None = None
    """Academic tasks of the arms' models, by the optional package ``lm-eval``."""
    votes: StrictStr | None = None
    """A feedback project in which people compared answers of these arms."""
    train: Texts = ()
    """Files that models were trained on, for the lint."""
    required: Texts = ()
    """Columns that every item must have, for the lint."""
    longest_answer: Count | None = None
    """Longest reference in characters, for the lint."""
    cache: StrictStr = "judge_replies.jsonl"
    """File of the judge's replies, by a hash of the question: a second run asks nothing."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _validate(self) -> ComparisonConfig:
        refuse(_problems(self))
        return self


def _problems(config: ComparisonConfig) -> Iterable[UserError]:
    """Rules between keys."""
    if config.base not in config.arms:
        why = "a change is only known against the model that it started from"
        yield UserError(
            f"base = {config.base!r} is no arm", why, f"name one of {', '.join(config.arms)}, or add its file"
        )
    if config.lm_eval is not None and (others := {*config.lm_eval.models} - {*config.arms}):
        fix = f"name its models after {', '.join(config.arms)}"
        yield UserError(f"lm_eval.models has {min(others)!r}, which is no arm", fix=fix)
    if config.lm_eval is not None and not (config.lm_eval.tasks and config.lm_eval.models):
        yield UserError("lm_eval has no task or no model", "nothing would run", "name both, or leave lm_eval out")
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown:
        yield UserError(f"metrics has {unknown[0]!r}", fix=f"the metrics are {', '.join(METRICS)}")
    if "bert_score" in config.metrics and config.bert_score is None:
        yield UserError("bert_score needs an encoder", fix="set bert_score.model and bert_score.layers")
    if not (config.metrics or config.scores or config.scorers or config.lm_eval):
        yield UserError("nothing to measure", "metrics is empty", "name metrics, scores or scorers")
    has_embeddings = config.judge is None or config.judge.embedding_model is not None
    if not has_embeddings and (embedded := NEED_EMBEDDINGS & {*config.metrics}):
        yield UserError(f"{min(embedded)} compares embeddings", "no model makes them", "set judge.embedding_model")
    if config.judge is None and (asked := {*JUDGE_METRICS, *RETRIEVAL_METRICS} & {*config.metrics}):
        yield UserError(f"{min(asked)} needs a judge", fix="set judge.url and judge.model")
    names = Counter((*config.metrics, *config.scores, *config.scorers))
    twice = {name for name, count in names.items() if count > 1} | {*config.scores, *config.scorers} & {*METRICS}
    if twice:
        yield UserError(f"two metrics have the name {min(twice)!r}", "the report has a row for each", "choose another")


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> ComparisonConfig:
    """Read a comparison; file names in it are relative to its folder.

    Args:
        overrides: ``key.path=value``, relative to the current folder as in any command.

    Raises:
        UserError: lists what is wrong with the file or the overrides.
    """
    source = read_source(path, overrides, "comparison")
    settings = _beside(source.settings, Path(path), overrides)
    return validate_settings(
        ComparisonConfig, settings, file=str(path), subject="comparison", page="docs/evaluation.md"
    )


def _beside(settings: Mapping[str, Any], path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Settings with the file names of the file itself made relative to its folder."""
    given = [override.partition("=")[0] for override in overrides]
    folder = Path(path).expanduser().parent

    def place(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: place(f"{key}.{name}", inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [place(key, inner) for inner in value]
        if not isinstance(value, str) or is_within(key, given):
            return value
        is_file = is_within(key, FILES) or (
            is_within(key, PERHAPS_FILES) and (folder / value.partition(":")[0]).exists()
        )
        return str(folder / Path(value).expanduser()) if is_file else value

    cache = ComparisonConfig.__dataclass_fields__["cache"].default
    return {key: place(key, value) for key, value in {"cache": cache, **settings}.items()}
