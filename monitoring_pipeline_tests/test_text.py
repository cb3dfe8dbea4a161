from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from monitoring_pipeline import text

HOSTILE = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("<>&\"'|[]()!*_#`~\\$@:/w.-+=\n\r\t\x00\u202e\ud800"))
)
# the patterns of GitHub-flavoured Markdown's autolink extension, in the text that a reader sees
AUTOLINK = re.compile(r"(https?|ftp)://|www\.\w|[\w.+-]+@[\w-]+\.", re.IGNORECASE)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def outcome_of(parse: Callable[[str], Any], given: str) -> tuple[str, list[str]]:
    """The value with its types, the sign of zero and the order of keys, or the type of the error."""
    try:
        return repr(parse(given)), []
    except (ValueError, RecursionError) as error:
        return "", [type(error).__name__]


@given(
    st.one_of(
        st.text(alphabet='{}[]",:0123456789-+.eE\\/utrfalsNaInity \n\x01\ud800'),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
            lambda inner: st.lists(inner) | st.dictionaries(HOSTILE, inner),
        ).map(json.dumps),
    )
)
@example('{"a": 1, "b": 2, "a": 3}')
@example('"\\ud83d\\ude00 \\ud83d"')
@example("[-0, -0.0, 1e400, NaN, -Infinity, 1E5, 1.50, 123456789012345678901234567890]")
@example("[" * 300 + "]" * 300)
@example("[" * 100_000)
def test_json_is_parsed_as_by_python(given: str) -> None:
    assert outcome_of(text.parse_json, given) == outcome_of(json.loads, given)


def seen_in_table_cell(cell: str) -> str:
    """The text of the first cell of a table row; fails if the cell is anything but text or the row breaks."""
    tokens = MARKDOWN.parse(f"| a | b |\n|---|---|\n| {cell} | end |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert [token.type for token in tokens].count("td_open") == 2
    assert cells[-1].content == "end"
    children = cells[2].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    return "".join(child.content for child in children)


@given(HOSTILE)
@example("<script>alert(1)</script> ![x](http://a.b/c.png) | `code` **bold** ~~gone~~ $x$")
@example("&lt;img src=x onerror=alert(1)&gt; &#124; \\| \\\\| \\")
@example("see www.example.com, mail me@example.com or http://example.com/a_b_c")
@example("| --- |\n<!-- a comment --> [^1]: note")
def test_markdown_shows_the_text_and_only_text(hostile: str) -> None:
    seen = seen_in_table_cell(text.escape_markdown(hostile, limit=10_000))
    assert seen.replace("\u200b", "") == text.plain(hostile, limit=10_000).replace("\u200b", "")
    assert not AUTOLINK.search(seen)


@given(HOSTILE)
def test_markdown_contains_no_angle_bracket_and_no_line_break(hostile: str) -> None:
    assert not re.search(r"[<>\n\r]", text.escape_markdown(hostile))


@given(HOSTILE)
def test_html_is_one_text_without_elements(hostile: str) -> None:
    found: list[str] = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)

    Elements().feed(text.escape_html(hostile))
    assert found == []
    assert html.unescape(text.escape_html(hostile)) == text.plain(hostile)


@given(HOSTILE, st.integers(min_value=2, max_value=50))
def test_plain_is_one_short_visible_line(hostile: str, limit: int) -> None:
    line = text.plain(hostile, limit)
    assert len(line) <= limit
    assert line == line.strip()
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(character) for character in line} & {
        *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    line.encode()


def test_plain_keeps_ordinary_text_of_any_script() -> None:
    for kept in ("Größe: 3 µs", "שלום עולם", "東京", "👩‍🚀 ok", "a" * 300):
        assert text.plain(kept) == kept


def test_plain_cuts_with_an_ellipsis() -> None:
    assert text.plain("abcdefgh", 5) == "abcd…"
    assert text.plain("a" * 50_000_000, 5) == "aaaa…"
    assert text.plain(" " * 100 + "x", 5) == "…"


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        *[(0, "0 %"), (1, "100 %"), (0.0004, "< 0.1 %"), (0.9996, "> 99.9 %"), (0.031, "3.1 %"), (0.41, "41 %")],
        *[(0.0996, "10 %"), (0.985, "98.5 %"), (math.nan, text.MISSING)],
    ],
)
def test_percent(share: float, shown: str) -> None:
    assert text.percent(share) == shown


@pytest.mark.parametrize(
    ("duration_ms", "shown"),
    [
        *[(0, "0 ms"), (0.42, "0.42 ms"), (9.96, "10 ms"), (850, "850 ms"), (999.6, "1.0 s"), (9100, "9.1 s")],
        *[(59_960, "1 min 00 s"), (125_000, "2 min 05 s"), (4_320_000, "1 h 12 min"), (math.inf, text.MISSING)],
    ],
)
def test_duration(duration_ms: float, shown: str) -> None:
    assert text.duration(duration_ms) == shown


def test_other_numbers() -> None:
    assert [text.count(12345), text.count(math.nan)] == ["12,345", text.MISSING]
    assert [text.millions(999_999), text.millions(4_057_000), text.millions(math.nan)] == ["999,999", "4.1 M", "\u2013"]
    assert [text.cost(0), text.cost(0.0123), text.cost(1234.5), text.cost(math.nan)] == [
        *("$0.00", "$0.0123", "$1,234.50", text.MISSING)
    ]
    assert [text.interval(0.812, 0.9), text.interval(math.nan, 1)] == ["0.81 to 0.90", text.MISSING]


@pytest.mark.parametrize("given", ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_cell_is_no_formula(given: str) -> None:
    assert text.cell(given) == f"'{given}"


@pytest.mark.parametrize("given", ["", "yes", "a=b", "'=1", " x"])
def test_other_cells_stay_as_they_are(given: str) -> None:
    assert text.cell(given) == given
