"""The verdict of a report and its findings, most urgent first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from monitoring_pipeline import text
from monitoring_pipeline.analysis.errors import NO_FAILED_SPAN, new_groups
from monitoring_pipeline.reports.changes import RATIOS, Change
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.stages import slow_stage
from monitoring_pipeline.reports.standouts import Incident, Standout

Severity = Literal["critical", "warning", "info"]
State = Literal["trouble", "watch", "good", "empty"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")

MAIN_ERROR_SHARE = 0.05  # minimum share of an incident's traces that have its main error
CRITICAL_FAILURES = 5  # minimum failed traces of a critical incident
NEW_ERROR_TRACES, NEW_ERROR_SHARE = 5, 0.01  # minimums for a new error to be a warning
FAILING_SCORER_SHARE = 0.05
# The minimum size of a reported change: a difference, or, for ratios, a factor in either direction.
WORTH_A_LINE = {
    "trace_count": 2.0,
    "error_rate": 0.02,
    "p95_duration_ms": 1.25,
    "cost_per_trace_usd": 1.25,
    "pass_rate": 0.05,
    "mean_score": 0.1,
}
MEASURES = {
    "trace_count": "traffic",
    "error_rate": "error rate",
    "p95_duration_ms": "p95 latency",
    "cost_per_trace_usd": "cost per trace",
    "pass_rate": "pass rate",
    "mean_score": "mean score",
}
# Standout measures of an incident that already report a change of the whole period.
REPORTED_BY = {
    "error_rate": ("error rate",),
    "p95_duration_ms": ("p95",),
    "pass_rate": ("pass rate", "score"),
    "mean_score": ("pass rate", "score"),
}
NAME_CHARACTERS = 80


@dataclass(frozen=True)
class Finding:
    """A finding: `what` describes it with its extent and time, `details` add more and where to look.

    start and end are its times (UTC), if any; trace_id and experiment_id identify an example. The texts contain text
    from traces, shortened to one line, and must be escaped.
    """

    kind: Literal["incident", "new_error", "change", "unread", "unscored"]
    severity: Severity
    what: str
    details: list[str]
    experiment_id: str | None = None
    start: pd.Timestamp | None = None
    end: pd.Timestamp | None = None
    trace_id: str | None = None


def findings(
    data: ReportData, changes: Sequence[Change], scorers: pd.DataFrame, fresh: pd.DataFrame | None
) -> list[Finding]:
    """All findings by severity, within it in this order: incidents, new errors, changes, traces not read or scored."""
    found = [
        *(_incident(data, position, incident, fresh) for position, incident in enumerate(data.incidents)),
        *_new_errors(data, fresh),
        *_changes(data, changes),
        *_unread(data),
        *_unscored(data, scorers),
    ]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def verdict(data: ReportData, found: Sequence[Finding], total: dict[str, Any]) -> tuple[State, str, list[str]]:
    """The verdict on the period: its state, a headline, and further sentences."""
    kind = data.period.kind
    if not total["trace_count"]:
        return "empty", f"No traces were archived for this {kind}, so there is nothing to report.", []
    failed = "none failed" if not total["error_count"] else f"{text.percent(total['error_rate'])} failed"
    whole = f"Over the whole {kind}: {text.count(total['trace_count'])} traces, {failed}."
    urgent = [finding for finding in found if finding.severity != "info"]
    if not urgent:
        return "good", f"Nothing stands out: {text.count(total['trace_count'])} traces, {failed}.", []
    first, rest = urgent[0], len(urgent) - 1
    more = [f"{rest} more {'finding needs' if rest == 1 else 'findings need'} a look: see below."] if rest else []
    return "trouble" if first.severity == "critical" else "watch", first.what, [*first.details, whole, *more]


def new_errors(data: ReportData) -> pd.DataFrame | None:
    """The groups of errors that the previous days did not have; None if there are no previous days."""
    return None if data.known_errors is None else new_groups(data.errors, data.known_errors)


def when(data: ReportData, start: pd.Timestamp, end: pd.Timestamp) -> str:
    """A range of hours within the period, such as 16:00 to 18:00 UTC; for a week, preceded by the day."""
    day = f"{start:%a} {start:%Y-%m-%d} " if data.period.kind == "week" else ""
    until = "24:00" if end.hour == 0 and data.period.kind == "day" else f"{end:%H:%M}"
    if data.period.kind == "week" and end.date() > start.date() and end.hour != 0:
        until = f"{end:%a %H:%M}"
    return f"{day}{start:%H:%M} to {until if until != '00:00' else '24:00'} UTC"


def _incident(data: ReportData, position: int, incident: Incident, fresh: pd.DataFrame | None) -> Finding:
    hours = data.hours[
        (data.hours["experiment_id"] == incident.experiment_id)
        & (data.hours["hour"] >= incident.start)
        & (data.hours["hour"] < incident.end)
    ]
    several = len(hours) > 1
    first, *others = [_stands_out(standout, hours, several) for standout in incident.worst]
    errors = data.incident_errors[data.incident_errors["incident"] == position]
    has_main = len(errors) > 0 and errors.iloc[0]["trace_count"] >= MAIN_ERROR_SHARE * hours["trace_count"].sum()
    main = errors.iloc[0] if has_main else None
    name = text.plain(data.name_of(incident.experiment_id), NAME_CHARACTERS)
    return Finding(
        "incident",
        "critical" if incident.has("p95") or hours["error_count"].sum() >= CRITICAL_FAILURES else "warning",
        f"{when(data, incident.start, incident.end)}, {name}: {first}.",
        [*([f"Also {', '.join(others)}."] if others else []), *_where(data, incident, main, fresh)],
        incident.experiment_id,
        incident.start,
        incident.end,
        None if main is None else main["sample_trace_ids"][0],
    )


def _stands_out(standout: Standout, hours: pd.DataFrame, several_hours: bool) -> str:
    if standout.measure == "error rate":
        failed, count = hours["error_count"].sum(), hours["trace_count"].sum()
        rate = f"{text.percent(failed / count)}, usually {text.percent(standout.baseline)}"
        return f"{text.count(failed)} of {text.count(count)} traces failed ({rate})"
    direction = "up to " if several_hours else ""
    if standout.measure == "p95":
        return f"p95 latency {direction}{text.duration(standout.value)} (usually {text.duration(standout.baseline)})"
    scorer = text.plain(standout.scorer, NAME_CHARACTERS)
    if standout.measure == "pass rate":
        return f"{scorer} pass rate {text.percent(standout.value)} (usually {text.percent(standout.baseline)})"
    return f"{scorer} {text.score(standout.value)} (usually {text.score(standout.baseline)})"


def _where(data: ReportData, incident: Incident, main: pd.Series | None, fresh: pd.DataFrame | None) -> Iterator[str]:
    if main is not None:
        is_new = fresh is not None and main["signature"] in set(fresh["signature"])
        yield f"Main error{', new' if is_new else ''}: {_error(main)} ({_traces(main['trace_count'])})."
    stage = slow_stage(data.stage_hours, incident)
    if stage and incident.has("p95"):
        name = text.plain(stage.span_name, NAME_CHARACTERS)
        took, usual = text.duration(stage.self_ms), text.duration(stage.usual_self_ms)
        yield f"Slow stage: {name}, {took} per call (usually {usual})."


def _error(group: pd.Series) -> str:
    """The span and message of a group of errors, shortened."""
    message = text.plain(group["sample_message"] or "", 160) or text.MISSING
    if group["signature"] == NO_FAILED_SPAN:
        return "a failed trace without a failed span"
    return f"{text.plain(group['span_name'] or '', NAME_CHARACTERS) or text.MISSING}: {message}"


def _traces(count: float) -> str:
    return f"{text.count(count)} {'trace' if count == 1 else 'traces'}"


def _new_errors(data: ReportData, fresh: pd.DataFrame | None) -> Iterator[Finding]:
    if fresh is None:
        return
    explained = data.incident_errors[data.incident_errors["trace_count"] > 0].drop_duplicates("incident")
    count = data.hours["trace_count"].sum()
    for _, group in fresh.iterrows():
        if ((explained["signature"] == group["signature"]) & (explained["span_name"] == group["span_name"])).any():
            continue  # an incident already reports it
        often = group["trace_count"] >= max(NEW_ERROR_TRACES, NEW_ERROR_SHARE * count)
        since = group["first_seen"]
        yield Finding(
            "new_error",
            "warning" if often else "info",
            f"New error in {_traces(group['trace_count'])} since {since:%Y-%m-%d %H:%M} UTC: {_error(group)}.",
            [],
            group["experiment_id"],
            since,
            group["last_seen"],
            group["sample_trace_ids"][0],
        )


def _changes(data: ReportData, changes: Sequence[Change]) -> Iterator[Finding]:
    """A finding for each measure with a change beyond noise of a minimum size, against any earlier period."""
    several = _has_several(data)
    groups: dict[tuple[str, str | None, str], list[Change]] = {}
    for change in changes:
        # With several experiments, use the changes of each; with one, the changes of the total.
        if change.scorer or (change.experiment_id is None) != several:
            groups.setdefault((change.measure, change.experiment_id, change.scorer), []).append(change)
    with_pass_rate = {(scorer, experiment) for measure, experiment, scorer in groups if measure == "pass_rate"}
    reported = {(i.experiment_id, standout.measure, standout.scorer) for i in data.incidents for standout in i.worst}
    for (measure, experiment, scorer), group in groups.items():
        worth = [change for change in group if change.beyond_noise and _is_worth_a_line(change)]
        by_incident = any(
            what in REPORTED_BY.get(measure, ()) and scorer == of and experiment in (None, where)
            for where, what, of in reported
        )
        if not worth or by_incident or (measure == "mean_score" and (scorer, experiment) in with_pass_rate):
            continue
        yield Finding(
            "change",
            "warning" if worth[0].better is False else "info",
            _change_line(data, worth, experiment),
            [],
            experiment,
        )


def _has_several(data: ReportData) -> bool:
    """Whether the period has more than one experiment."""
    return data.totals.loc[data.totals["period"] == data.period.name, "experiment_id"].nunique() > 1


def _scorer(data: ReportData, scorer: str, experiment_id: str | None) -> str:
    """The name of a scorer, which may be "", followed by its experiment if there are several."""
    name = text.plain(scorer, NAME_CHARACTERS)
    if not experiment_id or not _has_several(data):
        return name
    return f"{name} ({text.plain(data.name_of(experiment_id), NAME_CHARACTERS)})".strip()


def _is_worth_a_line(change: Change) -> bool:
    least, amount = WORTH_A_LINE[change.measure], change.amount
    if change.measure in RATIOS:
        return amount >= least or (amount > 0 and 1 / amount >= least)
    return abs(amount) >= least


def _change_line(data: ReportData, worth: Sequence[Change], experiment: str | None) -> str:
    change = worth[0]
    of = _scorer(data, change.scorer, experiment)
    subject = f"{of}: {MEASURES[change.measure]}" if of else MEASURES[change.measure].capitalize()
    before = ", ".join(f"{shown(c.measure, c.before)} {c.against_label}" for c in worth)
    word = {True: "better", False: "worse", None: "changed"}[change.better]
    return f"{subject} {word}: {shown(change.measure, change.value)}, after {before}."


def shown(measure: str, value: float) -> str:
    """A value of a `Change`'s measure, formatted for reading."""
    formats = {
        "trace_count": text.count,
        "error_rate": text.percent,
        "p95_duration_ms": text.duration,
        "cost_per_trace_usd": text.cost,
        "pass_rate": text.percent,
        "mean_score": text.score,
    }
    return formats[measure](value)


def _unread(data: ReportData) -> Iterator[Finding]:
    if data.unread:
        count, example = len(data.unread), min(data.unread, key=lambda row: row["trace_id"])
        what = f"{text.count(count)} {'trace' if count == 1 else 'traces'} could not be read and are in no figure."
        reason = text.plain(f"{example['trace_id']}: {example['reason']}")
        yield Finding("unread", "warning", what, [f"They are in quarantine and are tried again. An example: {reason}."])


def _unscored(data: ReportData, scorers: pd.DataFrame) -> Iterator[Finding]:
    for row in scorers.to_dict("records"):
        failed, tried = row["failed"], row["failed"] + row["scored"]
        name = _scorer(data, row["scorer"], row["experiment_id"])
        if failed > 0 and failed >= FAILING_SCORER_SHARE * tried:
            what = f"{name} failed on {text.count(failed)} of {text.count(tried)} traces."
            yield Finding("unscored", "warning", what, [], row["experiment_id"])
        waiting = {state: row[state] for state in ("over_budget", "pending") if row[state] > 0}
        if waiting:
            parts = " and ".join(f"{text.count(n)} {state.replace('_', ' ')}" for state, n in waiting.items())
            what = f"{name} has not scored all eligible traces: {parts} of {text.count(row['eligible'])}."
            yield Finding("unscored", "info", what, [], row["experiment_id"])
