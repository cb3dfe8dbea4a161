"""The code location of monitoring.toml, which workspace.yaml names."""

import dagster as dg

from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.naming import executor
from monitoring_pipeline.settings import load_settings

settings = load_settings()
# A code location of our own runs assets that people launch in the UI as it runs our jobs.
defs = dg.Definitions.merge(build_definitions(settings), dg.Definitions(executor=executor(settings.dagster)))
