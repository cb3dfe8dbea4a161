"""Turns: a deletion announces itself in Dagster's storage, and runs that begin after that wait until it has ended.

A run that began before the announcement is one that the deletion waits for; whether it did is decided in the same way
on both sides, by the run's start that Dagster has recorded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from monitoring_pipeline.compat.dagster import forget, recall, remember
from monitoring_pipeline.keys import PIPELINE_TAG, Names
from monitoring_pipeline.upkeep.processes import Process

POLL_SECONDS = 2.0
HEARTBEAT = timedelta(seconds=15)
SILENT = timedelta(minutes=2)  # after which a deletion on another machine is taken for dead
# A run that starts while the announcement is being written may not see it, and clocks differ: a run that starts within
# this time counts as one that began before.
NOTICE = timedelta(seconds=2)

log = logging.getLogger(__name__)


class Announcement(BaseModel):
    """A deletion under way: its process, and the time from which on runs that start wait for it."""

    model_config = ConfigDict(frozen=True)

    token: str
    process: Process
    at: datetime
    seen: datetime

    @property
    def is_over(self) -> bool:
        """Whether its process has ended, or has been silent for so long that it must have."""
        return self.process.is_gone or self.seen < datetime.now(UTC) - SILENT


def under_way(instance: dg.DagsterInstance, names: Names) -> Announcement | None:
    """Return the deletion of this pipeline that is under way; None if there is none."""
    text = recall(instance, _key(names))
    if not text:
        return None
    try:
        found = Announcement.model_validate_json(text)
    except ValidationError:  # of another version
        return None
    return None if found.is_over else found


@contextmanager
def announced(
    instance: dg.DagsterInstance, names: Names, on_wait: Callable[[str], None] = lambda message: None
) -> Iterator[datetime]:
    """Announce a deletion for the duration of the block, after another one has ended.

    Yields the time from which on runs that start wait for it.
    """
    own = _announce(instance, names, on_wait)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(instance, names, own, ended), name="deletion", daemon=True)
    heart.start()
    try:
        yield own.at
    finally:
        ended.set()
        heart.join()
        forget(instance, _key(names))


def wait_for_deletion(
    instance: dg.DagsterInstance, names: Names, run_id: str, on_wait: Callable[[str], None] = lambda message: None
) -> None:
    """Wait until no deletion is under way that was announced before the run began."""
    has_reported = False
    while found := under_way(instance, names):
        record = instance.get_run_record_by_id(run_id)
        if record is None or began_before(record, found.at):
            return
        if not has_reported:
            on_wait(f"waiting for {_named(found)}")
            has_reported = True
        time.sleep(POLL_SECONDS)


def began_before(record: dg.RunRecord, moment: datetime) -> bool:
    """Return whether the run began before `moment`; one that has not begun did not."""
    if record.start_time is None:
        return record.dagster_run.status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
    return record.start_time < moment.timestamp()


def _announce(instance: dg.DagsterInstance, names: Names, on_wait: Callable[[str], None]) -> Announcement:
    token, has_reported = uuid4().hex, False
    while True:
        if other := under_way(instance, names):
            if not has_reported:
                on_wait(f"waiting for {_named(other)}")
                has_reported = True
            time.sleep(POLL_SECONDS)
            continue
        now = datetime.now(UTC)
        own = Announcement(token=token, process=Process.of(os.getpid()), at=now + NOTICE, seen=now)
        remember(instance, _key(names), own.model_dump_json())
        time.sleep(NOTICE.total_seconds())  # also until the last of several announcements at a time is written
        found = under_way(instance, names)
        if found and found.token == token:
            return own


def _beat(instance: dg.DagsterInstance, names: Names, own: Announcement, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT.total_seconds()):
        current = own.model_copy(update={"seen": datetime.now(UTC)})
        try:
            remember(instance, _key(names), current.model_dump_json())
        except Exception as error:  # noqa: BLE001 - a busy database may raise anything; the next beat tries again
            log.warning("the deletion could not report that it is under way: %s", error)


def _key(names: Names) -> str:
    return f"monitoring/deletion/{names.tags[PIPELINE_TAG]}"


def _named(found: Announcement) -> str:
    return f"the deletion on request of process {found.process.pid} on {found.process.host.split()[0]}"
