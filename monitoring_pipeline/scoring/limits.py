"""What a scorer may use, and what a judge's model costs."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring_pipeline.compat.mlflow import bundled_prices


@dataclass(frozen=True)
class Limits:
    """How fast a scorer may ask: calls at a time, requests to the model in a minute, and how often one is repeated."""

    concurrency: int = 1
    requests_per_minute: int | None = None
    timeout_seconds: float = 60.0
    max_attempts: int = 5


@dataclass(frozen=True)
class Budget:
    """How much a scorer may use: dollars in a UTC day, traces in an hour of the clock; None is without limit."""

    max_usd_per_day: float | None = None
    max_traces_per_hour: int | None = None


@dataclass(frozen=True)
class Price:
    """What a judge's model costs."""

    usd_per_input_token: float
    usd_per_output_token: float

    def cost_usd(self, input_tokens: int, output_tokens: int) -> float:
        return input_tokens * self.usd_per_input_token + output_tokens * self.usd_per_output_token


def listed_price(model: str) -> Price | None:
    """The model's price in the list that MLflow comes with; None where it is not there."""
    listed = bundled_prices(model)
    if listed is None:  # not an address of a model, such as Databricks' own judge
        return None
    input_usd, output_usd = (listed.get(f"{kind}_cost_per_token") for kind in ("input", "output"))
    return None if input_usd is None or output_usd is None else Price(float(input_usd), float(output_usd))
