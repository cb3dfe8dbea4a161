"""The pipeline as a Dagster component, for a code location that also has other definitions."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster.components import scaffold_component
from pydantic import Field

CONFIG = "monitoring.toml"
STARTER = """\
# Settings of monitoring_pipeline; relative paths start from this folder.

[dagster]
# Keep our asset keys, jobs, groups and resources apart from others in this code location.
key_prefix = "agents"
group_prefix = "agents"
resource_prefix = "agents"

# [mlflow]
# tracking_uri = "http://mlflow.example.com:5000"
# experiments = ["my-agent"]
"""


class MonitoringScaffolder(dg.Scaffolder):
    """Writes defs.yaml and a starter monitoring.toml for `dg scaffold defs`."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        scaffold_component(request, {"config": CONFIG})
        config = Path(request.target_path) / CONFIG
        if not config.exists():
            config.write_text(STARTER, encoding="utf-8")


@dg.scaffold_with(MonitoringScaffolder)
class MonitoringComponent(dg.Component, dg.Resolvable, dg.Model):
    """Archives, measures and scores the MLflow traces of GenAI agents, as configured in a monitoring.toml."""

    config: str = Field(
        default=CONFIG,
        description="path of monitoring.toml, from the component's folder or, if there is no such file, from the "
        "project's folder",
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the definitions from the settings.

        Raises:
            SettingsError: the file does not exist, a setting is invalid, or a scorer cannot be loaded.
        """
        from monitoring_pipeline.orchestration.build import build_definitions
        from monitoring_pipeline.settings import load_settings

        beside = context.path / self.config
        return build_definitions(load_settings(beside if beside.is_file() else context.project_root / self.config))
