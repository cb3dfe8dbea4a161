"""Datasets on Databricks: the real client against a double of the service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.genai.datasets import get_dataset

from monitoring_pipeline.api import merge_into_mlflow_dataset
from monitoring_pipeline.databricks.agents import DATABRICKS, at_databricks
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings import MlflowSettings, Settings
from monitoring_pipeline_tests.databricks.managed_double import EVALS, ManagedDouble
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, Answer, Request, WorkspaceDouble, error
from monitoring_pipeline_tests.sources.stores import Store

TABLE = "main.evaluation.regression"
RECORD: dict[str, Any] = {
    "inputs": {"q": "a"},
    "outputs": "b",
    "expectations": {"expected_facts": ["c"], "expected_tools": ["search"], "expected_query_type": None},
    "metadata": {"test_id": "t", "source_trace": "tr-1", "original_score": 0.5},
}


class DatasetsDouble:
    """The part of the service that stores datasets: tables by name, and their records."""

    def __init__(self, workspace: WorkspaceDouble) -> None:
        self.ids: dict[str, str] = {}
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.experiment_ids: list[str] = []
        one = f"{EVALS}/datasets/(?P<id>[^/]+)"
        workspace.route("GET", "/api/2.1/unity-catalog/tables/(?P<name>.+)", self._table)
        workspace.route("POST", f"{EVALS}/datasets", self._create)
        workspace.route("GET", one, lambda request: Answer(body=self._response(request.values["id"])))
        workspace.route("GET", f"{one}/records", self._list)
        workspace.route("POST", f"{one}/records:batchCreate", self._add)

    def _table(self, request: Request) -> Answer:
        name = request.values["name"]
        if name not in self.ids:
            return error(404, "NOT_FOUND", f"Table '{name}' does not exist.")
        return Answer(body={"name": name.split(".")[-1], "full_name": name, "table_id": self.ids[name]})

    def _create(self, request: Request) -> Answer:
        name = request.json["name"]
        if not re.fullmatch(r"\w+\.\w+\.\w+", name):
            return error(400, "INVALID_PARAMETER_VALUE", f"Invalid table name: {name}")
        self.ids[name] = f"d-{len(self.ids)}"
        self.records[self.ids[name]] = []
        self.experiment_ids = request.query["experiment_ids"].split(",")
        return Answer(body=self._response(self.ids[name]))

    def _response(self, dataset_id: str) -> dict[str, Any]:
        (name,) = [name for name, found in self.ids.items() if found == dataset_id]
        return {"dataset_id": dataset_id, "name": name, "digest": "0", "is_uc_native": True}

    def _list(self, request: Request) -> Answer:
        return Answer(body={"dataset_records": self.records[request.values["id"]]})

    def _add(self, request: Request) -> Answer:
        there = self.records[request.values["id"]]
        for added in request.json["requests"]:
            there.append({**added["dataset_record"], "dataset_record_id": f"r-{len(there)}"})
        return Answer()


@pytest.fixture
def service(workspace: WorkspaceDouble, server: str, tmp_path: Path) -> DatasetsDouble:
    """The service in the workspace, beside MLflow's own API."""
    ManagedDouble(workspace, server, tmp_path / "archived", lambda name, trace: None)
    return DatasetsDouble(workspace)


@pytest.fixture
def settings() -> Settings:
    return Settings(mlflow=MlflowSettings(tracking_uri=DATABRICKS, experiments=["made"]))


def test_records_are_added_once_to_the_table(service: DatasetsDouble, settings: Settings, store: Store) -> None:
    merged = merge_into_mlflow_dataset([RECORD], TABLE, settings)
    assert (merged.dataset_id, merged.added, merged.records) == ("d-0", 1, 1)
    assert service.experiment_ids == [store.experiment_id]
    again = merge_into_mlflow_dataset([RECORD, {"inputs": {"q": "b"}}], TABLE, settings)
    assert (again.dataset_id, again.added, again.records) == ("d-0", 1, 2)
    with at_databricks():
        rows = get_dataset(TABLE).to_df().to_dict("records")
    assert [row["inputs"] for row in rows] == [{"q": "a"}, {"q": "b"}]
    assert rows[0]["expectations"] == {
        "expected_facts": ["c"],
        "expected_tools": ["search"],
        "expected_query_type": "none",
    }
    assert rows[0]["tags"] == {"test_id": "t", "source_trace": "tr-1", "original_score": "0.5"}
    assert service.records["d-0"][0]["source"]["trace"] == {"trace_id": "tr-1"}


def test_a_refusal_of_databricks_is_reported_in_one_line(
    service: DatasetsDouble, settings: Settings, workspace: WorkspaceDouble
) -> None:
    with pytest.raises(MonitoringError, match=r"the name must be a table, such as catalog\.schema\.regression$"):
        merge_into_mlflow_dataset([RECORD], "regression", settings)
    assert not service.ids
    workspace.route("POST", f"{EVALS}/datasets", lambda request: error(403, "PERMISSION_DENIED", "no CREATE TABLE"))
    with pytest.raises(MonitoringError) as raised:
        merge_into_mlflow_dataset([RECORD], TABLE, settings)
    assert "no CREATE TABLE" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
