"""Error signatures: error messages with the parts masked that differ between occurrences of the same error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

NO_MESSAGE = "(no message)"
TRACEBACK = "Traceback (most recent call last):"
# Messages are masked before they are cut, so that the signature does not depend on where a long value is cut off.
MASKED_CHARACTERS, SIGNATURE_CHARACTERS = 1000, 300

# Patterns and their replacements. Python, Java (Spark) and Rust (Sail) must all accept the patterns, so they use no
# look-around and spell out ASCII classes. Group 1 is the preceding text and is kept; _WORD_START matches where a word
# begins.
_HEX = "[0-9A-Fa-f]"
_WORD_START = "(^|[^0-9A-Za-z_])"
_NAME = "[0-9A-Za-z_.@%+~-]+"
MASKS = (
    (r"()[\x00-\x20\x7f]+", " "),
    (r"()[A-Za-z][A-Za-z0-9+.-]*://[^ \"'<>()]+", "<url>"),
    (
        "()[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?",
        "<time>",
    ),
    ("()[0-9]{1,2}:[0-9]{2}:[0-9]{2}([.,][0-9]+)?", "<time>"),
    (f"(){_HEX}{{8}}-({_HEX}{{4}}-){{3}}{_HEX}{{12}}", "<*>"),
    ('()"[^"]*("|$)', "<value>"),
    ("()`[^`]*(`|$)", "<value>"),
    (f"{_WORD_START}'[^']*('|$)", "<value>"),
    (rf"(^|[^0-9A-Za-z_.~/\\:])(~|[.]{{1,2}}|[A-Za-z]:)?([/\\]{_NAME})+[/\\]?", "<path>"),
    (rf"{_WORD_START}[.]{{0,2}}[0-9A-Za-z_-]{_NAME}([/\\]{_NAME}){{2,}}", "<path>"),
    # Numbers and ids get the same mask, because an id may be all digits.
    (f"{_WORD_START}(0x{_HEX}+|{_HEX}{{8,}})[0-9A-Za-z_]*", "<*>"),
    (f"{_WORD_START}[A-Za-z_]*[0-9]+([.,:][0-9]+)*[0-9A-Za-z_]*", "<*>"),
)
_COMPILED = [(re.compile(pattern, re.ASCII), mask) for pattern, mask in MASKS]


def error_signature(message: str | None) -> str:
    """The telling line of the message with ids, numbers, quoted values, paths, URLs and times masked.

    The telling line is the first, or the last of a Python traceback. Returns at most 300 characters; NO_MESSAGE without
    a message.
    """
    line = telling_line(message)
    for pattern, mask in _COMPILED:
        line = pattern.sub(rf"\g<1>{mask}", line)
    return line.strip(" ")[:SIGNATURE_CHARACTERS].rstrip(" ") or NO_MESSAGE


def telling_line(message: str | None) -> str:
    """The first line of the message, or the last of a Python traceback, at most 1,000 characters; "" without one."""
    text = (message or "").strip(" \t\r\n")
    line = text.rpartition("\n")[2] if text.startswith(TRACEBACK) else text.partition("\n")[0]
    return line.strip(" \t\r")[:MASKED_CHARACTERS]


def signature_column(line: Column) -> Column:
    """`error_signature` of a column from `telling_line_column`."""
    from pyspark.sql import functions as F

    for pattern, mask in MASKS:
        line = F.regexp_replace(line, pattern, f"$1{mask}")
    cut = F.rtrim(F.substring(F.trim(line), 1, SIGNATURE_CHARACTERS))
    return F.when(cut == "", NO_MESSAGE).otherwise(cut)


def telling_line_column(message: Column) -> Column:
    """`telling_line` of a column of messages, never null."""
    from pyspark.sql import functions as F

    text = F.trim(F.coalesce(message, F.lit("")), F.lit(" \t\r\n"))
    line = F.when(text.startswith(TRACEBACK), F.substring_index(text, "\n", -1)).otherwise(
        F.substring_index(text, "\n", 1)
    )
    return F.substring(F.trim(line, F.lit(" \t\r")), 1, MASKED_CHARACTERS)
