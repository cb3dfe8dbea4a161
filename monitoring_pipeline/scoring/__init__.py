"""Scorers: what is configured, how it runs, and its lifecycle; `handle(name)` gives one to register, start and stop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitoring_pipeline.lifecycle.handles import ScorerHandle, ScorerState, StaleHandleError, handle, handles

__all__ = ["ScorerHandle", "ScorerState", "StaleHandleError", "handle", "handles"]


def __getattr__(name: str) -> Any:
    # Settings look for modules in this package, and must not import MLflow for it.
    if name in __all__:
        return getattr(importlib.import_module("monitoring_pipeline.lifecycle.handles"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
