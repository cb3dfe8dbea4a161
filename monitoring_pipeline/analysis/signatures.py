"""What kind of error a message tells of: the message without what differs from one occurrence to the next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

NO_MESSAGE = "(no message)"
TRACEBACK = "Traceback (most recent call last):"
# Masked first and cut then, so that where a long value is cut off makes no difference.
MASKED_CHARACTERS, SIGNATURE_CHARACTERS = 1000, 300

# What is written in place of what. Read by Python, Java (Spark) and Rust (Sail) alike, so without look-around and with
# ASCII classes spelled out. Group 1 is what stands before, and stays: where a word must begin, no part of a word.
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
    # Numbers and ids alike, as an id may be all digits.
    (f"{_WORD_START}(0x{_HEX}+|{_HEX}{{8,}})[0-9A-Za-z_]*", "<*>"),
    (f"{_WORD_START}[A-Za-z_]*[0-9]+([.,:][0-9]+)*[0-9A-Za-z_]*", "<*>"),
)
_COMPILED = [(re.compile(pattern, re.ASCII), mask) for pattern, mask in MASKS]


def error_signature(message: str | None) -> str:
    """The telling line of the message with ids, numbers, quoted values, paths, addresses and times masked.

    That is the first line, or the last one of a Python traceback, at most 300 characters of it. Without a message it is
    NO_MESSAGE.
    """
    line = telling_line(message)
    for pattern, mask in _COMPILED:
        line = pattern.sub(rf"\g<1>{mask}", line)
    return line.strip(" ")[:SIGNATURE_CHARACTERS].rstrip(" ") or NO_MESSAGE


def telling_line(message: str | None) -> str:
    """The first line of the message, or the last of a Python traceback, at most 1,000 characters; "" without any."""
    text = (message or "").strip(" \t\r\n")
    line = text.rpartition("\n")[2] if text.startswith(TRACEBACK) else text.partition("\n")[0]
    return line.strip(" \t\r")[:MASKED_CHARACTERS]


def signature_column(line: Column) -> Column:
    """`error_signature` of a column that `telling_line_column` made."""
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
