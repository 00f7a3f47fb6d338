"""FineGrainedRLHF's preferences (Wu et al. 2023), six pairs a row, as one pair a line.

    python -m examples.finegrained.pairs dev_feedback.json --out pairs.jsonl
    rlhf reward RECIPE data.preferences=pairs.jsonl 'data.columns={chosen: answer_1, rejected: answer_2, label: label}'

A row of <https://github.com/allenai/FineGrainedRLHF> (``tasks/qa_feedback/data``) holds a question, four answers and
six judgements: of answers 1 and 2, 1 and 3, 1 and 4, 2 and 3, 2 and 4, 3 and 4. A judgement is 1 or 2, the better one
of the pair, or 0 where there is none. All six are written, ties too: readers of the file count them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

ANSWERS = 4


def pairs_of(row: Mapping[str, Any], passages: int) -> Iterator[dict[str, object]]:
    """The pairs of a row, each with its label; the first ``passages`` that the row gives stand before the question.

    Raises:
        UserError: the row has not four answers and six judgements.
    """
    pairs = list(combinations(range(1, ANSWERS + 1), 2))
    missing = {"question", *(f"prediction {i}" for i in range(1, ANSWERS + 1))} - row.keys()
    if missing or len(row.get("preference", [])) != len(pairs):
        raise UserError(
            f"a row has no {min(missing) if missing else f'{len(pairs)} judgements in preference'}",
            fix="give train_feedback.json or dev_feedback.json of FineGrainedRLHF's qa_feedback",
        )
    texts = [" ".join(passage) for passage in row["passages"][:passages]]
    prompt = "\n\n".join([*texts, row["question"]])
    for (first, second), label in zip(pairs, row["preference"], strict=True):
        answers = {"answer_1": row[f"prediction {first}"], "answer_2": row[f"prediction {second}"]}
        yield {"prompt": f"{prompt}\n", **answers, "label": label}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pairs of a file; returns the exit code."""
    parser = argparse.ArgumentParser(description="FineGrainedRLHF's preferences as one pair a line.")
    parser.add_argument("file", type=Path, help="train_feedback.json or dev_feedback.json")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--passages", type=int, default=0, help="retrieved passages before the question (default 0)")
    options = parser.parse_args(arguments)
    try:
        rows = json.loads(options.file.read_text(encoding="utf-8-sig"))
        lines = [json.dumps(pair, ensure_ascii=False) for row in rows for pair in pairs_of(row, options.passages)]
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows):,} questions, {len(lines):,} pairs → {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
