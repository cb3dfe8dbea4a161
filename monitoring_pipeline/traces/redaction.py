"""Redacts a trace before it is written: personal data that detectors find, the user's own patterns, and the values at
JSON paths. The result is as valid a trace as before.

Texts, keys and whole numbers are searched. JSON within a text, as in MLflow's inputs and outputs, is parsed, redacted
and written again. Ids, times, types and states of a trace and its spans are never changed.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monitoring_pipeline.settings.redaction import JSON_PATH, RedactSettings, path_steps
from monitoring_pipeline.traces.detectors import DETECTORS, Finder, Place
from monitoring_pipeline.traces.flatten import flatten_parts

KEPT_ATTRIBUTES = {"mlflow.traceRequestId", "mlflow.spanType"}
SESSION = "mlflow.trace.session"
PREVIEWS = {"mlflow.traceInputs": "mlflow.spanInputs", "mlflow.traceOutputs": "mlflow.spanOutputs"}
PREVIEW_CHARACTERS = 1000
CUT = "..."  # how MLflow ends a preview that it has cut
# The end of a cut preview, which may be part of something that is no longer recognised: digits in groups, or a word.
_CUT_OFF = re.compile(r"(?:[0-9 ()+.\-]{1,40}|\S{1,320})\.\.\.$")
_JSON_STARTS = ("{", "[", '"')
_JSON_LIKE = re.compile(r'\s*(?:\{\s*"|\[\s*[\[{"])')
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class Redactor:
    """Redacts what `settings` name. It is sent to the engine's workers."""

    settings: RedactSettings

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of `agent_traces` after redaction; `redactions` counts the replacements by detector (None: none)."""
        trace = json.loads(row["trace_json"])
        work = _Work(self.settings)
        info, spans = work.trace(trace["info"], trace["data"]["spans"])
        if not work.counts:
            return row
        kept = {"experiment_id": row["experiment_id"], "redactions": dict(work.counts)}
        return {**row, **flatten_parts(info, spans), **kept}

    def raw(self, text: str) -> str:
        """The raw text of an unreadable trace. JSON paths cannot be followed in it: with any, nothing of it is kept."""
        return _replacement(JSON_PATH) if self.settings.json_paths else self.text(text)

    def text(self, text: str) -> str:
        """A text of any kind, which may be JSON, after redaction."""
        return _Work(self.settings).text(text)


def redactor(settings: RedactSettings) -> Redactor | None:
    """The redactor for `settings`; None if they name nothing."""
    return Redactor(settings) if settings.is_on else None


class _Work:
    """The redaction of one trace; `counts` is the number of replacements by detector or pattern."""

    def __init__(self, settings: RedactSettings):
        self.counts: Counter[str] = Counter()
        self.finders = [(name, DETECTORS[name]) for name in DETECTORS if name in settings.detectors]
        self.finders = [*((name, _finder(pattern)) for name, pattern in settings.patterns.items()), *self.finders]
        self.paths = [path_steps(path) for path in settings.json_paths]

    def trace(self, info: dict[str, Any], spans: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The info and the spans of a trace (in the form of its JSON) after redaction."""
        spans = [self._span(span) for span in spans]
        metadata = self._texts(info.get("trace_metadata"))
        if SESSION in metadata and metadata[SESSION] != info["trace_metadata"][SESSION]:
            # The replacement is the same for many sessions, which must not become one.
            metadata[SESSION] = f"{metadata[SESSION]} {info['trace_id']}"
        redacted = {
            **info,
            "tags": self._texts(info.get("tags")),
            "trace_metadata": metadata,
            "request_preview": self._preview(info.get("request_preview")),
            "response_preview": self._preview(info.get("response_preview")),
            "client_request_id": self._value(info.get("client_request_id")),
            "assessments": [self._assessment(assessment) for assessment in info.get("assessments") or []],
        }
        if self.paths:
            self._preview_of_redacted(redacted, spans)
        self.counts = +self.counts
        return {name: value for name, value in redacted.items() if name in info}, spans

    def text(self, text: str) -> str:
        """The text after redaction; in JSON, each text, key and whole number is redacted."""
        if not text.lstrip()[:1].startswith(_JSON_STARTS):
            return self._plain(text)
        before = self.counts.copy()
        try:
            document = json.loads(text, object_pairs_hook=_unique)
            redacted = self.document(document)
        except (ValueError, RecursionError):
            self.counts = before
            if self.paths and _JSON_LIKE.match(text):  # a path cannot be followed in malformed JSON
                self.counts[JSON_PATH] += 1
                return _replacement(JSON_PATH)
            return self._plain(text)
        # Without a replacement, the spelling stays too.
        return text if self.counts == before else json.dumps(redacted, ensure_ascii=False)

    def document(self, document: Any) -> Any:
        """A JSON value after redaction: first the values at paths, then all texts."""
        for steps in self.paths if isinstance(document, dict | list) else ():
            document = self._without(document, steps)
        return self._value(document)

    def _span(self, span: dict[str, Any]) -> dict[str, Any]:
        status = span.get("status")
        changed = {
            **span,
            "name": self._value(span.get("name")),
            "attributes": self._attributes(span.get("attributes") or {}),
            "status": status and {**status, "message": self._value(status.get("message"))},
            "events": [self._entry(entry) for entry in span.get("events") or []],
            "links": [self._entry(entry) for entry in span.get("links") or []],
        }
        return {name: value for name, value in changed.items() if name in span}

    def _attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes of a span, each of which is JSON. What replaces a number is therefore written as JSON."""
        changed: dict[str, Any] = {}
        for key, value in attributes.items():
            if key in KEPT_ATTRIBUTES:
                changed[key] = value
                continue
            [(name, redacted)] = self._texts({key: value}).items()
            is_number = redacted != value and isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)
            changed[_free(name, changed)] = json.dumps(redacted) if is_number else redacted
        return changed

    def _entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        """An event or link of a span."""
        changed = {
            **entry,
            "name": self._value(entry.get("name")),
            "attributes": entry.get("attributes") and self._texts(entry["attributes"]),
        }
        return {name: value for name, value in changed.items() if name in entry}

    def _assessment(self, assessment: dict[str, Any]) -> dict[str, Any]:
        texts = ("rationale", "metadata", "feedback", "expectation", "issue", "source", "error")
        return {name: self.document(value) if name in texts else value for name, value in assessment.items()}

    def _preview(self, text: str | None) -> str | None:
        if not text:
            return text
        redacted = self.text(text)
        # A cut JSON text is not JSON, and detectors do not recognise what was cut in two.
        return _CUT_OFF.sub(CUT, redacted) if text.endswith(CUT) else redacted

    def _texts(self, mapping: dict[str, Any] | None) -> dict[str, Any]:
        """Attributes, tags or metadata: each value is a document of its own."""
        changed: dict[str, Any] = {}
        for key, value in (mapping or {}).items():
            redacted = self._preview(value) if key in PREVIEWS and isinstance(value, str) else self.document(value)
            changed[_free(self._plain(key), changed)] = redacted
        return changed

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            redacted = self._plain(digits := str(value))
            return value if redacted == digits else redacted
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            changed: dict[str, Any] = {}
            for key, item in value.items():
                changed[_free(self._plain(key), changed)] = self._value(item)
            return changed
        return value

    def _plain(self, text: str) -> str:
        for name, finder in self.finders:
            text, count = _replaced(text, finder(text), _replacement(name))
            if count:
                self.counts[name] += count
        return text

    def _without(self, value: Any, steps: list[str]) -> Any:
        """`value` with a replacement in place of what the steps of a JSON path lead to."""
        if not steps:
            self.counts[JSON_PATH] += 1
            return _replacement(JSON_PATH)

        def within(key: str | int, item: Any) -> Any:
            if steps[0].startswith(".."):
                item = self._without(item, steps)
            return self._without(item, steps[1:]) if _leads_to(steps[0], key) else item

        if isinstance(value, list):
            return [within(index, item) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: within(key, item) for key, item in value.items()}
        return value

    def _preview_of_redacted(self, info: dict[str, Any], spans: list[dict[str, Any]]) -> None:
        """Make the previews of the redacted root where a path removed something, or there is nothing to look for it in.

        MLflow's own hold what the paths lead to, in a form in which they do not.
        """
        root = next((span for span in spans if not span.get("parent_span_id")), {}).get("attributes") or {}
        metadata = info["trace_metadata"]
        of_info = [(info, "request_preview", "mlflow.spanInputs"), (info, "response_preview", "mlflow.spanOutputs")]
        for place, name, attribute in [*of_info, *((metadata, name, source) for name, source in PREVIEWS.items())]:
            if place.get(name) and attribute not in root:
                self.counts[JSON_PATH] += 1
                place[name] = _replacement(JSON_PATH)
            elif place.get(name) and self.counts[JSON_PATH]:
                place[name] = str(root[attribute])[:PREVIEW_CHARACTERS]


def _leads_to(step: str, key: str | int) -> bool:
    """Whether a step of a JSON path leads to the key of an object, or the index of a list."""
    if step.startswith("["):
        return step in ("[*]", f"[{key}]" if isinstance(key, int) else f"['{key}']")
    return step.lstrip(".") in ("*", key)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object. Raises ValueError for a repeated key: only the last of its values would be searched."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _replacement(name: str) -> str:
    return f"[redacted:{name}]"


def _free(key: str, taken: dict[str, Any]) -> str:
    """The key, with a number if redaction has made it equal to another."""
    free, number = key, 2
    while free in taken:
        free, number = f"{key} {number}", number + 1
    return free


def _replaced(text: str, places: Iterator[Place], replacement: str) -> tuple[str, int]:
    """The text with the replacement at each of the places, and their number; overlapping places count once."""
    parts: list[str] = []
    done = 0
    for start, end in sorted(places):
        if start >= done:
            parts += [text[done:start], replacement]
        done = max(done, end)
    return ("".join([*parts, text[done:]]), len(parts) // 2) if parts else (text, 0)


@functools.cache
def _finder(pattern: str) -> Finder:
    compiled = re.compile(pattern)

    def find(text: str) -> Iterator[Place]:
        return (found.span() for found in compiled.finditer(text) if found[0])

    return find
