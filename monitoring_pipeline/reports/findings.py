"""What a day's frames say: totals, hours that stand out, scorers, and errors grouped by cause."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any, Literal

import pandas as pd

from monitoring_pipeline.analysis.agreement import COUNTS, with_kappa
from monitoring_pipeline.reports import text

MIN_TRACES = 20
MIN_SCORED = 20
MIN_OTHER_HOURS = 3
ERROR_RATE_MARGIN = 0.05
LATENCY_FACTOR = 2.0
SCORE_MARGIN = 0.15
_LABELS = ["hour", "date", "experiment_id", "trace_name", "scorer", "scorer_digest"]
NO_SPAN = "(no failed span)"
_LEDGER = ["archived", "filtered_out", "unsampled", "eligible", "scored", "failed", "over_budget", "pending"]

RULE = (
    f"An hour stands out against the median of the other hours of its experiment (at least {MIN_OTHER_HOURS}). "
    f"Error rate: its whole 95 % Wilson interval is more than {100 * ERROR_RATE_MARGIN:g} percentage points above it. "
    f"Latency: its p95 is at least {LATENCY_FACTOR:g} times the median. "
    f"Quality: the whole 95 % interval of its mean score is more than {SCORE_MARGIN:g} away from the median, on either "
    f"side. Only hours with at least {MIN_TRACES} traces, or {MIN_SCORED} scored traces, are compared."
)

KAPPA_EXPLAINED = (
    "Kappa is agreement beyond chance, given how often each of the two passes: 1 is complete agreement, 0 what chance "
    "alone would give, below 0 less. It has no value where one of the two gave the same verdict throughout."
)


@dataclass(frozen=True)
class Standout:
    """One measure of one hour (0 to 23, UTC) that stands out from `baseline`, the median of the other hours.

    The value is a share of traces for "error rate", milliseconds for "p95", the mean score of `scorer` for "score".
    """

    experiment_id: str
    hour: int
    measure: Literal["error rate", "p95", "score"]
    value: float
    baseline: float
    scorer: str = ""


@dataclass(frozen=True)
class Incident:
    """Consecutive hours of one experiment, `first_hour` to `last_hour`, that stand out; the worst of each measure."""

    experiment_id: str
    first_hour: int
    last_hour: int
    worst: list[Standout]


def by_hour(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` indexed by the UTC hour of the day, 0 to 23, of their column hour."""
    return rows.set_index(pd.to_datetime(rows["hour"], utc=True).dt.hour)


def as_floats(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with every column that holds numbers as float64, NaN where unknown."""
    return rows.astype(dict.fromkeys(rows.columns.difference(_LABELS), "float64"))


def all_names(performance: pd.DataFrame) -> pd.DataFrame:
    """The rows of hourly_performance that total their experiment, so that no trace is counted twice.

    The numbers are float64, NaN where unknown.
    """
    return as_floats(performance.loc[performance["trace_name"].isna()])


def totals(performance: pd.DataFrame) -> dict[str, float]:
    """Sums of the given hours: trace_count, error_count, error_rate, total_tokens, cost_usd (NaN where unknown)."""
    columns = ["trace_count", "error_count", "input_tokens", "output_tokens", "total_tokens", "cost_usd"]
    sums: dict[str, float] = performance[columns].sum(min_count=1).to_dict()
    return sums | {"error_rate": sums["error_count"] / sums["trace_count"]}


def _wilson_low(successes: int, trials: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(successes, trials).proportion_ci(0.95, method="wilson").low)


def _other_hours(hours: pd.DataFrame, column: str) -> Iterator[tuple[int, float, float]]:
    """(hour, value, median of the other hours) for the hours in which `column` is known."""
    known = {int(hour): float(value) for hour, value in zip(hours.index, hours[column], strict=True) if pd.notna(value)}
    if len(known) > MIN_OTHER_HOURS:
        for hour, value in known.items():
            yield hour, value, median(other for at, other in known.items() if at != hour)


def standouts(performance: pd.DataFrame, quality: pd.DataFrame) -> list[Standout]:
    """The hours that `RULE` picks, from the experiments' hourly totals and the hourly quality (see `as_floats`)."""
    found: list[Standout] = []
    for experiment_id, rows in performance.loc[performance["trace_count"] >= MIN_TRACES].groupby("experiment_id"):
        hours = by_hour(rows)
        for hour, value, usual in _other_hours(hours, "error_rate"):
            low = _wilson_low(int(hours.at[hour, "error_count"]), int(hours.at[hour, "trace_count"]))
            if low > usual + ERROR_RATE_MARGIN:
                found.append(Standout(str(experiment_id), hour, "error rate", value, usual))
        for hour, value, usual in _other_hours(hours, "p95_duration_ms"):
            if usual > 0 and value >= LATENCY_FACTOR * usual:
                found.append(Standout(str(experiment_id), hour, "p95", value, usual))
    for keys, rows in quality.loc[quality["scored"] >= MIN_SCORED].groupby(["experiment_id", "scorer"]):
        experiment_id, scorer = keys if isinstance(keys, tuple) else (keys, "")
        hours = by_hour(rows)
        for hour, value, usual in _other_hours(hours, "mean_score"):
            # Whether high or low is good is the scorer's affair, so either side counts.
            if hours.at[hour, "ci_high"] < usual - SCORE_MARGIN or hours.at[hour, "ci_low"] > usual + SCORE_MARGIN:
                found.append(Standout(str(experiment_id), hour, "score", value, usual, str(scorer)))
    return found


def incidents(found: list[Standout]) -> list[Incident]:
    """Standouts joined over consecutive hours of an experiment, those with the most standouts first."""
    runs: list[list[Standout]] = []
    for standout in sorted(found, key=lambda s: (s.experiment_id, s.hour)):
        last = runs[-1][-1] if runs else None
        if last and last.experiment_id == standout.experiment_id and standout.hour - last.hour <= 1:
            runs[-1].append(standout)
        else:
            runs.append([standout])
    return [_incident(run) for run in sorted(runs, key=len, reverse=True)]


def _incident(run: list[Standout]) -> Incident:
    worst: dict[tuple[str, str], Standout] = {}
    for standout in run:
        measure = (standout.measure, standout.scorer)
        seen = worst.setdefault(measure, standout)
        if abs(standout.value - standout.baseline) > abs(seen.value - seen.baseline):
            worst[measure] = standout
    return Incident(run[0].experiment_id, run[0].hour, run[-1].hour, list(worst.values()))


def _against(standout: Standout, several_hours: bool) -> str:
    show = {"error rate": text.percent, "p95": text.duration, "score": text.score}[standout.measure]
    direction = "up to " if several_hours and standout.measure != "score" else ""
    what = text.plain(standout.scorer, 80) or standout.measure
    return f"{what} {direction}{show(standout.value)} against {show(standout.baseline)}"


def summary(total: dict[str, float], found: list[Incident], scorers: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """Two or three plain sentences: what stands out, the day's volume and errors, and what was not scored."""
    failed = "none failed" if total["error_count"] == 0 else f"{text.percent(total['error_rate'])} failed"
    sentences = [
        _stands_out(found, names) if found else "No hour stands out.",
        f"Over the whole day: {text.count(total['trace_count'])} traces, of which {failed}.",
    ]
    unscored = scorers[["failed", "over_budget", "pending"]].sum()
    if unscored.sum() > 0:
        parts = [f"{text.count(n)} {str(state).replace('_', ' ')}" for state, n in unscored.items() if n > 0]
        sentences.append(f"Eligible but not scored, over all scorers: {', '.join(parts)}.")
    return sentences


def _stands_out(found: list[Incident], names: dict[str, str]) -> str:
    worst, rest = found[0], len(found) - 1
    several = worst.last_hour > worst.first_hour
    when = f"{worst.first_hour:02d}:00" + (f" to {worst.last_hour + 1:02d}:00" if several else "") + " UTC"
    where = text.plain(names.get(worst.experiment_id, worst.experiment_id), 80)
    what = ", ".join(_against(standout, several) for standout in worst.worst)
    more = f"; {rest} more {'time stands' if rest == 1 else 'times stand'} out, shaded in the charts" if rest else ""
    return f"{when}, {where}: {what} in the median of the other hours{more}."


def scorer_rows(daily_quality: pd.DataFrame, coverage: pd.DataFrame) -> pd.DataFrame:
    """One row an experiment, scorer and digest: the day's ledger summed, and the day's quality.

    Columns: experiment_id, scorer, scorer_digest, the ledger's counts, covered (scored / eligible), mean_score,
    pass_rate, ci_low, ci_high, scoring_cost_usd. Coverage of a digest other than the one with quality is left out.
    Without coverage rows the scored and failed counts are those of the quality row.
    """
    key = ["experiment_id", "scorer", "scorer_digest"]
    ledger = coverage.groupby(key, as_index=False)[_LEDGER].sum()
    quality = daily_quality.rename(columns={"cost_usd": "scoring_cost_usd"})
    quality = quality.filter(
        [*key, "scored", "failed", "mean_score", "pass_rate", "ci_low", "ci_high", "scoring_cost_usd"]
    )
    digests = set(quality.set_index(key).index)
    scorers = {(experiment_id, scorer) for experiment_id, scorer, _ in digests}
    rows = as_floats(ledger.merge(quality, on=key, how="outer", suffixes=("", "_quality"))).set_index(key)
    rows = rows.drop(index=[k for k in rows.index if k not in digests and k[:2] in scorers]).reset_index()
    rows["covered"] = rows["scored"] / rows["eligible"].mask(rows["eligible"] == 0)
    for column in ("scored", "failed"):
        rows[column] = rows[column].fillna(rows.pop(f"{column}_quality"))
    return rows.sort_values(key, ignore_index=True)


def agreement_rows(agreement: pd.DataFrame) -> pd.DataFrame:
    """One row an experiment, scorer and reference: the days' counts summed, and what the sums amount to.

    Columns: experiment_id, scorer, reference, reference_name, the four counts, compared (their sum), agreement, kappa,
    and its 95 % interval ci_low and ci_high.
    """
    key = ["scorer", "experiment_id", "reference", "reference_name"]
    sums = agreement.groupby(key, as_index=False, dropna=False)[COUNTS].sum()
    rows = with_kappa(sums).rename(columns={"kappa_low": "ci_low", "kappa_high": "ci_high"})
    rows["compared"] = rows[COUNTS].sum(axis="columns")
    people_first = [True, True, False, True]
    return rows.sort_values(key, ascending=people_first, ignore_index=True)


def top_errors(errors: pd.DataFrame, limit: int = 10) -> list[dict[str, Any]]:
    """The most frequent causes: span name and first line of its status message.

    Of the spans of a trace with the same message only the last counts: an exception that passes up through its parents
    failed in the innermost. Each with trace_count (traces, not spans), first_seen (UTC) and trace_id, the first trace
    with it.
    """
    seen: list[tuple[tuple[str, str], pd.Timestamp, str]] = []
    for row in errors.to_dict("records"):
        causes = _causes(row["error_spans"])
        moment = row["trace_hour"] if pd.isna(row["timestamp"]) else row["timestamp"]
        seen += [(cause, moment, row["trace_id"]) for cause in causes]
    seen.sort()
    groups = [(cause, list(rows)) for cause, rows in groupby(seen, key=lambda item: item[0])]
    groups.sort(key=lambda group: (-len(group[1]), group[0]))
    return [
        {
            "span_name": name,
            "message": message,
            "trace_count": len(rows),
            "first_seen": first_seen,
            "trace_id": trace_id,
        }
        for (name, message), rows in groups[:limit]
        for _, first_seen, trace_id in rows[:1]
    ]


def _causes(error_spans: Sequence[dict[str, str | None]] | None) -> list[tuple[str, str]]:
    if error_spans is None or not len(error_spans):
        return [(NO_SPAN, text.MISSING)]
    causes = [_cause(span) for span in error_spans]
    return list({name if message == text.MISSING else message: (name, message) for name, message in causes}.values())


def _cause(span: dict[str, str | None]) -> tuple[str, str]:
    # cut first: a message may have many megabytes
    lines = (span.get("status_message") or "")[:2000].strip().splitlines()
    return text.plain(span.get("name") or "") or text.MISSING, text.plain(lines[0]) if lines else text.MISSING
