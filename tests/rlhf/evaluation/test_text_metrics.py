"""Text metrics: equal to their libraries, to numbers by hand, and right for scripts without spaces."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from rlhf.evaluation.consistency import consistency
from rlhf.evaluation.text_metrics import bleu, chrf, corpus_bleu, corpus_chrf, rouge, rouge_scorer

ANSWERS = ["The cat sat on the mat.", "Kyoto has many old temples", "no"]
REFERENCES = [["A cat was sitting on the mat."], ["Kyoto has old temples.", "There are temples in Kyoto"], ["yes"]]
WITH_MARKS = "Don't re-use snake_case: 3.5km, the GOING rate's 50%!"


def test_rouge_by_hand() -> None:
    # Tokens: the cat sat on the mat / the cat is on the mat. 5 of 6 unigrams on both sides; bigrams the-cat, on-the,
    # the-mat are 3 of 5; the longest common subsequence is "the cat on the mat".
    found = rouge(["the cat sat on the mat"], [["the cat is on the mat"]])
    assert {name: values.tolist() for name, values in found.items()} == {
        "rouge1": pytest.approx([5 / 6]),
        "rouge2": pytest.approx([3 / 5]),
        "rougeL": pytest.approx([5 / 6]),
    }


def test_rouge_is_the_librarys_with_the_best_reference() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = rouge(ANSWERS, REFERENCES)
    for name, values in found.items():
        best = [max(scorer.score(r, a)[name].fmeasure for r in given) for a, given in zip(ANSWERS, REFERENCES)]
        assert values.tolist() == pytest.approx(best)
    own, library = rouge_scorer("en")._tokenizer, scorer._tokenizer
    assert own.tokenize(WITH_MARKS) == library.tokenize(WITH_MARKS)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Москва - столица", "Столица: Москва!", 1.0),
        ("Москва большая", "Москва древняя", 0.5),
        ("η Αθήνα", "η Ρώμη", 0.5),
        ("서울은 수도", "서울은 도시", 0.5),
        ("القاهرة مدينة", "القاهرة عاصمة", 0.5),
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),  # a word is not split at its vowel signs
        ("Öl", "Äl", 0.0),
        ("O\u0308l", "Öl", 1.0),  # a letter and its accent as two characters
    ],
)
def test_words_of_every_script_with_spaces_count(answer: str, reference: str, expected: float) -> None:
    assert rouge([answer], [[reference]])["rouge1"].tolist() == pytest.approx([expected])
    assert consistency([answer, answer]) == 1.0


def test_bleu_and_chrf_are_the_librarys() -> None:
    pairs = list(zip(ANSWERS, REFERENCES))
    assert bleu(ANSWERS, REFERENCES).tolist() == [sacrebleu.sentence_bleu(a, r).score for a, r in pairs]
    assert chrf(ANSWERS, REFERENCES).tolist() == [sacrebleu.sentence_chrf(a, r).score for a, r in pairs]
    streams = [
        ["A cat was sitting on the mat.", "Kyoto has old temples.", "yes"],
        [None, "There are temples in Kyoto", None],
    ]
    assert corpus_bleu(ANSWERS, REFERENCES) == sacrebleu.corpus_bleu(ANSWERS, streams).score
    assert corpus_chrf(ANSWERS, REFERENCES) == sacrebleu.corpus_chrf(ANSWERS, streams).score
    assert corpus_bleu(ANSWERS, REFERENCES) > 10


def test_an_empty_answer_has_nothing_in_common() -> None:
    assert rouge([""], [["a word"]])["rouge1"].tolist() == [0.0]
    assert bleu([""], [["a word"]]).tolist() == [0.0]
    assert chrf([""], [["a word"]]).tolist() == [0.0]


def test_japanese_rouge_counts_characters_and_whole_latin_words() -> None:
    # 京/都/は/jr/です → 京 都 は jr で す: 6 tokens; 奈 良 は jr で す: 6 tokens; は, jr, で, す are common.
    found = rouge(["京都はJRです。"], [["奈良はJRです"]], "ja")
    assert found["rouge1"].tolist() == pytest.approx([4 / 6])
    assert found["rouge2"].tolist() == pytest.approx([3 / 5])
    assert rouge(["京都は古い"], [["京都は新しい"]])["rouge1"].tolist() == [0.0]  # in a language with spaces: one word


def test_japanese_bleu_is_of_characters() -> None:
    answer, reference = "京都には古い寺が多い", "京都には古い寺がある"
    expected = sacrebleu.sentence_bleu(answer, [reference], tokenize="char").score
    assert bleu([answer], [[reference]], "ja").tolist() == [expected]
    assert expected > 50 > sacrebleu.sentence_bleu(answer, [reference]).score


def test_consistency_is_the_mean_over_pairs() -> None:
    # rougeL of (a b, a b) is 1, of (a b, c d) is 0 twice.
    assert consistency(["aa bb", "aa bb", "cc dd"]) == pytest.approx(1 / 3)
    assert np.isnan(consistency(["alone"]))
