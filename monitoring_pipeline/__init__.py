"""Production monitoring for GenAI agents: a Dagster pipeline over MLflow traces and Delta Lake."""

__version__ = "0.1.0"  # pyproject.toml reads it from here
