"""Production monitoring for GenAI agents: a Dagster pipeline over MLflow traces and Delta Lake."""
