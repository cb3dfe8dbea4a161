"""Text: parses JSON, hides secrets, escapes untrusted text for reports, and formats numbers."""

from __future__ import annotations

import functools
import html
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

MISSING = "\N{EN DASH}"

# control characters, line and paragraph separators, bidirectional overrides and isolates, lone surrogates
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]()#!|~$])")
# positions at which GitHub-flavoured Markdown would turn bare text into a link
_AUTOLINK = re.compile(r"(?<=www)(?=\.)|(?<=:)(?=//)|(?<=@)", re.IGNORECASE)
_SECRET = re.compile("key|token|secret|passw|credential", re.IGNORECASE)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how formulas of spreadsheet programs start
SHORTEST_SECRET = 8  # a shorter value may be part of any word
_ZERO_WIDTH_SPACE = "\u200b"


def parse_json(text: str) -> Any:
    """`json.loads(text)`, more than twice as fast.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return from_json(text, cache_strings="keys")
    except (TypeError, ValueError):  # not JSON, or what Python alone accepts: a lone surrogate, nesting deeper than 200
        return json.loads(text)


def json_or_text(text: str | None, allow_nan: bool = True) -> Any:
    """`text` parsed as JSON, or `text` itself if it is not JSON; None for None.

    `allow_nan`: NaN and Infinity, which Python's JSON has beyond the standard, are numbers.
    """
    if text is None:
        return None
    try:
        return parse_json(text) if allow_nan else json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def without_secrets(text: str) -> str:
    """`text` with `***` for the values of environment variables whose names say that they are secret."""
    for secret in secrets():
        text = text.replace(secret, "***")
    return text


@functools.cache
def secrets() -> tuple[str, ...]:
    """The values that `without_secrets` hides: those of the environment when they were first needed."""
    of_secrets = (value for name, value in os.environ.items() if _SECRET.search(name))
    return tuple(value for value in of_secrets if len(value) >= SHORTEST_SECRET and not value.isdigit())


def plain(text: str, limit: int = 300) -> str:
    """`text` on one line, without control or direction-changing characters, at most `limit` characters long.

    Removed characters become a space, runs of white space become one space, and a cut text ends in an ellipsis. The
    result can be encoded as UTF-8 and must still be escaped for the output language.
    """
    # 4 times the limit is enough to fill a line and keeps a text of many megabytes cheap
    line = " ".join(_UNSEEN.sub(" ", text[: 4 * limit]).split())
    if len(line) <= limit and len(text) <= 4 * limit:
        return line
    return line[: limit - 1].rstrip() + "…"


def cell(text: str) -> str:
    """`text` for a cell of a CSV file: a quote comes before what a spreadsheet program would compute as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def escape_html(text: str, limit: int = 300) -> str:
    """`plain(text, limit)` escaped for an HTML element or a quoted attribute."""
    return html.escape(plain(text, limit))


def escape_markdown(text: str, limit: int = 120) -> str:
    """`plain(text, limit)` escaped for a line or a table cell of Markdown.

    The result cannot produce HTML, links, images, emphasis, code or cell borders in CommonMark or GitHub-flavoured
    Markdown; an invisible space keeps addresses from becoming links.
    """
    unlinked = _AUTOLINK.sub(_ZERO_WIDTH_SPACE, plain(text, limit))
    return _MARKDOWN.sub(r"\\\1", html.escape(unlinked, quote=False))


def count(value: float) -> str:
    """A count with thousands separators, such as 12,345."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def millions(value: float) -> str:
    """A count, in millions from a million on, such as 4.1 M."""
    return f"{value / 1e6:,.1f} M" if value >= 1e6 else count(value)


def percent(share: float) -> str:
    """A share between 0 and 1 as a percentage; only exactly 0 and 1 show as 0 % and 100 %."""
    if not math.isfinite(share):
        return MISSING
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    digits = 0 if share in (0, 1) or 0.0995 <= share < 0.9 else 1
    return f"{100 * share:.{digits}f} %"


def duration(duration_ms: float) -> str:
    """A duration in a unit that fits its length: 0.4 ms, 850 ms, 9.1 s, 2 min 05 s, 1 h 12 min."""
    if not math.isfinite(duration_ms):
        return MISSING
    if duration_ms < 9.95:
        return f"{duration_ms:.2g} ms"
    if duration_ms < 999.5:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 59_950:
        return f"{duration_ms / 1000:.1f} s"
    seconds = round(duration_ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def cost(cost_usd: float) -> str:
    """An amount in US dollars, such as $1,234.50; four decimals below $0.10, two significant digits below $0.001."""
    if not math.isfinite(cost_usd):
        return MISSING
    if 0 < cost_usd < 0.001:
        return f"${cost_usd:.{1 - math.floor(math.log10(cost_usd))}f}"
    return f"${cost_usd:,.4f}" if 0 < cost_usd < 0.1 else f"${cost_usd:,.2f}"


def score(value: float) -> str:
    """A score with two decimals."""
    return f"{value:.2f}" if math.isfinite(value) else MISSING


def interval(low: float, high: float, shown: Callable[[float], str] = score) -> str:
    """An interval, such as 0.81 to 0.94."""
    return f"{shown(low)} to {shown(high)}" if math.isfinite(low) and math.isfinite(high) else MISSING
