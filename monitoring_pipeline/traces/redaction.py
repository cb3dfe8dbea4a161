"""Redacts a trace before it is written: personal data that detectors find, matches of the user's patterns, and values
at JSON paths. The result is still a valid trace.

Redaction searches texts, keys and integers. It parses JSON within a text, as in MLflow's inputs and outputs, redacts it
and serializes it again. It never changes ids, times, types and states of a trace and its spans.
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
CUT = "..."  # the end of a preview that MLflow truncated
# The end of a truncated preview: a cut group of digits or word, which detectors may not recognise.
_CUT_OFF = re.compile(r"(?:[0-9 ()+.\-]{1,40}|\S{1,320})\.\.\.$")
_JSON_STARTS = ("{", "[", '"')
_JSON_LIKE = re.compile(r'\s*(?:\{\s*"|\[\s*[\[{"])')
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class Redactor:
    """Redacts traces according to `settings`. The engine sends it to its workers."""

    settings: RedactSettings

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the redacted row of `agent_traces`; `redactions` counts replacements by detector (None if none)."""
        trace = json.loads(row["trace_json"])
        work = _Work(self.settings)
        info, spans = work.trace(trace["info"], trace["data"]["spans"])
        if not work.counts:
            return row
        kept = {"experiment_id": row["experiment_id"], "redactions": dict(work.counts)}
        return {**row, **flatten_parts(info, spans), **kept}

    def raw(self, text: str) -> str:
        """Redact the raw text of an unreadable trace. JSON paths do not apply to it: with any, it is replaced."""
        return _replacement(JSON_PATH) if self.settings.json_paths else self.text(text)

    def text(self, text: str) -> str:
        """Redact a text, which may be JSON."""
        return _Work(self.settings).text(text)


def redactor(settings: RedactSettings) -> Redactor | None:
    """Return the redactor for `settings`; None if redaction is off."""
    return Redactor(settings) if settings.is_on else None


class _Work:
    """The redaction of one trace; `counts` is the number of replacements by detector or pattern."""

    def __init__(self, settings: RedactSettings):
        self.counts: Counter[str] = Counter()
        self.finders = [(name, DETECTORS[name]) for name in DETECTORS if name in settings.detectors]
        self.finders = [*((name, _finder(pattern)) for name, pattern in settings.patterns.items()), *self.finders]
        self.paths = [path_steps(path) for path in settings.json_paths]

    def trace(self, info: dict[str, Any], spans: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the redacted info and spans of a trace (in the form of its JSON)."""
        spans = [self._span(span) for span in spans]
        metadata = self._texts(info.get("trace_metadata"))
        if SESSION in metadata and metadata[SESSION] != info["trace_metadata"][SESSION]:
            # Many sessions get the same replacement; the trace id keeps them apart.
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
        """Return the redacted text; within JSON, each text, key and integer is redacted."""
        if not text.lstrip()[:1].startswith(_JSON_STARTS):
            return self._plain(text)
        before = self.counts.copy()
        try:
            document = json.loads(text, object_pairs_hook=_unique)
            redacted = self.document(document)
        except (ValueError, RecursionError):
            self.counts = before
            if self.paths and _JSON_LIKE.match(text):  # paths do not apply to malformed JSON
                self.counts[JSON_PATH] += 1
                return _replacement(JSON_PATH)
            return self._plain(text)
        # Without a replacement, keep the original formatting.
        return text if self.counts == before else json.dumps(redacted, ensure_ascii=False)

    def document(self, document: Any) -> Any:
        """Return the redacted JSON value: first the values at paths, then all texts."""
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
        """The attributes of a span. Each is JSON, so the replacement of a number is a JSON string."""
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
        # Truncated JSON is not JSON, and detectors do not recognise truncated data.
        return _CUT_OFF.sub(CUT, redacted) if text.endswith(CUT) else redacted

    def _texts(self, mapping: dict[str, Any] | None) -> dict[str, Any]:
        """Attributes, tags or metadata: each value is a separate document."""
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
        """The value with a replacement at each place to which the steps of a JSON path lead."""
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
        """Rebuild previews from the redacted root span if a path removed something; replace those that the root lacks.

        JSON paths do not apply to MLflow's previews, which may repeat the values at these paths.
        """
        root = next((span for span in spans if not span.get("parent_span_id")), {}).get("attributes") or {}
        metadata = info["trace_metadata"]
        previews = [(info, "request_preview", "mlflow.spanInputs"), (info, "response_preview", "mlflow.spanOutputs")]
        for place, name, attribute in [*previews, *((metadata, name, source) for name, source in PREVIEWS.items())]:
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
    """The object. Raises ValueError for a repeated key, because only its last value would be searched."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is repeated")
    return found


def _replacement(name: str) -> str:
    return f"[redacted:{name}]"


def _free(key: str, taken: dict[str, Any]) -> str:
    """The key, numbered if redaction has made it equal to another key."""
    free, number = key, 2
    while free in taken:
        free, number = f"{key} {number}", number + 1
    return free


def _replaced(text: str, places: Iterator[Place], replacement: str) -> tuple[str, int]:
    """The text with the replacement at each place, and the number of places; overlapping places count once."""
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
