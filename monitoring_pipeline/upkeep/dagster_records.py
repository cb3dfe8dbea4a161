"""Dagster's own records: removes what events, checks, logs and configurations of our runs quote of deleted traces.

Records stay, so that Dagster still knows which partitions are materialised; only their texts change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from monitoring_pipeline.compat.dagster import StoredTexts, stored_texts
from monitoring_pipeline.keys import ALERTS_JOB, ASSESS, DELETE, LATEST_HOUR, PARTITION, RANGE_END, RANGE_START, Names
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.upkeep.marks import Marks, only_of_deleted
from monitoring_pipeline.upkeep.sqlite_files import erase_free_pages

DELETED = "[deleted on request]"
# Labels of our metadata that quote traces.
QUOTING = {"preview", "source_traces", "first_problems", "most_frequent_error", "mlflow_warning"}
TEXTS = {  # the class of a value of metadata -> its field with the text
    "MarkdownMetadataEntryData": "md_str",
    "MarkdownMetadataValue": "md_str",
    "TextMetadataEntryData": "text",
    "TextMetadataValue": "text",
}
OF_DELETED = {"trace_ids", "user_ids"}  # the configuration of the jobs that delete or assess traces
NAMES = {"__class__", "run_id", "pipeline_run_id", "pipeline_name", "job_name", "step_key", "event_type_value", "label"}
AROUND = timedelta(days=7)  # a week's report, or the result on a session, covers as many
RUNS_AT_A_TIME = 500


@dataclass(frozen=True)
class Records:
    """Where Dagster keeps texts of the runs that may quote the deleted traces."""

    run_ids: list[str]
    texts: list[StoredTexts]

    @property
    def files(self) -> list[Path]:
        """The SQLite files among them."""
        return sorted({file for stored in self.texts if (file := stored.file)})


def records_about(instance: dg.DagsterInstance, names: Names, days: Collection[date]) -> Records:
    """Return the records of our runs about these days, and of those without a day."""
    run_ids = [run.run_id for run in _runs(instance) if _may_quote(run, names, days)]
    return Records(run_ids, stored_texts(instance, run_ids))


def forget(
    lake: LakeResource,
    instance: dg.DagsterInstance,
    records: Records,
    marks: Marks,
    names: Names,
    own_run_id: str | None,
) -> int:
    """Remove the deleted traces from the records, and delete the logs of the runs' steps; returns the changed texts.

    Reports, problems and errors that Dagster shows are replaced as a whole, since they may quote a trace in any way.
    """
    found: set[str] = set()

    def quoting(text: str) -> str:
        new = _without(text, _without_quotes)
        found.update(marks.found_in(new))
        return new

    changed = _rewritten(records.texts, records.run_ids, quoting)
    if words := only_of_deleted(lake, marks, found):
        changed += _rewritten(records.texts, records.run_ids, lambda text: _without(text, _WithoutWords(marks, words)))
    changed += _forget_configurations(instance, records, marks, names)
    for run_id in records.run_ids:
        if run_id != own_run_id:
            instance.compute_log_manager.delete_logs(prefix=[run_id, "compute_logs"])
    # The files of single runs only grow, and have no free pages unless they were changed now.
    for file in {stored.file for stored in records.texts if not stored.is_of_one_run or stored in changed}:
        if file:
            erase_free_pages(file)
    return changed.total()


def _rewritten(
    texts: Iterable[StoredTexts], run_ids: Collection[str], change: Callable[[str], str]
) -> Counter[StoredTexts]:
    """How many texts of each place were changed."""
    return Counter({stored: count for stored in texts if (count := stored.rewrite(run_ids, change))})


def _without(text: str, change: Callable[[Any], Any]) -> str:
    """The text with `change` applied to its value, if it is JSON, else to itself."""
    try:
        value = json.loads(text)
    except ValueError:  # the value of a tag
        return change(text)
    new = change(value)
    return text if new == value else json.dumps(new)


def _without_quotes(value: Any) -> Any:
    """A record without metadata and errors that may quote traces."""
    if isinstance(value, list):
        return [_without_quotes(each) for each in value]
    if not isinstance(value, dict):
        return value
    new = {key: _replaced(each) if key in QUOTING else _without_quotes(each) for key, each in value.items()}
    if value.get("label") in QUOTING:  # of a materialization; that of a check is a key
        new["entry_data"] = _replaced(value.get("entry_data"))
    if value.get("__class__") == "SerializableErrorInfo":
        new |= {"message": f"{value.get('cls_name')}: {DELETED}\n", "stack": []}
    return new


def _replaced(data: Any) -> Any:
    """The value of an entry of metadata, as Dagster stores it, without its text."""
    name = TEXTS.get(data.get("__class__", "")) if isinstance(data, dict) else None
    return {**data, name: DELETED} if name else data


@dataclass(frozen=True)
class _WithoutWords:
    marks: Marks
    words: Collection[str]

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.marks.without_words(value, self.words, DELETED)
        if isinstance(value, list):
            return [self(each) for each in value]
        if isinstance(value, dict):
            return {key: each if key in NAMES else self(each) for key, each in value.items()}
        return value


def _forget_configurations(
    instance: dg.DagsterInstance, records: Records, marks: Marks, names: Names
) -> Counter[StoredTexts]:
    """Remove the ids of deleted traces, and of the users whose deletion was requested, from runs' configurations."""
    deletions = [run.run_id for run in _runs(instance, names.definition(DELETE))]
    others = [run.run_id for run in _runs(instance, names.definition(ASSESS))]
    bodies = [stored for stored in records.texts if stored.column == "run_body"]
    changed = _rewritten(bodies, deletions, lambda text: _without(text, lambda run: _without_ids(run, None)))
    ids = marks.trace_ids
    return changed + _rewritten(bodies, others, lambda text: _without(text, lambda run: _without_ids(run, ids)))


def _without_ids(value: Any, ids: Collection[str] | None) -> Any:
    """The record of a run whose configuration names none of `ids`, or, with None, no ids at all."""
    if isinstance(value, list):
        return [_without_ids(each, ids) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [DELETED if ids is None or each in ids else each for each in of_key]
        if key in OF_DELETED and isinstance(of_key, list)
        else _without_ids(of_key, ids)
        for key, of_key in value.items()
    }


def _runs(instance: dg.DagsterInstance, job_name: str | None = None) -> Iterator[dg.DagsterRun]:
    cursor: str | None = None
    while runs := instance.get_runs(dg.RunsFilter(job_name=job_name), cursor=cursor, limit=RUNS_AT_A_TIME):
        yield from runs
        cursor = runs[-1].run_id


def _may_quote(run: dg.DagsterRun, names: Names, days: Collection[date]) -> bool:
    if not names.owns(run.job_name, run.asset_selection):
        return False
    if run.job_name in map(names.definition, (ALERTS_JOB, LATEST_HOUR)):  # their records have only figures
        return False
    partition = run.tags.get(PARTITION, "")
    try:
        first, last = (date.fromisoformat(run.tags.get(tag, partition)[:10]) for tag in (RANGE_START, RANGE_END))
    except ValueError:  # no partition, or one of another kind
        return True
    return any(first - AROUND <= day <= last + AROUND for day in days)
