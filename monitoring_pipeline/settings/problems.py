"""Problems of a configuration as one line each: where it is, the value, and the fix."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from monitoring_pipeline.settings.sections import SCORER_REFERENCE


def problem_line(settings: type[BaseModel], path: Path | None, raw: dict[str, Any], detail: Any) -> str:
    """A validation error as a line; a value not in `raw`, the content of the file, is the environment's."""
    location, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    where = f"{path if _holds(raw, location[:-1] if kind == 'missing' else location) else 'environment'}: {key}"
    given = detail["input"]
    value = without_password(repr(given) if isinstance(given, str) else str(given))
    match kind:
        case "extra_forbidden":
            return f"{where}: unknown key; known here: {', '.join(_known_keys(settings, location))}"
        case "missing":
            return f"{where}: missing; add it"
        case "value_error":
            return f"{where}: {without_password(str(context['error']))}"
        case "string_pattern_mismatch":
            return f"{where} = {value}: must look like {_EXAMPLES[str(location[-1])]}"
        case "greater_than_equal" | "less_than_equal" | "greater_than":
            words = {"ge": "at least", "le": "at most", "gt": "more than"}
            bound = next(f"{words[name]} {limit}" for name, limit in context.items() if name in words)
            return f"{where} = {value}: must be {bound}"
        case "model_type":
            return f"{where} = {value}: must be a table with keys, such as [[scorers]] or [section]"
        case "list_type":
            return f"{where} = {value}: must be a list, such as {_EXAMPLES[str(location[-1])]}"
        case _:
            return wrong_value(where, value, detail["msg"])


def wrong_value(where: str, value: str, message: str) -> str:
    """A line for a wrong value, with pydantic's message."""
    return f"{where} = {value}: {message[0].lower()}{message[1:]}"


def _holds(raw: Any, location: tuple[str | int, ...]) -> bool:
    for part in location:
        if isinstance(part, str) and isinstance(raw, dict):  # sections are found whatever their case
            raw = {key.lower(): value for key, value in raw.items()}
            part = part.lower()
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


_EXAMPLES = {
    "name": "my_scorer (letters, digits and _)",
    "scorer": "package.module:attribute",
    "builtin": "Safety",
    "model": "openai:/gpt-4.1-mini",
    "pass_if": ">= 0.5",
    "remote": "sc://host:15002",
    "experiments": '["my-agent"]',
    "path": '["scorers"]',
    "packages": '["/Volumes/main/monitoring/pipeline/monitoring_pipeline.whl"]',
    "compare_with": '["thumbs_up"]',
    "detectors": '["email", "card"]',
    "json_paths": '["$.messages[*].content"]',
    "scorers": "a [[scorers]] table for each",
    "alerts": "an [[alerts]] table for each",
    "datasets": "a [[datasets]] table for each",
    "formats": '["jsonl"]',
    "notifiers": "a [[notifiers]] table for each",
    "notify": '["log"]',
    "to": '["oncall@example.org"]',
}


def _known_keys(settings: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    model: Any = settings
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(iter(get_args(annotation)), annotation)  # the entries of a list
    return list(model.model_fields)


def scorer_problems(entries: list[tuple[Any, Any]]) -> list[str]:
    """Problems of the scorers (name, reference) beyond their types, without the seconds that an import takes."""
    names = [name for name, _ in entries if isinstance(name, str)]
    problems = [
        f"scorers: name {name!r} is used {names.count(name)} times; give each scorer its own name"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for index, (name, reference) in enumerate(entries):
        is_reference = isinstance(reference, str) and re.search(SCORER_REFERENCE, reference)
        reason = _missing_reference(reference) if is_reference else None
        if reason:
            problems.append(f"scorers[{index}].scorer = {reference!r} (scorer {name!r}): {reason}")
    return problems


def _missing_reference(reference: str) -> str | None:
    module, attribute = reference.split(":", 1)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    except Exception as error:  # noqa: BLE001 - find_spec imports parent packages, which may raise anything
        return f"importing the package of {module!r} failed: {type(error).__name__}: {error}"
    if spec is None:
        return (
            f"no module named {module!r}; put it into the folder of monitoring.toml, name its folder in [python] path, "
            "or install it"
        )
    source = (
        Path(spec.origin).read_text(encoding="utf-8", errors="replace")
        if spec.origin and spec.origin.endswith(".py")
        else ""
    )
    defined_elsewhere = not source or "import *" in source or "__getattr__" in source
    if not defined_elsewhere and not re.search(rf"\b{re.escape(attribute)}\b", source):
        return f"module {module!r} has no {attribute!r}"
    return None


def without_password(uri: str) -> str:
    """`uri` for use in a message: its user, password and secret parameters become ***."""
    # Up to the last @: a password that was not percent-encoded may contain any character.
    uri = re.sub(r"://\S*@", "://***@", uri)
    return re.sub(r"(?i)([?&;][\w-]*(?:password|passwd|pwd|secret|token|key)=)[^&;\s'\"]*", r"\1***", uri)
