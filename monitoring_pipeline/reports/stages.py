"""The agent's stages with most self time, and the stage that slowed down in an incident."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from monitoring_pipeline.reports.standouts import LATENCY_FACTOR, Incident

SLOWEST_STAGES = 8
STAGE = ["experiment_id", "span_type", "span_name"]


def slowest_stages(stages: pd.DataFrame, hours: pd.DataFrame, own: str, before: str) -> pd.DataFrame:
    """The stages with most self time in the period `own`, compared with the period `before`.

    `stages` are stage_sums by period, `hours` the hourly rows of span_profile for `own`. Columns: experiment_id,
    span_type, span_name, span_count, error_count, mean_ms, mean_self_ms (per span), self_share (share of the self time
    of all stages), highest_p95_ms and its hour worst_hour, max_ms, and mean_self_ms_before (NaN if it did not run).
    """
    stages = stages.astype(dict.fromkeys(("total_ms", "self_time_ms", "max_ms"), "float64"))
    rows = stages[stages["period"] == own].drop(columns="period")
    rows["mean_ms"] = rows["total_ms"] / rows["span_count"]
    rows["mean_self_ms"] = rows["self_time_ms"] / rows["span_count"]
    rows["self_share"] = rows["self_time_ms"] / rows["self_time_ms"].sum()
    earlier = stages[stages["period"] == before].set_index(STAGE)
    earlier = (earlier["self_time_ms"] / earlier["span_count"]).rename("mean_self_ms_before").reset_index()
    known = hours[hours["p95_ms"].notna()].sort_values(["p95_ms", "hour"], ascending=[False, True])
    highest = known.drop_duplicates(STAGE)[[*STAGE, "p95_ms", "hour"]]
    highest = highest.rename(columns={"p95_ms": "highest_p95_ms", "hour": "worst_hour"})
    rows = rows.nlargest(SLOWEST_STAGES, "self_time_ms").merge(highest, on=STAGE, how="left")
    return rows.merge(earlier, on=STAGE, how="left").drop(columns=["total_ms", "self_time_ms"]).reset_index(drop=True)


@dataclass(frozen=True)
class SlowStage:
    """A stage that slowed down in an incident: its mean self time per span then, and the median of the other hours."""

    span_name: str
    self_ms: float
    usual_self_ms: float


def slow_stage(hours: pd.DataFrame, incident: Incident) -> SlowStage | None:
    """The stage whose self time grew most in the incident, at least `LATENCY_FACTOR`-fold; None without one."""
    rows = hours[(hours["experiment_id"] == incident.experiment_id) & hours["self_time_ms"].notna()]
    within = (rows["hour"] >= incident.start) & (rows["hour"] < incident.end)
    found = []
    for name, own in rows[within].groupby("span_name"):
        others = rows[~within & (rows["span_name"] == name)]
        usual = float((others["self_time_ms"] / others["span_count"]).median())
        count = own["span_count"].sum()
        mean = float(own["self_time_ms"].sum() / count)
        if mean >= LATENCY_FACTOR * usual > 0:
            found.append((float((mean - usual) * count), SlowStage(str(name), mean, usual)))
    return max(found, key=lambda grown: grown[0])[1] if found else None
