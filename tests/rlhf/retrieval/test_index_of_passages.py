"""BM25, and the index on disk."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from rlhf.config.schema import RetrievalConfig
from rlhf.errors import UserError
from rlhf.retrieval.folder import check_replaceable
from rlhf.retrieval.index import build_index, load_index, retrieve, save_index
from rlhf.retrieval.passages import Passage
from rlhf.retrieval.template import PromptTemplate
from tests.rlhf.retrieval.corpora import key_values, lexical, texts

BUILT_IN = PromptTemplate.of(RetrievalConfig())


def test_scores_are_lucenes_bm25() -> None:
    """Three passages of 2, 3 and 4 words, mean 3; k1 = 1.5, b = 0.75. "red" is in two of them, twice in the last."""
    scores = lexical(texts("red hat", "a blue hat", "red red old shoe")).ranker.scores("Red? red hat!")
    red, hat = (math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)),) * 2

    def weight(count: int, length: int) -> float:
        return count / (count + 1.5 * (1 - 0.75 + 0.75 * length / 3))

    expected = [(red + hat) * weight(1, 2), hat * weight(1, 3), red * weight(2, 4)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_titles_are_searched_and_equal_scores_keep_the_order() -> None:
    passages = [
        *texts("one", "two", "two"),
        Passage(id="x", text="four", title="Two", document="x"),
        Passage(id="y", text="five", document="y"),
    ]
    index = lexical(passages)
    assert index.search("two", 3) == [1, 2, 3]
    assert index.search("unknown", 9) == [0, 1, 2, 3, 4]
    assert index.search("", 1) == [0]


def test_a_prompt_has_as_many_passages_as_in_training() -> None:
    index = lexical(texts("red", "blue", "green", "red blue"))
    found = retrieve(index, RetrievalConfig(distractors=1), "red blue?")
    assert [passage.id for passage in found] == ["d", "a"]


def saved(folder: Path, documents: int = 40) -> RetrievalConfig:
    config = RetrievalConfig(index=str(folder / "index"))
    save_index(lexical(key_values(documents)[0]), config, BUILT_IN, Path(config.index))
    return config


def test_a_loaded_index_finds_the_same(tmp_path: Path) -> None:
    passages, questions = key_values(40)
    made, loaded = lexical(passages), load_index(saved(tmp_path), BUILT_IN)
    assert loaded.passages == tuple(passages)
    for question in questions:
        np.testing.assert_array_equal(loaded.ranker.scores(question.text), made.ranker.scores(question.text))
        assert loaded.passages[loaded.search(question.text, 1)[0]].id == question.oracles[0]


def test_equal_passages_give_equal_files_and_none_is_a_pickle(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a" / "index").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b" / "index").iterdir())
    for name in files:
        content = (tmp_path / "a" / "index" / name).read_bytes()
        assert content == (tmp_path / "b" / "index" / name).read_bytes()
        assert content[:2] != pickle.dumps(0)[:2] and name.endswith((".json", ".jsonl", ".npy"))


@pytest.mark.parametrize("name", ["passages.jsonl", "data.csc.index.npy", "vocab.index.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    config = saved(tmp_path)
    path = tmp_path / "index" / name
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} (is missing|has other content)") as refused:
        load_index(config, BUILT_IN)
    assert "rlhf retrieval index" in refused.value.fix


def test_another_template_method_or_kind_is_refused(tmp_path: Path) -> None:
    config = saved(tmp_path)
    with pytest.raises(UserError, match="prompt template"):
        load_index(config, PromptTemplate.of(RetrievalConfig(messages=True)))
    with pytest.raises(UserError, match="made with the method 'bm25'"):
        load_index(RetrievalConfig(index=config.index, method="dense", encoder="e"), BUILT_IN)
    with pytest.raises(UserError, match="there is no index"):
        load_index(RetrievalConfig(index=str(tmp_path / "none")), BUILT_IN)
    manifest = tmp_path / "index" / "manifest.json"
    for change in ({"kind": "dataset"}, {"format": 99}):
        text = manifest.read_text()
        manifest.write_text(json.dumps({**json.loads(text), **change}))
        with pytest.raises(UserError, match="is no index that this version reads"):
            load_index(config, BUILT_IN)
        manifest.write_text(text)


def test_an_index_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, documents=3)
    assert len(load_index(saved(tmp_path, documents=2), BUILT_IN).passages) == 4
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    index = build_index(texts("a"), RetrievalConfig())
    with pytest.raises(UserError, match="is no index of rlhf"):
        save_index(index, RetrievalConfig(), BUILT_IN, other)
    assert sorted(path.name for path in tmp_path.rglob("*") if "partial" in path.name) == []
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    (tmp_path / "index" / "notes").mkdir()
    (tmp_path / "index" / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes/mine.txt, which is not of the index"):
        saved(tmp_path, documents=2)


def test_a_link_and_a_manifest_without_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, documents=2)
    folder = tmp_path / "index"
    for target in (folder, tmp_path / "nowhere"):
        link = tmp_path / f"link to {target.name}"
        link.symlink_to(target)
        with pytest.raises(UserError, match="is a link"):
            check_replaceable(link, "index")
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": None}))
    with pytest.raises(UserError, match="which is not of the index"):
        check_replaceable(folder, "index")


def test_passages_without_a_word_are_refused() -> None:
    with pytest.raises(UserError, match="no passage has a word"):
        build_index(texts("...", "!?"), RetrievalConfig())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be (used|written)"):
        save_index(build_index(texts("a"), RetrievalConfig()), RetrievalConfig(), BUILT_IN, tmp_path / name)
