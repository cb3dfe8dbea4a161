"""The executor of our jobs: Dagster's own, and each run records its process before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from monitoring_pipeline.keys import Names
from monitoring_pipeline.upkeep.lost_runs import process_tags

if TYPE_CHECKING:
    from monitoring_pipeline.compat.dagster import (
        ExecutionPlan,
        PlanOrchestrationContext,
        RetryMode,
        StepDependencyConfig,
    )


def recording(executor: dg.ExecutorDefinition, names: Names) -> dg.ExecutorDefinition:
    """`executor` with the same name and configuration, whose runs record their process."""
    create = executor.executor_creation_fn
    assert create is not None

    @dg.executor(
        name=executor.name, config_schema=executor.config_schema.as_field(), requirements=executor.get_requirements
    )
    def recorded(context: dg.InitExecutorContext) -> dg.Executor:
        return _RecordingExecutor(create(context), names)

    return recorded


class _RecordingExecutor(dg.Executor):
    def __init__(self, executor: dg.Executor, names: Names) -> None:
        self._executor, self._names = executor, names

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        run_id = plan_context.run_id
        plan_context.instance.add_run_tags(run_id, process_tags(self._names, run_id))
        yield from self._executor.execute(plan_context, execution_plan)

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._executor.step_dependency_config
