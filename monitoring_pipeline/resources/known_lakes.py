"""Which lake a Dagster instance has used at a location: one that vanished must not be made anew unnoticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.compat.dagster import forget, recall, remember
from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.tables import AGENT_TRACES

if TYPE_CHECKING:
    import dagster as dg

    from monitoring_pipeline.resources.lake import LakeResource

KEY = "monitoring_pipeline/lake/"


def check_known(lake: LakeResource, instance: dg.DagsterInstance) -> None:
    """Return if the lake is the one that the instance has used at this location; the first use creates and records it.

    Delta Lake gives each table that it creates an id, so an empty lake in the place of another is recognized as well.
    A catalog keeps its tables itself, and an ephemeral instance remembers nothing: both pass.

    Raises:
        LakeError: the lake is missing or another one, or it cannot be opened.
    """
    if lake.is_in_catalog or instance.is_ephemeral:
        return
    known = recall(instance, KEY + lake.location)
    if known is None:
        lake.version(AGENT_TRACES)
        remember(instance, KEY + lake.location, lake.identity() or "")
        return
    found = lake.identity()
    if found != known:
        problem = "is missing or empty" if found is None else "is not the one that was used before"
        raise LakeError(
            f"the lake at {lake.location} {problem}: bring the folder back (is its disk mounted?), or call "
            "`monitoring-pipeline setup --new-lake` to begin with what is there now, which scores all traces again"
        )


def forget_known(lake: LakeResource, instance: dg.DagsterInstance) -> None:
    """Let the next use of the location record the lake that is there then."""
    forget(instance, KEY + lake.location)
