"""`[archive.redact]`: removal of personal data and secrets from traces before they are written."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from monitoring_pipeline.settings.base import Section

DetectorName = Literal["email", "phone", "card", "iban", "ip"]
JSON_PATH = "json_path"  # name of values removed by a path, in counts and in the placeholder
NAME = r"[a-z][a-z0-9_]{0,31}"
_STEP = r"\.{1,2}(?:\*|[^\W\d][\w-]*)|\[(?:\*|\d+|'[^']*')\]"


class RedactSettings(Section):
    detectors: list[DetectorName] = Field(default=[], description="kinds of personal data to detect by their format")
    patterns: dict[str, str] = Field(default={}, description="your own regular expressions, each under a name")
    json_paths: list[str] = Field(default=[], description="values to remove from JSON, such as $.messages[*].content")

    @property
    def is_on(self) -> bool:
        """Whether anything is removed."""
        return bool(self.detectors or self.patterns or self.json_paths)

    @field_validator("patterns")
    @classmethod
    def _usable(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"pattern name {name!r} must be lower-case letters, digits and _, such as api_key")
            if name in (*get_args(DetectorName), JSON_PATH):
                raise ValueError(f"pattern name {name!r} is taken; choose another")
            if problem := _problem(pattern):
                raise ValueError(f"pattern {name} = {pattern!r} {problem}")
        return patterns

    @field_validator("json_paths")
    @classmethod
    def _readable(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not re.fullmatch(rf"\$(?:{_STEP})+", path):
                raise ValueError(
                    f"JSON path {path!r} is not supported: write $ and then .name, ['name'], [0], [*], .* or ..name"
                )
        return paths


def path_steps(path: str) -> list[str]:
    """The steps of a JSON path, such as ['.messages', '[*]', '.content']."""
    return re.findall(_STEP, path)


def _problem(pattern: str) -> str | None:
    """Why the pattern cannot be used, or None.

    An unbounded repetition inside another can take exponential time in the length of a text, and outsiders write the
    texts.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        return f"is not a regular expression: {error}"
    if compiled.match(""):
        return "matches the empty text; make it match at least one character"
    from re import _parser  # type: ignore[attr-defined]

    if _repeats_in_repeats(_parser.parse(pattern), inside=False):
        return "has a repetition within a repetition, which can take forever; make the inner one possessive, as in a++"
    return None


def _repeats_in_repeats(node: Any, inside: bool) -> bool:
    """Whether the parsed pattern has an unbounded repeat inside another; possessive ones never backtrack."""
    from re import _constants, _parser  # type: ignore[attr-defined]

    if isinstance(node, _parser.SubPattern):
        node = node.data
    if isinstance(node, tuple) and len(node) == 2 and node[0] in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        _, most, repeated = node[1]
        is_unbounded = most == _constants.MAXREPEAT
        return (inside and is_unbounded) or _repeats_in_repeats(repeated, inside or is_unbounded)
    if isinstance(node, tuple | list):
        return any(_repeats_in_repeats(part, inside) for part in node)
    return False
