"""Marks: what identifies deleted traces in any text, so that a search can tell whether something of them is left.

Marks are the traces' ids, and words of what people wrote that hardly occur by chance: eight or more letters and digits,
with both. A mark that a remaining trace has too says nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.windows import HOUR, Window

WORD = re.compile(r"[0-9A-Za-z]{8,}")
WORD_IN_BYTES = re.compile(rb"[0-9A-Za-z]{8,}")
ESCAPED = re.compile(rb"\\+(?:[bfnrt]|u[0-9A-Fa-f]{4})")  # in JSON: its letter does not belong to the next word
SHORTEST_ID = 6  # of a user; a shorter one occurs by chance
MOST_WORDS = 100_000
WORDS_AT_A_TIME = 20
COLUMNS = ("trace_id", "user_id", "session_id", "client_request_id", "request", "response", "tags", "metadata")
OWN_KEYS = ("mlflow.", "monitoring_pipeline.", "monitoring.")  # of tags and metadata that programs set


@dataclass(frozen=True)
class Marks:
    """The marks of deleted traces: ids of traces, distinctive words, and ids of users that are not just letters."""

    trace_ids: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()

    def found_in(self, text: str | bytes) -> set[str]:
        """Return the marks in the text, which may be JSON."""
        data = ESCAPED.sub(b" ", text.encode("utf-8", "replace") if isinstance(text, str) else text)
        found = {word for each in WORD_IN_BYTES.findall(data) if (word := each.decode()) in self.words}
        return found | {match.decode() for match in self._users_in_bytes.findall(data)}

    @functools.cached_property
    def _users_in_bytes(self) -> re.Pattern[bytes]:
        named = b"|".join(re.escape(user.encode()) for user in sorted(self.users)) or rb"(?!)"
        return re.compile(rb"(?<!\w)(?:" + named + rb")(?!\w)")

    def without_words(self, text: str, words: Collection[str], instead: str) -> str:
        """Return the text with `instead` in place of those of the words, and of the ids of users among them."""
        for user in self.users.intersection(words):
            text = text.replace(user, instead)
        return WORD.sub(lambda match: instead if match[0] in words else match[0], text)


def marks_of(lake: LakeResource, by_hour: Mapping[datetime, Collection[str]], user_ids: Collection[str] = ()) -> Marks:
    """Return the marks of the traces with these ids (by their hour), as far as the lake still has them."""
    words: set[str] = set()
    for hour, ids in by_hour.items():
        for text in _texts(lake, Window(hour, hour + HOUR), ids):
            words.update(filter(_is_distinctive, WORD.findall(text)))
            if len(words) > MOST_WORDS:
                break
    trace_ids = frozenset().union(*by_hour.values())
    words.update(word for trace_id in trace_ids for word in WORD.findall(trace_id))
    users = (user_id for user_id in user_ids if len(user_id) >= SHORTEST_ID and not user_id.isalpha())
    return Marks(trace_ids, frozenset(words), frozenset(users))


def only_of_deleted(lake: LakeResource, marks: Marks, found: Collection[str]) -> set[str]:
    """Return which of the marks in `found` no remaining trace has; reads the whole archive if there are any."""
    from pyspark.sql import functions as F

    left: set[str] = set()
    if not found:
        return left
    archived = lake.read(AGENT_TRACES).select("trace_id", F.col("trace_json").alias("text"))
    unread = lake.read(QUARANTINED_TRACES).select("trace_id", F.col("raw").alias("text"))
    others = archived.unionByName(unread).where(~F.col("trace_id").isin(*marks.trace_ids))
    ordered = sorted(found)
    for start in range(0, len(ordered), WORDS_AT_A_TIME):
        some = ordered[start : start + WORDS_AT_A_TIME]
        has = [F.max(F.contains("text", F.lit(mark)).cast("int")).alias(f"m{n}") for n, mark in enumerate(some)]
        row = others.agg(*has).collect()[0]
        left |= {mark for n, mark in enumerate(some) if not row[f"m{n}"]}
    return left


def _is_distinctive(word: str) -> bool:
    return not word.isalpha() and not word.isdigit()


def _texts(lake: LakeResource, window: Window, ids: Collection[str]) -> Iterator[str]:
    """What people and agents wrote into these traces."""
    from pyspark.sql import functions as F

    columns = (*COLUMNS, "spans", "assessments")
    rows = lake.read(AGENT_TRACES, window).where(F.col("trace_id").isin(*ids)).select(*columns).toArrow()
    for row in rows.to_pylist():
        yield from _written(row)
    unread = lake.read(QUARANTINED_TRACES, window).where(F.col("trace_id").isin(*ids)).select("raw").toArrow()
    yield from filter(None, unread["raw"].to_pylist())


def _written(row: dict[str, Any]) -> Iterator[str]:
    for name in COLUMNS:
        if name not in ("tags", "metadata"):
            yield row[name] or ""
    maps = [row["tags"], row["metadata"]]
    for span in row["spans"] or ():
        yield from (span[name] or "" for name in ("inputs", "outputs", "status_message"))
        maps += [span["tags"], span["metadata"], *(event["attributes"] for event in span["events"] or ())]
    for assessment in row["assessments"] or ():
        yield from (assessment[name] or "" for name in ("value", "rationale", "error_message"))
    for pairs in maps:
        yield from (value or "" for key, value in pairs or () if not key.startswith(OWN_KEYS))
