"""Whole checks over a real lake: alerts that open and resolve, and messages that are sent once, delayed or retried."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from monitoring_pipeline.alerts.checking import Checked, check_alerts
from monitoring_pipeline.alerts.episodes import MEMORY, load
from monitoring_pipeline.keys import ALERTS_JOB
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.settings import AlertSettings, LakeSettings, NotifierSettings, NotifySettings, Settings
from monitoring_pipeline.settings.sections import AutomationSettings
from monitoring_pipeline.tables import HOURLY_PERFORMANCE, HOURLY_QUALITY, SCORER_COVERAGE, TRACE_PERFORMANCE
from monitoring_pipeline.windows import HOUR, Window, floor_hour
from monitoring_pipeline_tests.alerts.receivers import Hook

NOW = datetime(2026, 3, 2, 10, 40, tzinfo=UTC)  # a Monday
THIS_HOUR = floor_hour(NOW)
HOOK = NotifierSettings(name="hook", kind="webhook", url_env="ALERT_HOOK")
MINUTE = timedelta(minutes=1)


def rule(**values: Any) -> AlertSettings:
    return AlertSettings(**{"name": "errors", "metric": "error_rate", "notify": ["hook"], **values})


ERRORS = rule(threshold=0.1)


def performance(hour: datetime, traces: int, errors: int, p95_ms: float = 900.0) -> dict[str, Any]:
    return {
        **dict.fromkeys(HOURLY_PERFORMANCE.schema.names[:-1]),
        "hour": hour,
        "experiment_id": "1",
        "trace_count": traces,
        "error_count": errors,
        "error_rate": errors / traces,
        "p95_duration_ms": p95_ms,
        "total_tokens": 100 * traces,
        "cost_usd": 0.01 * traces,
    }


def fill(lake: LakeResource, *rows: dict[str, Any]) -> None:
    for row in rows:
        lake.replace(HOURLY_PERFORMANCE, Window(row["hour"], row["hour"] + HOUR), from_dicts(HOURLY_PERFORMANCE, [row]))


def check(lake: LakeResource, *rules: AlertSettings, now: datetime = NOW, given_up: int = 0, **notify: Any) -> Checked:
    settings = Settings(alerts=[*rules], notifiers=[HOOK], notify=NotifySettings(**notify))
    return check_alerts(lake, settings, {"safety": "d1"}, lambda: given_up, now, logging.getLogger("tests.alerts"))


def events(endpoint: Hook) -> list[str]:
    return [payload["event"] for payload in endpoint.payloads]


def test_an_alert_is_sent_once_and_resolved_after_a_window_without_problems(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))
    for minutes in (0, 5, 10):
        assert len(check(lake, ERRORS, now=NOW + minutes * MINUTE).open) == 1
    assert events(endpoint) == ["open"]

    fill(lake, performance(THIS_HOUR, 1000, 20))
    assert check(lake, ERRORS, now=NOW + 15 * MINUTE).open  # the window has not passed yet
    fill(lake, performance(THIS_HOUR + HOUR, 1000, 20))
    assert not check(lake, ERRORS, now=NOW + 71 * MINUTE).open

    assert events(endpoint) == ["open", "resolved"]
    (episode,) = load(lake, NOW + 2 * HOUR)
    assert (episode.state, episode.measured, episode.held_against) == ("resolved", 0.2, 0.1)
    assert [delivery.state for delivery in episode.deliveries] == ["sent", "sent"]


def test_a_check_without_an_alert_writes_nothing(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 1))
    check(lake, ERRORS)
    check(lake, ERRORS)
    assert load(lake, NOW) == []
    assert endpoint.payloads == []


def test_too_few_traces_change_nothing_and_an_open_alert_stays_open(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 29, 29))
    assert check(lake, ERRORS).evaluations[0].holds is None
    fill(lake, performance(THIS_HOUR, 30, 30))
    assert check(lake, ERRORS).open
    assert check(lake, ERRORS, now=NOW + 5 * HOUR).open  # no traces since
    assert events(endpoint) == ["open"]


def test_a_dead_notifier_does_not_fail_the_check_and_gets_the_message_later(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))
    endpoint.answers = [(500, {})] * 3
    checked = check(lake, ERRORS, rule(name="second", threshold=0.1))
    assert checked.delivered.failures == {"hook": "it answered 500"}
    assert len(endpoint.payloads) == 3  # the second message does not wait for a dead notifier as well
    assert checked.figures["messages_pending"] == 2

    assert check(lake, ERRORS, rule(name="second", threshold=0.1), now=NOW + 5 * MINUTE).delivered.sent == 2
    assert {payload["rule"] for payload in endpoint.payloads[3:]} == {"errors", "second"}


def test_quiet_hours_delay_alerts_that_are_not_critical(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))
    rules = (ERRORS, rule(name="grave", threshold=0.1, severity="critical"))
    quiet: dict[str, Any] = {"quiet": "11:00-12:30", "time_zone": "Europe/Berlin"}  # 10:00 to 11:30 UTC
    check(lake, *rules, **quiet)
    assert [payload["rule"] for payload in endpoint.payloads] == ["grave"]
    check(lake, *rules, now=NOW + 52 * MINUTE, **quiet)
    assert [payload["rule"] for payload in endpoint.payloads] == ["grave", "errors"]


def test_an_alert_resolved_within_quiet_hours_is_sent_as_one_message(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20), performance(THIS_HOUR + HOUR, 100, 0))
    check(lake, ERRORS, quiet="10:00-13:00")
    check(lake, ERRORS, now=NOW + 65 * MINUTE, quiet="10:00-13:00")
    assert endpoint.payloads == []
    check(lake, ERRORS, now=NOW + 3 * HOUR, quiet="10:00-13:00")
    (payload,) = endpoint.payloads
    assert payload["event"] == "passed"
    assert payload["opened_at"] < payload["resolved_at"]


def test_the_alert_of_a_removed_rule_is_resolved(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))
    check(lake, ERRORS)
    check(lake, rule(name="other", threshold=0.9), now=NOW + 5 * MINUTE)
    assert events(endpoint) == ["open", "resolved"]


def test_a_check_opens_no_file_of_alerts_that_are_long_over(lake: LakeResource, endpoint: Hook) -> None:
    now = datetime.now(UTC)
    fill(lake, performance(floor_hour(now), 100, 20))
    check(lake, ERRORS, now=now)
    check(lake, rule(name="other", threshold=0.9), now=now + MINUTE)
    assert [episode.state for episode in load(lake, now)] == ["resolved"]
    for file in Path(lake.location, "alerts").glob("date=*/*"):
        file.unlink()  # reading one would fail
    assert load(lake, now + MEMORY + 2 * HOUR) == []


def test_an_alert_that_stays_unknown_is_remembered(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))
    check(lake, ERRORS)
    [opened] = load(lake, NOW)
    assert check(lake, ERRORS, now=NOW + 5 * HOUR).open
    assert load(lake, NOW) == [opened]  # nothing was written
    assert check(lake, ERRORS, now=NOW + MEMORY / 2).open
    assert [episode.revision for episode in load(lake, NOW)] == [opened.revision + 1]


def test_a_process_killed_while_sending_repeats_the_message_and_loses_none(
    lake: LakeResource, endpoint: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(lake, performance(THIS_HOUR, 100, 20))

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("monitoring_pipeline.alerts.delivery.send", killed)
        with pytest.raises(KeyboardInterrupt):
            check(lake, ERRORS)
    (episode,) = load(lake, NOW)
    assert [(delivery.state, delivery.attempts) for delivery in episode.deliveries] == [("pending", 1)]
    check(lake, ERRORS, now=NOW + 5 * MINUTE)
    check(lake, ERRORS, now=NOW + 10 * MINUTE)
    assert events(endpoint) == ["open"]


def quiet_weeks(lake: LakeResource, marked: float = 0.04) -> None:
    random = np.random.default_rng(7)
    hours = list(Window(THIS_HOUR - 28 * 24 * HOUR, THIS_HOUR).hours())
    traces = random.poisson([300 * (1 + 0.5 * np.sin(hour.hour / 24 * 6.28)) for hour in hours]) + 1
    errors = random.binomial(traces, marked)
    p95 = 900 * np.exp(random.normal(0, 0.05, len(hours)))
    rows = [performance(*row) for row in zip(hours, traces.tolist(), errors.tolist(), p95.tolist(), strict=True)]
    lake.replace(HOURLY_PERFORMANCE, Window(hours[0], THIS_HOUR), from_dicts(HOURLY_PERFORMANCE, rows))


def test_an_incident_alerts_within_its_hour_and_not_before(lake: LakeResource, endpoint: Hook) -> None:
    quiet_weeks(lake)
    change = rule(change="up")
    fill(lake, performance(THIS_HOUR, 100, 4))
    evaluation = check(lake, change, now=THIS_HOUR + 20 * MINUTE).evaluations[0]
    assert evaluation.holds is False and evaluation.held_against == pytest.approx(0.04, abs=0.015)
    fill(lake, performance(THIS_HOUR, 200, 40))
    assert check(lake, change).open
    assert endpoint.payloads[0]["kind"] == "change"


def test_a_longer_duration_alerts_once_the_hour_is_finished(lake: LakeResource, endpoint: Hook) -> None:
    quiet_weeks(lake)
    slow = rule(name="slow", metric="p95_duration_ms", change="up")
    fill(lake, performance(THIS_HOUR, 300, 10, p95_ms=2000.0))
    assert not check(lake, slow).open
    assert check(lake, slow, now=THIS_HOUR + HOUR + 15 * MINUTE).open


def test_a_pass_rate_counts_only_the_current_digest(lake: LakeResource, endpoint: Hook) -> None:
    rows = [
        {
            **dict.fromkeys(HOURLY_QUALITY.schema.names[:-1]),
            **{"hour": THIS_HOUR, "experiment_id": "1", "scorer": "safety", "scorer_digest": digest},
            **{"scored": 100, "pass_rate": share},
        }
        for digest, share in (("d0", 0.1), ("d1", 0.75))
    ]
    lake.replace(HOURLY_QUALITY, Window(THIS_HOUR, THIS_HOUR + HOUR), from_dicts(HOURLY_QUALITY, rows))
    checked = check(lake, rule(name="quality", metric="pass_rate", operator="<", threshold=0.8))
    assert [(v.scope, v.measured, v.holds) for v in checked.evaluations] == [("scorer safety", 0.75, True)]


def test_coverage_and_failures_of_scorers(lake: LakeResource, endpoint: Hook) -> None:
    row: dict[str, Any] = dict.fromkeys(SCORER_COVERAGE.schema.names[:-1], 0)
    row |= {"hour": THIS_HOUR - HOUR, "experiment_id": "1", "scorer": "safety", "scorer_digest": "d1"}
    row |= {"eligible": 100, "scored": 60, "failed": 20, "pending": 20}
    lake.replace(SCORER_COVERAGE, Window(THIS_HOUR - HOUR, THIS_HOUR), from_dicts(SCORER_COVERAGE, [row]))
    checked = check(
        lake,
        rule(name="coverage", metric="coverage", operator="<", threshold=0.9),
        rule(name="failing", metric="scorer_failure_rate", threshold=0.2),
    )
    assert [(v.measured, v.holds) for v in checked.evaluations] == [(0.6, True), (0.25, True)]


def test_totals_freshness_and_hours_given_up(lake: LakeResource, endpoint: Hook) -> None:
    fill(lake, performance(THIS_HOUR - 3 * HOUR, 200, 0))
    checked = check(
        lake,
        rule(name="cost", metric="cost_usd_per_hour", window="4h", threshold=0.4),
        rule(name="tokens", metric="tokens_per_hour", operator="<", threshold=1),
        rule(name="stale", metric="freshness_hours", threshold=2),
        rule(name="given_up", metric="archive_given_up", threshold=0),
        given_up=3,
    )
    assert [v.measured for v in checked.evaluations] == pytest.approx([0.5, 0, 2 + 40 / 60, 3])
    assert [v.holds for v in checked.evaluations] == [True, True, True, True]


def test_a_percentile_over_several_hours_covers_all_their_traces(lake: LakeResource, endpoint: Hook) -> None:
    durations = np.random.default_rng(1).lognormal(6, 1, 120)
    rows = [
        {
            **dict.fromkeys(TRACE_PERFORMANCE.schema.names[:-1]),
            **{"trace_id": f"t{n}", "trace_hour": THIS_HOUR - (n % 3) * HOUR, "duration_ms": float(value)},
        }
        for n, value in enumerate(durations)
    ]
    window = Window(THIS_HOUR - 2 * HOUR, THIS_HOUR + HOUR)
    table: pa.Table = from_dicts(TRACE_PERFORMANCE, rows)
    lake.replace(TRACE_PERFORMANCE, window, table)
    (evaluation,) = check(lake, rule(name="slow", metric="p95_duration_ms", window="3h", threshold=1)).evaluations
    assert evaluation.measured == pytest.approx(np.percentile(durations, 95))


@pytest.mark.parametrize(("errors_before", "holds"), [(12, True), (0, False)])
def test_an_objective_alerts_only_if_both_windows_burn_too_fast(
    lake: LakeResource, endpoint: Hook, errors_before: int, holds: bool
) -> None:
    fill(lake, *(performance(THIS_HOUR - n * HOUR, 100, errors_before) for n in range(1, 6)))
    fill(lake, performance(THIS_HOUR, 100, 12))
    (evaluation,) = check(lake, rule(objective=0.99, window="6h")).evaluations
    assert evaluation.holds is holds
    assert evaluation.measured == pytest.approx(100 * (errors_before * 5 + 12) / 600)


def test_an_unknown_experiment_is_named_in_the_detail(lake: LakeResource, endpoint: Hook) -> None:
    (evaluation,) = check(lake, rule(threshold=0.1, scope={"experiment": "typo"})).evaluations
    assert evaluation.holds is None
    assert "no traces of experiment 'typo'" in evaluation.detail


def test_dagster_runs_the_check_and_a_dead_notifier_is_a_warning(lake: LakeResource, endpoint: Hook) -> None:
    hour = floor_hour(datetime.now(UTC))
    fill(lake, performance(hour, 100, 20), performance(hour - HOUR, 100, 20))
    endpoint.answers = [(404, {})]
    settings = Settings(lake=LakeSettings(location=lake.location), alerts=[ERRORS], notifiers=[HOOK])
    definitions = build_definitions(settings)
    result = definitions.resolve_job_def(ALERTS_JOB).execute_in_process(run_config=QUIET)

    assert result.success
    (outcome,) = result.get_asset_check_evaluations()
    assert (outcome.passed, outcome.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert outcome.metadata["hook"].value == "it answered 404"
    (materialization,) = result.asset_materializations_for_node("evaluate_alerts")
    figures = {name: entry.value for name, entry in materialization.metadata.items()}
    assert (figures["opened"], figures["messages_pending"], figures["errors/all traces"]) == (1, 1, 0.2)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_schedule_starts_with_automation_and_waits_for_the_last_check(enabled: bool, tmp_path: Path) -> None:
    settings = Settings(
        alerts=[rule(threshold=0.1, notify=["log"])],
        notify=NotifySettings(every_minutes=10),
        automation=AutomationSettings(enabled=enabled),
    )
    schedule = build_definitions(settings).resolve_schedule_def("alerts")
    assert schedule.cron_schedule == "*/10 * * * *"
    assert (schedule.default_status == dg.DefaultScheduleStatus.RUNNING) is enabled
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, dg.build_schedule_context(instance) as context:
        assert isinstance(schedule(context), dg.RunRequest)
        instance.add_run(dg.DagsterRun(job_name=ALERTS_JOB, status=dg.DagsterRunStatus.STARTED))
        assert isinstance(schedule(context), dg.SkipReason)


def test_without_rules_there_is_no_job() -> None:
    names = {job.name for job in build_definitions(Settings()).resolve_all_job_defs()}
    assert ALERTS_JOB not in names
