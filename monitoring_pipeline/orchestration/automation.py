"""What Dagster makes by itself once the archive has changed, and how fresh people may expect it to be.

The sensor `new_traces` requests `archived_traces` alone; the conditions below carry its hours downstream, and nothing
is launched by both. A condition remembers an event (`.since`) until the asset has been requested, and not, as Dagster's
`eager()` does, until it was next made: a run under way when its parent changes has not seen the change. And it holds
for any hour, where `eager()` looks at the latest alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeAlias

import dagster as dg

from monitoring_pipeline.keys import DAILY_REPORT_KEY, RESULTS_IN_MLFLOW, WEEKLY_REPORT_KEY, scorer_key
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import AutomationSettings
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
)

C = dg.AutomationCondition
Condition: TypeAlias = dg.AutomationCondition[Any]

AUTOMATION = "automation"
TICK_SECONDS = 30
REMAKE_REPORTS = "30 * * * *"
REMAKE_WEEKS = "45 * * * *"


def changed() -> Condition:
    """A parent was made anew for this partition, or will be in this very tick; until this asset has been requested.

    What a run makes together with this asset does not count. Several parents that change before it is requested count
    as one change.
    """
    return _until_requested(C.any_deps_updated(), "changed")


def changed_before() -> Condition:
    """As `changed`, for parents that have been made; not for those that will be."""
    return _until_requested(_parents_made(), "changed_before")


def failed_once(failure: Condition | None = None) -> Condition:
    """The run that the automation asked for has failed, for the first time since a parent changed; until requested.

    So each change is tried twice at most; while it goes on failing, Dagster tells of no new failure, and each later
    change is tried once. Runs that a person started, or cancelled, are the person's to repeat.
    `failure` is what counts as one, `own_failure` by default.
    """
    first = (failure or own_failure()).since(_parents_made()).newly_true()
    return _until_requested(first, "failed_once")


def own_failure() -> Condition:
    """At this tick it is seen that a run which the automation asked for has failed before it made this asset."""
    requested = C.newly_requested().since(C.newly_updated())
    return (C.execution_failed().newly_true() & requested).with_label("own_failure")


def at_rest() -> Condition:
    """Neither this partition nor one that it is made of is in a run or backfill."""
    return (~C.in_progress() & ~C.any_deps_in_progress()).with_label("at_rest")


def when_parents_change() -> Condition:
    """For what is made of one parent: each change of an hour, however old, makes it once."""
    return ((changed() | failed_once()) & at_rest()).with_label("when_parents_change")


def when_digest_changes(look_back_hours: int) -> Condition:
    """A scorer whose digest has changed since the last tick: its archived hours in the look-back, once each.

    Of a change from before the first tick nothing is known. The scorer's budget holds inside of the run.
    """
    latest = C.in_latest_time_window(timedelta(hours=look_back_hours))
    digest_changed = _until_requested(latest & C.code_version_changed(), "digest_changed")
    return (digest_changed & ~C.any_deps_missing() & at_rest()).with_label("when_digest_changes")


def when_scorers_are_done() -> Condition:
    """For the ledger and what is sent to MLflow: once an hour's scorers are all done, whether they failed or not.

    It never joins a run of scorers, where one that fails would have it skipped. A scorer that is tried again is waited
    for; one that is stopped is never requested, and so not waited for.
    """
    none_to_come = ~C.any_deps_match(C.will_be_requested())
    return ((changed_before() | failed_once()) & none_to_come & at_rest()).with_label("when_scorers_are_done")


def when_scorers_are_done_or_quality_failed() -> Condition:
    """As `when_scorers_are_done`, for the ledger: quality that failed is tried again with its ledger, not without.

    The ledger's blocking check holds within a run, so quality alone would be made of a ledger that does not add up.
    """
    failure = own_failure() | C.asset_matches(HOURLY_QUALITY.name, own_failure())
    none_to_come = ~C.any_deps_match(C.will_be_requested())
    again = failed_once(failure.with_label("ledger_or_quality_failed"))
    return ((changed_before() | again) & none_to_come & at_rest()).with_label("when_scorers_are_done_or_quality_failed")


def with_the_ledger() -> Condition:
    """For quality: in the run that makes its ledger, so that the ledger's blocking check stops it."""
    return (changed() & at_rest()).with_label("with_the_ledger")


def when_a_past_day_settles() -> Condition:
    """For what is made of a day: at the half hour after the day is over and one of its hours has changed, at rest.

    An hour has changed when its quality was made, the last of its tables. Today is left to a person: it would be made
    anew every few minutes. The half hour must come after the latest change, so that late traces of several hours, and
    the last ones before midnight, make one report together.
    """
    return _when_past_and_settled(REMAKE_REPORTS, "when_a_past_day_settles")


def when_a_past_week_settles() -> Condition:
    """As `when_a_past_day_settles`, for what is made of a week: later, as it is also made of what its days are."""
    return _when_past_and_settled(REMAKE_WEEKS, "when_a_past_week_settles")


def _when_past_and_settled(at: str, label: str) -> Condition:
    last = dg.AssetSelection.assets(HOURLY_QUALITY.name, SCORER_AGREEMENT.name)
    hours_changed = _until_requested(C.any_deps_updated().allow(last), "hours_changed")
    is_today = C.in_latest_time_window()
    half_hour = C.cron_tick_passed(at).since(is_today | _parents_made()).with_label("half_hour_since")
    return (((hours_changed & half_hour) | failed_once()) & ~is_today & at_rest()).with_label(label)


def _until_requested(event: Condition, label: str) -> Condition:
    # What happens between a request and the next tick is seen beside that request, and is newer: it must stay.
    return event.since(C.newly_requested() & ~event).with_label(label)


def _parents_made() -> Condition:
    made = (C.newly_updated() & ~C.executed_with_root_target()).with_label("newly_made_without_this")
    return C.any_deps_match(made).with_label("parents_made")


def conditions(scorers: Iterable[ConfiguredScorer], settings: AutomationSettings) -> dict[dg.AssetKey, Condition]:
    """The condition of each asset that is made by itself; scorers that are not configured as active have none."""
    of_a_scorer = when_parents_change()
    if settings.rescore_changed:
        of_a_scorer = of_a_scorer | when_digest_changes(settings.rescore_look_back_hours)
    performance = (TRACE_PERFORMANCE, TRACE_ERRORS, HOURLY_PERFORMANCE, SPAN_PROFILE)
    return {
        **{dg.AssetKey(table.name): when_parents_change() for table in performance},
        **{scorer_key(scorer.name): of_a_scorer for scorer in scorers if scorer.active},
        dg.AssetKey(RESULTS_IN_MLFLOW): when_scorers_are_done(),
        dg.AssetKey(SCORER_COVERAGE.name): when_scorers_are_done_or_quality_failed(),
        dg.AssetKey(HOURLY_QUALITY.name): with_the_ledger(),
        dg.AssetKey(SCORER_AGREEMENT.name): when_a_past_day_settles(),
        dg.AssetKey(DAILY_REPORT_KEY): when_a_past_day_settles(),
        dg.AssetKey(WEEKLY_REPORT_KEY): when_a_past_week_settles(),
    }


def automated(
    assets: Iterable[dg.AssetsDefinition], scorers: Iterable[ConfiguredScorer], settings: AutomationSettings
) -> list[dg.AssetsDefinition]:
    """`assets` with their conditions and, where the automation is enabled, their freshness policies."""
    of_assets = conditions(scorers, settings)
    policies = freshness_policies() if settings.enabled else {}

    def with_its_own(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(
            automation_condition=of_assets.get(spec.key), freshness_policy=policies.get(spec.key)
        )

    return [asset.map_asset_specs(with_its_own) for asset in assets]


def freshness_policies() -> dict[dg.AssetKey, dg.FreshnessPolicy]:
    """How old what people look at may be.

    An hour without traces is not made, so the hourly tables are given a day; a policy is content with any old hour that
    was made anew. The check `latest_hour_is_there` sees to both.
    """
    hourly = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=24), warn_window=timedelta(hours=3))
    by_two = dg.FreshnessPolicy.cron(deadline_cron="0 2 * * *", lower_bound_delta=timedelta(hours=2))
    return {
        dg.AssetKey(HOURLY_PERFORMANCE.name): hourly,
        dg.AssetKey(HOURLY_QUALITY.name): hourly,
        dg.AssetKey(DAILY_REPORT_KEY): by_two,
    }


def automation_sensor(settings: AutomationSettings) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the conditions. Several hours of one tick become one backfill: few runs, many hours."""
    return dg.AutomationConditionSensorDefinition(
        AUTOMATION,
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING if settings.enabled else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=TICK_SECONDS,
        description="Carries hours that were archived anew downstream: figures, scores, ledger, quality, reports.",
    )
