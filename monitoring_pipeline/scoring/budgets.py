"""The remaining budget of a scorer, computed from the usage recorded in the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.builtins import request_count
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.metering import shared_file
from monitoring_pipeline.scoring.registry import ConfiguredScorer, instructions
from monitoring_pipeline.scoring.runner import PendingTrace, Spent
from monitoring_pipeline.tables import ASSESSMENTS, NOT_APPLICABLE, SUPERSEDED_ASSESSMENTS, Table
from monitoring_pipeline.windows import Window, floor_hour

# Generous upper bounds for the text that MLflow adds to a trace in a judge's prompt, and for the judge's answer.
INSTRUCTION_TOKENS = 4000
ANSWER_TOKENS = 1000


def ceiling(scorer: ConfiguredScorer, prompt_bytes: int, calls: int = 1) -> Spent:
    """Upper bound on the tokens and cost of `calls` judge calls with `prompt_bytes` of traces; empty without a model.

    A token is at least a byte of UTF-8. A judge that explores a trace with tools may use more.
    """
    if scorer.model is None:
        return Spent()
    own_text = [*dict(scorer.scorer).values(), instructions(scorer.scorer)]
    own_tokens = INSTRUCTION_TOKENS + sum(len(str(value).encode()) for value in own_text)
    given = getattr(scorer.scorer, "inference_params", None) or {}
    # Some MLflow judges do not send these parameters, so a bound below ANSWER_TOKENS would not hold.
    answer_tokens = max(ANSWER_TOKENS, given.get("max_tokens", 0), given.get("max_completion_tokens", 0))
    input_tokens, output_tokens = prompt_bytes + calls * own_tokens, calls * answer_tokens
    cost_usd = scorer.price.cost_usd(input_tokens, output_tokens) if scorer.price else None
    return Spent(input_tokens, output_tokens, cost_usd)


@contextmanager
def spending_alone(lake: LakeResource, scorer: ConfiguredScorer, window: Window) -> Iterator[None]:
    """Let only one process per machine spend a scorer's budget at a time; the others wait here.

    Without a budget, only one calls a scorer's model for traces of the same day, so that no trace is judged twice.
    """
    names = [f"{day}" for day in window.days()] if scorer.model else []
    if scorer.budget != Budget():
        names = ["budget"]
    with ExitStack() as held:
        for name in names:  # in order, so that no two processes wait for each other
            held.enter_context(FileLock(shared_file(lake.location, scorer.name, name)))
        yield


class Purse:
    """The rest of a scorer's budgets: dollars for this UTC day, traces for this clock hour.

    All digests of the scorer share it. A trace is admitted only if it fits the budget together with all traces under
    way, each counted at its ceiling, so the limit always holds. `used_up` is the usage at which a trace was refused,
    else empty.
    """

    def __init__(self, lake: LakeResource, scorer: ConfiguredScorer) -> None:
        self._lake = lake
        self._scorer = scorer
        self._under_way: dict[str, float] = {}
        self.used_up = ""
        self.refresh()

    def refresh(self) -> None:
        """Read the usage from the tables again; commit everything settled first."""
        now = datetime.now(UTC)
        self._day = datetime.combine(now.date(), time(), UTC)
        self._hour = floor_hour(now)
        self._spent_usd, self._traces, self._dearest_usd = 0.0, 0, 0.0
        budget = self._scorer.budget
        if budget.max_usd_per_day is not None:
            costs = _since(self._lake, ASSESSMENTS, self._scorer, self._day, "cost_usd")["cost_usd"]
            self._spent_usd = (pc.sum(costs).as_py() or 0.0) - self._spent_before_usd()
        if budget.max_traces_per_hour is not None:
            self._traces = sum(
                _since(self._lake, table, self._scorer, self._hour).num_rows
                for table in (ASSESSMENTS, SUPERSEDED_ASSESSMENTS, NOT_APPLICABLE)
            )

    def _spent_before_usd(self) -> float:
        """The part of the costs of today's results that earlier days paid: that of the results they superseded."""
        rows = self._lake.read_written_since(
            SUPERSEDED_ASSESSMENTS, self._day, "scorer", "assessed_at", "superseded_at", "cost_usd"
        )
        is_earlier = (pc.field("assessed_at") < self._day) & (pc.field("superseded_at") >= self._day)
        return pc.sum(rows.filter((pc.field("scorer") == self._scorer.name) & is_earlier)["cost_usd"]).as_py() or 0.0

    @property
    def spent_usd(self) -> float:
        """The dollars of this UTC day, if the budget limits them."""
        return self._spent_usd

    @property
    def traces(self) -> int:
        """The traces of this clock hour, if the budget limits them."""
        return self._traces

    @property
    def is_stale(self) -> bool:
        """Whether a new day or hour has begun, which brings a new budget."""
        now = datetime.now(UTC)
        return now.date() != self._day.date() or floor_hour(now) != self._hour

    def has_room_for(self, pending: PendingTrace) -> bool:
        """Whether the budget allows scoring the trace in addition to the traces under way."""
        budget, under_way = self._scorer.budget, self._under_way
        if budget.max_traces_per_hour is not None and self._traces + len(under_way) >= budget.max_traces_per_hour:
            return False
        return budget.max_usd_per_day is None or (
            self._spent_usd + sum(under_way.values()) + self._ceiling_usd(pending) <= budget.max_usd_per_day
        )

    def admit(self, pending: PendingTrace) -> bool:
        """Reserve budget for the trace and return True; if it has no room, set `used_up` and return False."""
        if not self.has_room_for(pending):
            self.used_up = str(self)
            return False
        self.reserve(pending)
        return True

    def reserve(self, pending: PendingTrace) -> None:
        """Count the trace as under way."""
        self._under_way[pending.trace_id] = self._ceiling_usd(pending)

    def settle(self, pending: PendingTrace, row: dict[str, Any]) -> None:
        """Replace the ceiling of a scored trace with its actual cost."""
        del self._under_way[pending.trace_id]
        cost_usd = (row.get("cost_usd") or 0.0) - (pending.spent.cost_usd or 0.0)
        self._spent_usd += cost_usd
        self._dearest_usd = max(self._dearest_usd, cost_usd)
        self._traces += 1

    def _ceiling_usd(self, pending: PendingTrace) -> float:
        if self._scorer.budget.max_usd_per_day is None:
            return 0.0
        calls = request_count(self._scorer.scorer, pending.traces)
        return max(self._dearest_usd, ceiling(self._scorer, calls * pending.prompt_bytes, calls).cost_usd or 0.0)

    def __str__(self) -> str:
        budget = self._scorer.budget
        parts = []
        if budget.max_usd_per_day is not None:
            parts.append(f"${self._spent_usd:.4f} of max_usd_per_day = {budget.max_usd_per_day:g}")
        if budget.max_traces_per_hour is not None:
            parts.append(f"{self._traces} traces of max_traces_per_hour = {budget.max_traces_per_hour}")
        return " and ".join(parts)


def _since(lake: LakeResource, table: Table, scorer: ConfiguredScorer, moment: datetime, *columns: str) -> pa.Table:
    """Rows of the scorer assessed at or after `moment`."""
    rows = lake.read_written_since(table, moment, "scorer", "assessed_at", *columns)
    return rows.filter((pc.field("scorer") == scorer.name) & (pc.field("assessed_at") >= moment))
