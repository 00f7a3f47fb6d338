"""FineGrainedRLHF's questions (Wu et al. 2023) and their grounding passages, for ``rlhf retrieval``.

    python -m examples.finegrained.passages dev_feedback.json --out data/finegrained

A row of <https://github.com/allenai/FineGrainedRLHF> (``tasks/qa_feedback/data``) holds a question, a long answer
(``gold``), and passages that ground it: lists of a title and sentences. Any of them may be the oracle; which sentence
is quoted is for the builder to find. It rejects questions without passages, and those whose answer no sentence
supports. Passages of one article are one document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.storage.jsonl import to_line

NEEDED = ("question", "gold", "passages")


def convert(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Passages, each once, and questions.

    Raises:
        UserError: a row has no question, answer or passages.
    """
    passages, questions = dict[str, dict[str, object]](), []
    for row in rows:
        if missing := [name for name in NEEDED if name not in row]:
            fix = "give train_feedback.json or dev_feedback.json of FineGrainedRLHF's qa_feedback"
            raise UserError(f"a row has no {missing[0]}", fix=fix)
        found = [_passage(passage) for passage in row["passages"]]
        passages |= {str(passage["id"]): passage for passage in found}
        oracles = [passage["id"] for passage in found]
        questions.append({"question": row["question"], "answer": row["gold"], "oracle": oracles})
    return list(passages.values()), questions


def _passage(parts: Sequence[str]) -> dict[str, object]:
    """The title is the first part; the first passage of an article repeats it before its first sentence."""
    title, text = parts[0], "\n".join(parts[1:]).removeprefix(parts[0]).strip()
    name = blake2b(f"{title}\0{text}".encode(), digest_size=8).hexdigest()
    return {"id": name, "title": title, "text": text, "document": title}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``passages.jsonl`` and ``questions.jsonl``; returns the exit code."""
    parser = argparse.ArgumentParser(description="FineGrainedRLHF's passages and questions for rlhf retrieval.")
    parser.add_argument("file", type=Path, help="train_feedback.json or dev_feedback.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    try:
        passages, questions = convert(json.loads(options.file.read_text(encoding="utf-8-sig")))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("passages", passages), ("questions", questions)):
        (options.out / f"{name}.jsonl").write_text("".join(map(to_line, rows)), encoding="utf-8")
    print(f"{len(passages):,} passages, {len(questions):,} questions → {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
