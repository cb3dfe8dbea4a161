"""The public names as text: the notebook functions, the shipped scorers, the command line, and monitoring.toml.

Prints the listing that `test_public_names` compares with public_names.txt:

    python -m monitoring_pipeline_tests.api.public_names
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined


def listing() -> str:
    """One line for each public name, with its signature, options or type and default."""
    sections = {
        "monitoring_pipeline.api": _functions(),
        "monitoring_pipeline.scoring.scorers": _scorers(),
        "monitoring-pipeline": _commands(),
        "monitoring.toml": _keys(),
    }
    return "\n".join(f"# {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections.items())


def _functions() -> Iterator[str]:
    from monitoring_pipeline import api

    for name in sorted(api.__all__):
        yield f"{name}{_signature(getattr(api, name))}"


def _scorers() -> Iterator[str]:
    from mlflow.genai.scorers import Scorer

    from monitoring_pipeline.scoring import scorers

    for name, value in sorted(vars(scorers).items()):
        if isinstance(value, Scorer):
            yield name
        elif not name.startswith("_") and getattr(value, "__module__", None) == scorers.__name__:
            yield f"{name}{_signature(value)}"


def _signature(function: Any) -> str:
    """A signature with its annotations as they are written."""
    signature = inspect.signature(function)
    parameters = [
        f"{parameter.name}: {parameter.annotation}"
        + ("" if parameter.default is parameter.empty else f" = {parameter.default!r}")
        for parameter in signature.parameters.values()
    ]
    return f"({', '.join(parameters)}) -> {signature.return_annotation}"


def _commands() -> Iterator[str]:
    from monitoring_pipeline.cli.app import app

    yield from _command("monitoring-pipeline", typer.main.get_command(app))


def _command(path: str, command: Any) -> Iterator[str]:
    yield path
    for parameter in command.params:
        words = " / ".join([*parameter.opts, *parameter.secondary_opts])
        notes = [
            parameter.param_type_name,
            *(["flag"] if getattr(parameter, "is_flag", False) else []),
            *(["required"] if parameter.required else []),
            *(["repeatable"] if parameter.multiple else []),
            *([f"default {parameter.default!r}"] if parameter.default not in (None, False) else []),
        ]
        yield f"{path} {words}: {', '.join(notes)}"
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", child)


def _keys() -> Iterator[str]:
    from monitoring_pipeline.settings import Settings

    yield from sorted(_model("", Settings))


def _model(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if get_origin(inner) is list and _is_model(get_args(inner)[0]):
            yield from _model(f"{prefix}{name}[].", get_args(inner)[0])
        elif _is_model(inner):
            yield from _model(f"{prefix}{name}.", inner)  # type: ignore[arg-type]
        else:
            default = field.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"default {default!r}"
            yield f"{prefix}{name}: {_type(inner)}, {shown}"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Union:
        return " | ".join(_type(part) for part in get_args(annotation))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


if __name__ == "__main__":
    print(listing(), end="")
