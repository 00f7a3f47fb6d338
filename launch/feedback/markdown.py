"""Markdown to HTML that is safe for text of unknown origin: a model's answers, and the project's guidelines.

Links, images and HTML are shown as the text that they are, so that a page with an answer leads nowhere and loads
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from launch.visible import make_visible

LONGEST = 20_000
"""Longest text, in characters, that is rendered as Markdown: a hostile one of this length takes the parser 0.15 s."""
CACHED = 512
"""Number of rendered texts kept: each is shown to several raters."""

_PARSER = (
    MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
)


@lru_cache(maxsize=CACHED)
def to_html(text: str) -> Markup:
    """Render a text; one longer than ``LONGEST`` is shown as it is written."""
    visible = make_visible(text)
    if len(visible) > LONGEST:
        return Markup('<div class="plain">{}</div>').format(visible)
    return render_tokens(_PARSER.parse(visible))


def parse(text: str) -> list[Token]:
    """The tokens of a Markdown text; ``token.map`` gives their lines."""
    return _PARSER.parse(make_visible(text))


def render_tokens(tokens: Sequence[Token]) -> Markup:
    """HTML of tokens, without inline styles, which the page's content security policy forbids."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):  # a heading of an answer is none of the page
            token.tag = "p"
        if token.type == "heading_open":
            token.attrSet("class", "heading")
        elif align := token.attrs.pop("style", None):
            token.attrSet("class", str(align).replace("text-align:", "to-"))
    return Markup(_PARSER.renderer.render(tokens, _PARSER.options, {}))
