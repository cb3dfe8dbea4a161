"""Limits and budgets of scorers, and prices of models."""

from __future__ import annotations

import os
from dataclasses import dataclass

from monitoring_pipeline.compat.mlflow import bundled_prices


@dataclass(frozen=True)
class Limits:
    """A scorer's limits: concurrent calls, model requests per minute, attempts per request, and a timeout.

    The timeout is that of a model's request or, for a code scorer, of a trace.
    """

    concurrency: int = 1
    requests_per_minute: int | None = None
    timeout_seconds: float = 60.0
    max_attempts: int = 5


@dataclass(frozen=True)
class Budget:
    """A scorer's budget: dollars per UTC day and traces per clock hour; None means no limit."""

    max_usd_per_day: float | None = None
    max_traces_per_hour: int | None = None


@dataclass(frozen=True)
class Price:
    """The price of a judge's model."""

    usd_per_input_token: float
    usd_per_output_token: float

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        return input_tokens * self.usd_per_input_token + output_tokens * self.usd_per_output_token


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def listed_price(model: str) -> Price | None:
    """The model's price in MLflow's bundled price list; None if it is not listed."""
    listed = bundled_prices(model)
    if listed is None:  # not a model URI, e.g. Databricks' own judge
        return None
    input_usd, output_usd = (listed.get(f"{kind}_cost_per_token") for kind in ("input", "output"))
    return None if input_usd is None or output_usd is None else Price(float(input_usd), float(output_usd))
