"""Small parts of the labelling page: limits, session times, languages, buttons, tickets, Markdown, and examples."""

from __future__ import annotations

import re

import pytest
from cryptography.fernet import Fernet

from launch.feedback.choices import BUTTONS, OTHER_KEYS, REASON_KEYS, SCALE_KEYS, button_of, choice_of, reason_keys
from launch.feedback.examples import check_guidelines, guidelines_html
from launch.feedback.limits import MOST_KEYS, Rate, RateLimit
from launch.feedback.markdown import LONGEST, to_html
from launch.feedback.practice import agrees
from launch.feedback.render import FOLDER
from launch.feedback.session_time import SessionTimes
from launch.feedback.texts import LANGUAGES, TEXTS, choose_language
from launch.feedback.tickets import Ticket, Tickets
from rlhf.errors import UserError
from rlhf.feedback.records import Choice


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    limit = RateLimit(Rate(burst=3, per_second=0.5), clock)
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert limit.take("b") == 0
    clock.now = 1.5
    assert limit.take("a") == 0.5
    clock.now = 2.0
    assert limit.take("a") == 0
    clock.now = 1000.0
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 2]  # never more than the burst


def test_buckets_take_bounded_memory() -> None:
    limit = RateLimit(Rate(burst=1, per_second=1), Clock())
    for number in range(MOST_KEYS + 1):
        assert limit.take(str(number)) == 0
    assert limit.take("0") == 0  # forgotten
    assert limit.take(str(MOST_KEYS)) == 1


def test_a_session_ends_with_a_pause() -> None:
    times = SessionTimes()
    assert not times.is_known("a")
    times.learn("a", [5000.0, 100.0, 5600.0])
    assert times.is_known("a")
    assert times.see("a", 6000.0) == 1000.0  # since 5000, after the pause
    assert times.see("a", 6000.0 + 1801.0) == 0.0
    assert times.see("b", 7.0) == 0.0


def test_every_text_is_there_in_every_language_with_the_same_gaps() -> None:
    for name, variants in TEXTS.items():
        assert set(variants) == set(LANGUAGES), name
        gaps = {
            language: sorted(part.partition("}")[0] for part in text.split("{")[1:])
            for language, text in variants.items()
        }
        assert gaps["en"] == gaps["ja"], name
        assert all(variants.values())


@pytest.mark.parametrize(
    ("wish", "kept", "accepted", "expected"),
    [
        ("ja", "en", "en", "ja"),
        ("xx", "ja", "en", "ja"),
        (None, None, "de, ja;q=0.9, en;q=0.8", "ja"),
        (None, None, "ja;q=0.1, en-GB;q=0.8", "en"),
        (None, None, "ja;q=0, en", "en"),
        (None, None, "ja;q=much", "en"),
        (None, None, None, "en"),
    ],
)
def test_the_language_of_a_visitor(wish: str | None, kept: str | None, accepted: str | None, expected: str) -> None:
    assert choose_language(wish, kept, accepted) == expected


def test_buttons_mean_choices_in_the_items_order() -> None:
    assert choice_of("a_much", False) is Choice.FIRST_MUCH
    assert choice_of("a_much", True) is Choice.SECOND_MUCH
    assert choice_of("b_slightly", True) is Choice.FIRST_SLIGHTLY
    assert choice_of("tie", True) is Choice.TIE
    assert set(BUTTONS.values()) == set(Choice)
    assert all(
        button_of(choice_of(name, is_swapped), is_swapped) == name for name in BUTTONS for is_swapped in (True, False)
    )
    with pytest.raises(ValueError, match="first_much"):
        choice_of("first_much", False)


def test_each_key_has_one_use() -> None:
    keys = [*SCALE_KEYS.values(), *OTHER_KEYS.values(), *REASON_KEYS, "u", "g", "c"]
    assert len(set(keys)) == len(keys)
    assert set(SCALE_KEYS) | set(OTHER_KEYS) == set(BUTTONS)
    assert reason_keys(tuple("abcdefghijkl"))[-3:] == [("j", ""), ("k", ""), ("l", "")]


@pytest.mark.parametrize(
    ("choice", "gold", "expected"),
    [
        (Choice.FIRST_SLIGHTLY, Choice.FIRST_MUCH, True),
        (Choice.SECOND_MUCH, Choice.FIRST_MUCH, False),
        (Choice.TIE, Choice.FIRST_MUCH, False),
        (Choice.TIE, Choice.TIE, True),
        (Choice.BOTH_BAD, Choice.TIE, False),
        (Choice.SKIP, Choice.TIE, False),
    ],
)
def test_a_choice_agrees_with_a_known_one(choice: Choice, gold: Choice, expected: bool) -> None:
    assert agrees(choice, gold) is expected


def test_tickets_are_opaque_of_one_length_and_bound_to_the_project() -> None:
    tickets = Tickets(b"k" * 32)
    label = Ticket(item="0" * 32, rater="r1", is_swapped=False)
    repeat = Ticket(item="1" * 32, rater="r1", is_swapped=True, is_repeat=True)
    sealed = [tickets.seal(ticket) for ticket in (label, repeat)]
    assert tickets.open(sealed[1])[0] == repeat
    assert len(sealed[0]) == len(sealed[1]) and tickets.seal(label) != sealed[0]
    for wrong in (sealed[0][:-2], sealed[0].swapcase(), "", "é", Tickets(b"o" * 32).seal(label)):
        with pytest.raises(ValueError, match="not valid"):
            tickets.open(wrong)


def test_an_old_ticket_is_refused() -> None:
    key = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="  # base64 of 32 times "k"
    old = Fernet(key).encrypt_at_time(b'["0", "r1", 0, 0, 0]', 1_000_000_000).decode()
    with pytest.raises(ValueError, match="not valid"):
        Tickets(b"k" * 32).open(old)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*a* **b** `c`", "<p><em>a</em> <strong>b</strong> <code>c</code></p>\n"),
        ("# a", '<p class="heading">a</p>\n'),
        ("[a](javascript:x)", "<p>[a](javascript:x)</p>\n"),
        ("[a]: javascript:x\n\n[a]", "<p>[a]: javascript:x</p>\n<p>[a]</p>\n"),
        ("<http://x.y> http://x.y", "<p>&lt;http://x.y&gt; http://x.y</p>\n"),
        ("![a](x.png)", "<p>![a](x.png)</p>\n"),
        ("<b onclick=x>\n\n<!-- c -->", "<p>&lt;b onclick=x&gt;</p>\n<p>&lt;!-- c --&gt;</p>\n"),
        ("a\nb", "<p>a<br />\nb</p>\n"),
        ("a\x1b[2J\ud800", "<p>a␛[2J\\ud800</p>\n"),
        ('```x" onclick="y\n</code>\n```', '<pre><code class="language-x&quot;">&lt;/code&gt;\n</code></pre>\n'),
    ],
)
def test_markdown_is_rendered_without_links_and_html(text: str, expected: str) -> None:
    assert to_html(text) == expected


def test_a_table_has_no_inline_style() -> None:
    html = to_html("|a|b|\n|-|:-:|\n|1|2|")
    assert '<td class="to-center">2</td>' in html and "style" not in html


def test_a_long_text_is_shown_as_it_is() -> None:
    assert to_html("*" * (LONGEST + 1)) == f'<div class="plain">{"*" * (LONGEST + 1)}</div>'


EXAMPLE = "# G\n\n```example\nprompt: P?\na: '*1*'\nb: <2>\nchoice: b_much\nwhy: W\n```\n\nEnd\n"


def test_guidelines_show_their_examples_in_the_readers_language() -> None:
    check_guidelines(EXAMPLE, "g.md")
    html = guidelines_html(EXAMPLE, "ja")
    assert html.index("heading") < html.index("<em>1</em>") < html.index("&lt;2&gt;") < html.index("<p>End</p>")
    assert "Bがとても良い" in html and "choice:" not in html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  \n", "g.md is empty"),
        (EXAMPLE.replace("b_much", "left"), "g.md:3: choice is 'left'"),
        (EXAMPLE.replace("why: W\n", ""), "g.md:3: the example has missing or unknown keys"),
        (EXAMPLE.replace("a: '*1*'", "a: ["), "g.md:3: the example is not YAML"),
    ],
)
def test_wrong_guidelines_are_refused_with_their_line(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_guidelines(text, "g.md")


def test_templates_name_texts_that_exist() -> None:
    named = {
        name for file in (FOLDER / "templates").glob("*.jinja") for name in re.findall(r"\bt\.(\w+)", file.read_text())
    }
    assert len(named) > 40
    assert named - set(TEXTS) == set()
