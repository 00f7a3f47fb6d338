from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from rlhf.checkpoints.files import FileEntry
from rlhf.checkpoints.manifest import Manifest, decode, encode
from rlhf.records import DataFile

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
NAMES = ("policy/a", "state.json", "config.yaml", "versions.json")
MANIFEST = Manifest(
    step=7,
    score=-0.1,
    written="2026-01-02T03:04:05+00:00",
    files=tuple(FileEntry(name=name, bytes=0, sha256=EMPTY) for name in NAMES),
)


def signed(**changes: Any) -> str:
    """A manifest with other values and the hash that fits them."""
    body = json.loads(encode(MANIFEST)) | changes
    del body["sha256"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest})


def listing(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": name, "bytes": 0, "sha256": EMPTY} for name in NAMES[1:]] + [
        {"name": "x", "bytes": 0, "sha256": EMPTY} | changes
    ]


def test_a_manifest_is_read_back() -> None:
    assert decode(encode(MANIFEST)) == MANIFEST
    assert decode(signed(score=None)).score is None
    assert decode(signed(files=listing())).files[-1].name == "x"
    data = (DataFile("rows.jsonl", 3, "ab"),)
    assert decode(encode(replace(MANIFEST, data=data))).data == data


def test_a_manifest_from_before_data_was_kept_is_read() -> None:
    body = json.loads(encode(MANIFEST))
    del body["sha256"], body["data"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert decode(json.dumps(body | {"sha256": digest})) == MANIFEST


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": None},
        {"step": -1},
        {"step": True},
        {"step": "7"},
        {"step": 7.0},
        {"step": 10**400},
        {"score": "high"},
        {"score": float("nan")},
        {"score": float("inf")},
        {"written": None},
        {"files": None},
        {"files": "abc"},
        {"files": {"name": "x"}},
        {"files": []},
        {"files": [[]]},
        {"files": listing(name="../x")},
        {"files": listing(name="/x")},
        {"files": listing(name="state.json")},
        {"files": listing(name=5)},
        {"files": listing(bytes=-1)},
        {"files": listing(bytes=1e3)},
        {"files": listing(bytes=2**63)},
        {"files": listing(sha256="x" * 64)},
        {"files": listing(sha256=None)},
        {"files": listing(mode=5)},
        {"data": [{"file": "a", "rows": -1, "digest": "ab"}]},
        {"data": [{"file": "a", "rows": 1}]},
        {"data": 5},
    ],
    ids=str,
)
def test_a_manifest_with_other_types_is_none_even_when_its_hash_fits(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no manifest|has format") as caught:
        decode(signed(**changes))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "5", '"x"', "{}", "{", '{"sha256": 1}', "[" * 100_000, '{"a":' * 700 + "1" + "}" * 700]
    + ['{"step": ' + "9" * 5000 + "}", '{"step": 1e999}', encode(MANIFEST).replace("-0.1", "-0.2")],
    ids=range(13),
)
def test_other_texts_are_no_manifests(text: str) -> None:
    with pytest.raises(ValueError, match="is not JSON|does not hold a JSON object|does not fit its own hash"):
        decode(text)
