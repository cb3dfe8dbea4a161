"""A loopback double of Databricks' managed evaluation, added to the workspace: scorers, their backfills, archival.

It speaks to the real databricks-agents and the real MLflow. Requests to MLflow's own API are
forwarded to a real `mlflow server`. A backfill is a job of the Jobs API: when it ends, the traces that it scored are
appended to the table of archived traces, as archival does. Results are what `judge` returns for a trace.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from zlib import crc32

from mlflow.entities import Assessment, Trace

from monitoring_pipeline_tests.databricks.workspace_double import Answer, Request, WorkspaceDouble, error
from monitoring_pipeline_tests.sources.archived_tables import ARCHIVED_TRACE, archived_rows, write

EVALS = "/api/2.0/managed-evals"
SCORERS = f"{EVALS}/scheduled-scorers"
Judge = Callable[[str, Trace], Assessment | None]


@dataclass
class Backfill:
    """A backfill as requested; `state` is the state of its job's run."""

    job_id: int
    experiment_id: str
    request: dict[str, Any]
    state: dict[str, str] = field(default_factory=lambda: {"life_cycle_state": "RUNNING", "state_message": ""})
    polls: int = 0

    @property
    def is_over(self) -> bool:
        return self.state["life_cycle_state"] == "TERMINATED"


@dataclass
class Experiment:
    """An experiment in the service: its scorers as sent, in order, and its other state."""

    scorers: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    archive_table: str | None = None
    frequency_minutes: int | None = None
    backfills: list[Backfill] = field(default_factory=list)

    @property
    def running(self) -> Backfill | None:
        return next((backfill for backfill in self.backfills if not backfill.is_over), None)

    def scorer(self, name: str) -> dict[str, Any] | None:
        return next((scorer for scorer in self.scorers if scorer["name"] == name), None)


class ManagedDouble:
    """The service: `experiments` by id, and the `traces` that backfills may score.

    The job of a backfill ends after `polls_to_end` polls; `fails` is the error message if it fails. With
    `forgets_jobs`, the Jobs API does not return it.
    """

    def __init__(self, workspace: WorkspaceDouble, mlflow_uri: str, archive: Path, judge: Judge) -> None:
        self.workspace, self.mlflow_uri, self.archive, self.judge = workspace, mlflow_uri, archive, judge
        self.experiments: defaultdict[str, Experiment] = defaultdict(Experiment)
        self.traces: list[Trace] = []
        self.polls_to_end, self.page = 2, 100
        self.fails: str | None = None
        self.forgets_jobs = False
        for method in ("GET", "POST", "PATCH", "DELETE"):
            workspace.route(method, r"/api/\d\.0/mlflow/.+", self._pass_on)
        one = f"{SCORERS}/(?P<id>[^/]+)"
        workspace.route("GET", one, self._list)
        workspace.route("PATCH", one, self._patch)
        workspace.route("POST", one, self._create)
        workspace.route("POST", f"{one}/backfill", self._backfill)
        workspace.route("POST", f"{EVALS}/monitors", self._monitors)
        workspace.route("POST", f"{EVALS}/experiments/(?P<id>[^/]+)/trace-archival", self._start_archival)
        workspace.route("PATCH", f"{EVALS}/experiments/(?P<id>[^/]+)/monitoring-configuration", self._configure)
        workspace.route("GET", "/api/2.2/jobs/runs/list", self._list_runs)

    def archived(self, traces: list[Trace]) -> None:
        """Add traces, and their rows in the table of archived traces."""
        self.traces += traces
        write(self.archive, archived_rows(traces), ARCHIVED_TRACE)

    def finish(self, backfill: Backfill) -> None:
        """End the backfill: score its sample, drawn by the service's own rule, and archive the scored traces again."""
        if self.fails:
            backfill.state = {"life_cycle_state": "TERMINATED", "result_state": "FAILED", "state_message": self.fails}
            return
        backfill.state = {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS", "state_message": ""}
        request, scored = backfill.request, []
        for trace in self.traces:
            if not request["start_timestamp_ms"] <= trace.info.request_time < request["end_timestamp_ms"]:
                continue
            found = [
                self.judge(scorer["name"], trace)
                for scorer in request["scorer_sample_rates"]
                if crc32(trace.info.trace_id.encode()) / 2**32 < scorer["sample_rate"]
            ]
            trace.info.assessments += [assessment for assessment in found if assessment]
            scored += [trace] if any(found) else []
        write(self.archive, archived_rows(scored), ARCHIVED_TRACE)

    def requests_to(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests to a path below /managed-evals."""
        return [r.json for r in self.workspace.requests if (r.method, r.path) == (method, f"{EVALS}/{path}")]

    def _pass_on(self, request: Request) -> Answer:
        address = f"{self.mlflow_uri}{quote(request.path)}?{urlencode(request.query)}"
        headers = {"Content-Type": "application/json"} if request.body else {}
        sent = urllib.request.Request(address, request.body or None, headers, method=request.method)
        try:
            with urllib.request.urlopen(sent, timeout=60) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as refused:
            return Answer(refused.code, json.loads(refused.read()))

    def _list(self, request: Request) -> Answer:
        experiment, first = self.experiments[request.values["id"]], int(request.query.get("page_token", 0))
        body = _response(request, experiment.scorers[first : first + self.page])
        if len(experiment.scorers) > first + self.page:
            body["next_page_token"] = str(first + self.page)
        return Answer(body=body)

    def _patch(self, request: Request) -> Answer:
        experiment = self.experiments[request.values["id"]]
        if not experiment.versions:
            return error(404, "NOT_FOUND", f"No scheduled scorers for experiment {request.values['id']}")
        return self._replace(request, experiment)

    def _create(self, request: Request) -> Answer:
        experiment = self.experiments[request.values["id"]]
        if experiment.versions:
            return error(409, "ALREADY_EXISTS", f"Experiment {request.values['id']} has scheduled scorers")
        return self._replace(request, experiment)

    def _replace(self, request: Request, experiment: Experiment) -> Answer:
        scorers = request.json["scheduled_scorers"]["scorers"]
        if len(scorers) > 20:
            return error(400, "INVALID_PARAMETER_VALUE", "An experiment has at most 20 scorers")
        for scorer in scorers:
            before = experiment.scorer(scorer["name"])
            if before is None or before["serialized_scorer"] != scorer["serialized_scorer"]:
                experiment.versions[scorer["name"]] = experiment.versions.get(scorer["name"], 0) + 1
            scorer["scorer_version"] = experiment.versions[scorer["name"]]
        experiment.scorers = scorers
        return Answer(body=_response(request, scorers))

    def _backfill(self, request: Request) -> Answer:
        experiment = self.experiments[request.values["id"]]
        if experiment.running:
            return error(409, "RESOURCE_CONFLICT", "A backfill is already running for this experiment")
        for scorer in request.json["scorer_sample_rates"]:
            if experiment.scorer(scorer["name"]) is None:
                return error(400, "INVALID_PARAMETER_VALUE", f"Scorer {scorer['name']} is not registered")
        job_id = 7000 + sum(len(other.backfills) for other in self.experiments.values())
        experiment.backfills.append(Backfill(job_id, request.values["id"], request.json))
        return Answer(body={"job_id": str(job_id)})

    def _poll(self, backfill: Backfill) -> None:
        backfill.polls += 1
        if not backfill.is_over and backfill.polls >= self.polls_to_end:
            self.finish(backfill)

    def _monitors(self, request: Request) -> Answer:
        experiment_id = request.json["experiment_id"]
        experiment = self.experiments[experiment_id]
        if not (experiment.versions or experiment.archive_table):
            return Answer(body={"monitor_infos": []})
        if self.forgets_jobs and experiment.running:
            self._poll(experiment.running)
        monitor = {
            "experiment_id": experiment_id,
            "is_agent_external": True,
            "evaluated_traces_table": "main.monitoring.checkpoint",
            "trace_archive_table": experiment.archive_table,
        }
        info: dict[str, Any] = {"endpoint_name": f"monitor-{experiment_id}", "monitor": monitor}
        if experiment.running:
            info["current_backfill_job_id"] = str(experiment.running.job_id)
        return Answer(body={"monitor_infos": [info]})

    def _list_runs(self, request: Request) -> Answer:
        jobs = [backfill for experiment in self.experiments.values() for backfill in experiment.backfills]
        backfill = next((job for job in jobs if job.job_id == int(request.query["job_id"])), None)
        if backfill is None or self.forgets_jobs:
            return Answer()
        self._poll(backfill)
        page = f"{self.workspace.host}/?o=1#job/{backfill.job_id}/run/1"
        return Answer(body={"runs": [{"run_id": 1, "run_page_url": page, "state": backfill.state}]})

    def _start_archival(self, request: Request) -> Answer:
        experiment = self.experiments[request.values["id"]]
        if experiment.archive_table:
            return error(409, "RESOURCE_ALREADY_EXISTS", "Trace archival is already configured")
        experiment.archive_table = request.json["archive_table_fullname"]
        return Answer(body={"job_id": "6000"})

    def _configure(self, request: Request) -> Answer:
        experiment = self.experiments[request.values["id"]]
        if not experiment.versions:
            return error(404, "NOT_FOUND", "No monitor for this experiment")
        experiment.frequency_minutes = request.json["monitoring_configuration"]["frequency_minutes"]
        return Answer(body={"frequency_minutes": experiment.frequency_minutes})


def _response(request: Request, scorers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"experiment_id": request.values["id"], "scheduled_scorers": {"scorers": scorers}}
