"""The code location of monitoring.toml, which workspace.yaml names."""

from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.settings import load_settings

defs = build_definitions(load_settings())
