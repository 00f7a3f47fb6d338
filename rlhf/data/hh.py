"""Anthropic's HH transcripts (Bai et al. 2022): whole dialogues as text, ``\\n\\nHuman: ...\\n\\nAssistant: ...``.

They are converted to rows in the ``messages`` format, so that later modules see one format. Exact repetitions of a pair
are quarantined, in HH only: there they are an artefact of collection; in other data, equal comparisons by two people
are two votes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rlhf.data.read import RawRow
from rlhf.records import BadRow, RowLocation

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def looks_like_hh(columns: dict[str, object]) -> bool:
    """Whether both answers are transcripts that begin with the human's turn."""
    return all(_is_transcript(columns.get(name)) for name in ("chosen", "rejected"))


def _is_transcript(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def rows_from_transcripts(raws: Iterable[RawRow | BadRow]) -> Iterator[RawRow | BadRow]:
    """Convert preference rows of transcripts to messages; a row that is no transcript becomes a bad row."""
    seen: dict[tuple[str, str], RowLocation] = {}
    for raw in raws:
        yield raw if isinstance(raw, BadRow) else _convert(raw, seen)


def _convert(raw: RawRow, seen: dict[tuple[str, str], RowLocation]) -> RawRow | BadRow:
    for name in ("chosen", "rejected"):
        if not _is_transcript(raw.columns.get(name)):
            return BadRow(raw.source, f"not a transcript: {name} is {raw.columns.get(name)!r:.60}")
    chosen, rejected = str(raw.columns["chosen"]), str(raw.columns["rejected"])
    first = seen.setdefault((chosen, rejected), raw.source)
    if first != raw.source:
        return BadRow(raw.source, f"duplicate: the same as {first}")
    return replace(raw, columns={**raw.columns, "chosen": messages(chosen), "rejected": messages(rejected)})


def messages(transcript: str) -> list[dict[str, str]]:
    """The turns of a transcript as messages, without white space around each turn."""
    parts = _TURN.split(transcript)  # text before the first turn, then name and text of each turn
    return [{"role": ROLES[name], "content": text.strip()} for name, text in zip(parts[1::2], parts[2::2], strict=True)]
