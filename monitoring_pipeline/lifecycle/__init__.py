"""The lifecycle of scorers: `handle(name)` returns one to register, start, update and stop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitoring_pipeline.lifecycle.scorer_handles import (
        ScorerHandle,
        ScorerState,
        StaleHandleError,
        handle,
        handles,
        history,
    )

__all__ = ["ScorerHandle", "ScorerState", "StaleHandleError", "handle", "handles", "history"]


def __getattr__(name: str) -> Any:
    # The command line imports this package at start-up, and must not import MLflow for it.
    if name in __all__:
        return getattr(importlib.import_module("monitoring_pipeline.lifecycle.scorer_handles"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
