"""The sensor that marks lost runs as failed."""

import dagster as dg

from monitoring_pipeline.keys import LOST_RUNS, Names
from monitoring_pipeline.upkeep.lost_runs import end_lost_runs

INTERVAL_SECONDS = 30


def lost_runs_sensor(names: Names, is_running: bool) -> dg.SensorDefinition:
    """The sensor `lost_runs`, which does what each command does when it starts."""

    @dg.sensor(
        name=names.definition(LOST_RUNS),
        target=None,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING if is_running else dg.DefaultSensorStatus.STOPPED,
        description="Marks runs whose process is gone as failed, so that their hours are requested again.",
    )
    def lost_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = end_lost_runs(context.instance, names)
        return dg.SkipReason(f"ended, as their process is gone: {', '.join(ended)}" if ended else "no lost runs")

    return lost_runs
