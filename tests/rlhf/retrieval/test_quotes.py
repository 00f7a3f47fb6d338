from __future__ import annotations

from rlhf.retrieval.quotes import Evidence, find_evidence, given_evidence, support_of
from tests.rlhf.retrieval.corpora import texts


def test_support_is_a_fraction_of_distinct_words() -> None:
    assert support_of("The inn costs 60 crowns.", "60 crowns, crowns!") == 1.0
    assert support_of("The inn costs 60 crowns.", "it costs 65 crowns") == 0.5
    assert support_of("The inn.", "...") == 0.0


def test_the_best_sentence_is_quoted_and_the_shortest_of_equal_ones() -> None:
    (passage,) = passages = texts("The old inn costs 60 crowns. It costs 60 crowns. It opens at 6.")
    assert find_evidence("60 crowns", passages) == Evidence(passage=passage, quotes=("It costs 60 crowns.",))


def test_each_sentence_of_the_answer_has_its_quote_in_the_answers_order() -> None:
    (passage,) = passages = texts("It opens at 6. The inn is old. A night costs 60 crowns.")
    found = find_evidence("A night costs 60. The weather is fine here today. It opens early at 6.", passages)
    assert found == Evidence(passage=passage, quotes=("A night costs 60 crowns.", "It opens at 6."))


def test_the_oracle_that_supports_most_is_quoted() -> None:
    passages = texts("A night costs 60.", "A night costs 60 crowns.", "A night costs 60 crowns.")
    assert find_evidence("60 crowns", passages) == Evidence(passage=passages[1], quotes=("A night costs 60 crowns.",))


def test_half_of_the_words_is_no_support() -> None:
    assert find_evidence("the attic", texts("It is in the room.")) is None
    assert find_evidence("the cold attic", texts("It is in the attic.")) is not None


def test_a_given_quote_is_verbatim() -> None:
    passages = texts("One two.", "It costs 60 crowns.")
    assert given_evidence("costs 60", passages) == Evidence(passage=passages[1], quotes=("costs 60",))
    assert given_evidence("Costs 60", passages) is None
