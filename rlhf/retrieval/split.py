"""Splits documents into training and evaluation, so that no document, and no text, is on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rlhf.data.split import split_by_prompt
from rlhf.retrieval.passages import Passage, Question
from rlhf.retrieval.words import words_of

TRAIN, EVALUATION = "train", "evaluation"
SIDES = (TRAIN, EVALUATION)


def split_documents(
    passages: Sequence[Passage], questions: Sequence[Question], evaluation_fraction: float, seed: int
) -> list[str]:
    """The side of every passage, parallel to ``passages``: a hash of its group's first document and the seed decides.

    Documents are in one group if they have a passage of the same words, or if one question names passages of both. A
    large group makes the fraction inexact.

    Args:
        questions: those with unknown oracles are ignored.
        evaluation_fraction: fraction of the groups, in [0, 1).
    """
    groups = _groups(passages, questions)
    keys = sorted(set(groups.values()))
    _, held_out = split_by_prompt(keys, evaluation_fraction, seed)
    evaluation = {keys[i] for i in held_out}
    return [EVALUATION if groups[passage.document] in evaluation else TRAIN for passage in passages]


def _groups(passages: Sequence[Passage], questions: Sequence[Question]) -> Mapping[str, str]:
    """Document → name of its group: the first of the group's documents in alphabetical order."""
    document_of = {passage.id: passage.document for passage in passages}
    same_words: dict[tuple[str, ...], list[str]] = {}
    for passage in passages:
        same_words.setdefault(tuple(words_of(passage.text)), []).append(passage.document)
    asked = ([document_of[name] for name in question.oracles if name in document_of] for question in questions)
    return _join(dict.fromkeys(document_of.values()), [*same_words.values(), *asked])


def _join(names: Iterable[str], links: Iterable[Sequence[str]]) -> Mapping[str, str]:
    """Connected components: name → smallest name of its component."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for linked in links:
        for name in linked[1:]:
            first, second = sorted((root(linked[0]), root(name)))
            parent[second] = first
    return {name: root(name) for name in parent}
