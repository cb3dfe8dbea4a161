"""The expected datasets of the recorded conversations, computed from their file alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import ArchiveSettings, LakeSettings, MlflowSettings, ScorerSettings, Settings
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW

TIMES: dict[str, Any] = {"start_time": RECORDED_WINDOW.start, "end_time": RECORDED_WINDOW.end}


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: its trace and, for the last turn, the records of the conversation."""

    trace_id: str
    session: str
    task_id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    tools: tuple[str, ...]
    expected_tools: list[str] | None
    succeeded: bool | None


def turns_of(conversations: list[dict], load_tau: ModuleType) -> list[Turn]:
    """All turns of the conversations, in the order of the file."""
    found = []
    for conversation in conversations:
        session = f"airline-{conversation['task_id']}-{conversation['trial']}"
        turns = list(load_tau.turns(conversation["traj"]))
        for number, (user, answer) in enumerate(turns):
            is_last = number == len(turns) - 1
            contents = [
                message["content"] for message in answer if message["role"] == "assistant" and message["content"]
            ]
            found.append(
                Turn(
                    trace_id=load_tau.TraceBuilder((session, number), 0).trace_id,
                    session=session,
                    task_id=str(conversation["task_id"]),
                    inputs={"messages": [user]},
                    outputs={"content": contents[-1] if contents else None},
                    tools=tuple(message["name"] for message in answer if message["role"] == "tool"),
                    expected_tools=[action["name"] for action in conversation["info"]["task"]["actions"]]
                    if is_last
                    else None,
                    succeeded=conversation["reward"] == 1.0 if is_last else None,
                )
            )
    return found


def settings_of(lake: LakeResource, tracking_uri: str, *scorers: ScorerSettings) -> Settings:
    """Settings of a project over the recorded conversations."""
    return Settings(
        mlflow=MlflowSettings(tracking_uri=tracking_uri, experiments=["airline"]),
        lake=LakeSettings(location=lake.location),
        archive=ArchiveSettings(start=RECORDED_WINDOW.start),
        scorers=[*scorers],
    )
