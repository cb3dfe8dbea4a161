"""Automation conditions of everything downstream of the archive, and freshness policies of tables and reports.

The sensor `new_traces` requests only `archived_traces`; the conditions below run everything downstream of its hours.
A condition remembers an event (`.since`) until the asset has been requested. Dagster's `eager()` remembers it until the
asset is next materialised, but a run in progress when its parent changes has not seen the change. The conditions also
hold for every hour, while `eager()` looks only at the latest.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeAlias

import dagster as dg

from monitoring_pipeline.keys import (
    AUTOMATION,
    DAILY_REPORT_KEY,
    NO_PREFIX,
    RESULTS_IN_MLFLOW,
    WEEKLY_REPORT_KEY,
    Names,
    scorer_key,
)
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import AutomationSettings
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    MODEL_USAGE,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
)

C = dg.AutomationCondition
Condition: TypeAlias = dg.AutomationCondition[Any]

TICK_SECONDS = 30
REPEAT_REPORTS = "30 * * * *"
REPEAT_WEEKLY_REPORTS = "45 * * * *"


def changed() -> Condition:
    """A parent was materialised for this partition, or is requested in this tick; until this asset is requested.

    Parents materialised in the same run as this asset do not count. Several parents that change before the asset is
    requested count as one change.
    """
    return _until_requested(C.any_deps_updated(), "changed")


def changed_before() -> Condition:
    """As `changed`, but only for parents that have been materialised, not for those requested in this tick."""
    return _until_requested(_parents_made(), "changed_before")


def failed_once(failure: Condition | None = None) -> Condition:
    """A run that the automation requested failed, for the first time since a parent changed; until requested again.

    Each change is thus tried at most twice. While the asset keeps failing, Dagster reports no new failure, so each
    later change is tried once. Runs that a person started or cancelled are not repeated.
    `failure` is the condition that counts as a failure, `own_failure` by default.
    """
    first = (failure or own_failure()).since(_parents_made()).newly_true()
    return _until_requested(first, "failed_once")


def own_failure() -> Condition:
    """This tick finds that a run requested by the automation failed before it materialised this asset."""
    requested = C.newly_requested().since(C.newly_updated())
    return (C.execution_failed().newly_true() & requested).with_label("own_failure")


def at_rest() -> Condition:
    """No run or backfill of this partition, or of the parent partitions it depends on, is in progress."""
    return (~C.in_progress() & ~C.any_deps_in_progress()).with_label("at_rest")


def when_parents_change() -> Condition:
    """For assets with one parent: each change of an hour, however old, requests the asset once."""
    return ((changed() | failed_once()) & at_rest()).with_label("when_parents_change")


def when_digest_changes(look_back_hours: int) -> Condition:
    """For a scorer whose digest has changed since the last tick: requests its archived hours in the look-back, once.

    A change before the first tick goes unnoticed. The run still keeps to the scorer's budget.
    """
    latest = C.in_latest_time_window(timedelta(hours=look_back_hours))
    digest_changed = _until_requested(latest & C.code_version_changed(), "digest_changed")
    return (digest_changed & ~C.any_deps_missing() & at_rest()).with_label("when_digest_changes")


def when_scorers_are_done() -> Condition:
    """For the ledger and the results in MLflow: once all scorers of an hour have ended, failed or not.

    The asset never joins a run of scorers, where Dagster would skip it after a scorer that fails. It waits for scorers
    that are tried again, and not for stopped ones, which are never requested.
    """
    none_requested = ~C.any_deps_match(C.will_be_requested())
    return ((changed_before() | failed_once()) & none_requested & at_rest()).with_label("when_scorers_are_done")


def when_scorers_are_done_or_quality_failed(names: Names = NO_PREFIX) -> Condition:
    """As `when_scorers_are_done`, for the ledger: after a failure of quality, requests the ledger with it again.

    The ledger's blocking check holds within a run; quality alone could be computed from a ledger that does not add up.
    """
    failure = own_failure() | C.asset_matches(names.key(HOURLY_QUALITY.name), own_failure())
    none_requested = ~C.any_deps_match(C.will_be_requested())
    again = failed_once(failure.with_label("ledger_or_quality_failed"))
    return ((changed_before() | again) & none_requested & at_rest()).with_label(
        "when_scorers_are_done_or_quality_failed"
    )


def with_the_ledger() -> Condition:
    """For quality: in the run of its ledger, so that the ledger's blocking check can stop it."""
    return (changed() & at_rest()).with_label("with_the_ledger")


def when_a_past_day_settles(names: Names = NO_PREFIX) -> Condition:
    """For daily assets: at the next half hour after an hour of a past day has changed, unless a run is in progress.

    An hour has changed when its quality, the last of its tables, was computed. Today is never requested, because it
    would run every few minutes; it can be launched by hand. The half hour must come after the latest change, so that
    late traces of several hours, and the last ones before midnight, lead to one report.
    """
    return _when_past_and_settled(names, REPEAT_REPORTS, "when_a_past_day_settles")


def when_a_past_week_settles(names: Names = NO_PREFIX) -> Condition:
    """As `when_a_past_day_settles`, for weekly assets; later in the hour, because they also read the daily tables."""
    return _when_past_and_settled(names, REPEAT_WEEKLY_REPORTS, "when_a_past_week_settles")


def _when_past_and_settled(names: Names, at: str, label: str) -> Condition:
    last = dg.AssetSelection.assets(names.key(HOURLY_QUALITY.name), names.key(SCORER_AGREEMENT.name))
    hours_changed = _until_requested(C.any_deps_updated().allow(last), "hours_changed")
    is_today = C.in_latest_time_window()
    half_hour = C.cron_tick_passed(at).since(is_today | _parents_made()).with_label("half_hour_since")
    return (((hours_changed & half_hour) | failed_once()) & ~is_today & at_rest()).with_label(label)


def _until_requested(event: Condition, label: str) -> Condition:
    # An event between a request and the next tick is seen together with that request and is newer: it must stay.
    return event.since(C.newly_requested() & ~event).with_label(label)


def _parents_made() -> Condition:
    materialised = (C.newly_updated() & ~C.executed_with_root_target()).with_label("newly_made_without_this")
    return C.any_deps_match(materialised).with_label("parents_made")


def conditions(
    scorers: Iterable[ConfiguredScorer], settings: AutomationSettings, names: Names = NO_PREFIX
) -> dict[dg.AssetKey, Condition]:
    """The condition of each automated asset; scorers that are not configured as active have none."""
    of_a_scorer = when_parents_change()
    if settings.rescore_changed:
        of_a_scorer = of_a_scorer | when_digest_changes(settings.rescore_look_back_hours)
    performance = (TRACE_PERFORMANCE, TRACE_ERRORS, HOURLY_PERFORMANCE, SPAN_PROFILE, MODEL_USAGE)
    of_keys = {
        **{dg.AssetKey(table.name): when_parents_change() for table in performance},
        **{scorer_key(scorer.name): of_a_scorer for scorer in scorers if scorer.active},
        dg.AssetKey(RESULTS_IN_MLFLOW): when_scorers_are_done(),
        dg.AssetKey(SCORER_COVERAGE.name): when_scorers_are_done_or_quality_failed(names),
        dg.AssetKey(HOURLY_QUALITY.name): with_the_ledger(),
        dg.AssetKey(SCORER_AGREEMENT.name): when_a_past_day_settles(names),
        dg.AssetKey(DAILY_REPORT_KEY): when_a_past_day_settles(names),
        dg.AssetKey(WEEKLY_REPORT_KEY): when_a_past_week_settles(names),
    }
    return {names.key(key): condition for key, condition in of_keys.items()}


def automated(
    assets: Iterable[dg.AssetsDefinition],
    scorers: Iterable[ConfiguredScorer],
    settings: AutomationSettings,
    names: Names = NO_PREFIX,
) -> list[dg.AssetsDefinition]:
    """`assets` with their conditions and, if the automation is enabled, their freshness policies."""
    of_assets = conditions(scorers, settings, names)
    policies = freshness_policies(names) if settings.enabled else {}

    def with_its_own(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(
            automation_condition=of_assets.get(spec.key), freshness_policy=policies.get(spec.key)
        )

    return [asset.map_asset_specs(with_its_own) for asset in assets]


def freshness_policies(names: Names = NO_PREFIX) -> dict[dg.AssetKey, dg.FreshnessPolicy]:
    """The highest age of the tables and reports that people read.

    An hour without traces is never requested, so hourly tables fail only after a day; and any old hour that runs again
    satisfies the policy. The check `latest_hour_is_there` covers both.
    """
    hourly = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=3))
    by_two = dg.FreshnessPolicy.cron(deadline_cron="0 2 * * *", lower_bound_delta=timedelta(hours=2))
    return {
        names.key(HOURLY_PERFORMANCE.name): hourly,
        names.key(HOURLY_QUALITY.name): hourly,
        names.key(DAILY_REPORT_KEY): by_two,
    }


def automation_sensor(settings: AutomationSettings, names: Names = NO_PREFIX) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the conditions of our assets. Several hours of one tick become one backfill."""
    return dg.AutomationConditionSensorDefinition(
        names.definition(AUTOMATION),
        target=names.ours,
        default_status=dg.DefaultSensorStatus.RUNNING if settings.enabled else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=TICK_SECONDS,
        description="Runs everything downstream of archived hours: metrics, scorers, ledger, quality and reports.",
    )
