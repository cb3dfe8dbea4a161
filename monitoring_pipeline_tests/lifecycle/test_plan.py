"""Plans: differences between settings and experiment, applied once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from monitoring_pipeline import lifecycle
from monitoring_pipeline.lifecycle.plan import apply, plan
from monitoring_pipeline.lifecycle.scorer_handles import history
from monitoring_pipeline.scoring.states import StaleHandleError
from monitoring_pipeline.settings import MlflowSettings, ScorerSettings, ScoringSettings, Settings
from monitoring_pipeline_tests.sources.stores import Store

CODE = "monitoring_pipeline_tests.scoring.sample_scorers:characters"
WORDS = ScorerSettings(name="words", scorer=CODE, params={"words": ["flight"]}, filter="tags.env = 'prod'")
LONG = ScorerSettings(name="long", scorer=CODE, params={"least": 100}, sample_rate=0.5)
ORDER = ScorerSettings(name="order_number", builtin="RegexMatch", params={"pattern": "#W[0-9]+"})

SettingsOf = Callable[..., Settings]


@pytest.fixture
def settings_of(store: Store, request: pytest.FixtureRequest) -> SettingsOf:
    """Settings with these scorers, whose states are in the test's own experiment."""
    name = request.node.nodeid
    MlflowClient(store.uri).create_experiment(name, artifact_location=store.file.parent.as_uri())
    return lambda *scorers: Settings(
        mlflow=MlflowSettings(tracking_uri=store.uri),
        scoring=ScoringSettings(experiment=name),
        scorers=list(scorers),
    )


def changed(entry: ScorerSettings, **fields: object) -> ScorerSettings:
    return entry.model_copy(update=fields)


def states(settings: Settings) -> dict[str, str]:
    return {handle.name: handle.state.value for handle in lifecycle.handles(settings)}


def test_configured_scorers_are_created_in_their_state_once(settings_of: SettingsOf) -> None:
    settings = settings_of(WORDS, changed(LONG, state="stopped"), changed(ORDER, state="registered"))
    planned = plan(settings)

    assert [(change.handle.name, change.action.value) for change in planned] == [
        ("words", "create"),
        ("long", "create"),
        ("order_number", "create"),
    ]
    digest = planned[0].handle.digest
    assert planned[0].fields == {
        "state": (None, "active"),
        "sample_rate": (None, 1.0),
        "filter": (None, "tags.env = 'prod'"),
        "digest": (None, digest),
    }
    assert states(settings) == {"words": "unregistered", "long": "unregistered", "order_number": "unregistered"}

    apply(planned)
    assert states(settings) == {"words": "active", "long": "stopped", "order_number": "registered"}
    assert plan(settings) == []
    assert apply(plan(settings)) == []
    assert [(change.revision, change.action) for change in history("words", settings)] == [(1, "apply")]


def test_only_changed_fields_are_planned_and_applied(settings_of: SettingsOf) -> None:
    before = apply(plan(settings_of(WORDS, LONG, ORDER)))
    settings = settings_of(changed(WORDS, filter=None, sample_rate=0.2), LONG, changed(ORDER, params={"pattern": "#X"}))
    planned = plan(settings)

    digest = planned[1].handle.digest
    assert [(change.handle.name, change.action.value, change.fields) for change in planned] == [
        ("words", "change", {"sample_rate": (1.0, 0.2), "filter": ("tags.env = 'prod'", None)}),
        ("order_number", "change", {"digest": (before[2].digest, digest)}),
    ]
    words, order = apply(planned)
    assert (words.sample_rate, words.filter, words.version, words.revision) == (0.2, None, 1, 2)
    assert (order.version, order.mlflow_version, order.registered_digest) == (2, 2, digest)
    assert plan(settings) == []


@pytest.mark.parametrize("wished", ["active", "stopped", "registered"])
@pytest.mark.parametrize("current", ["active", "stopped", "registered"])
def test_one_change_leads_from_any_state_to_any_other(settings_of: SettingsOf, current: str, wished: str) -> None:
    apply(plan(settings_of(changed(LONG, state=current))))
    settings = settings_of(changed(LONG, state=wished))
    planned = plan(settings)

    assert [change.fields for change in planned] == ([] if current == wished else [{"state": (current, wished)}])
    apply(planned)
    assert states(settings) == {"long": wished}
    assert len(history("long", settings)) == (1 if current == wished else 2)


def test_a_manual_change_is_reverted(settings_of: SettingsOf) -> None:
    settings = settings_of(LONG)
    (handle,) = apply(plan(settings))
    handle.update(0.9).stop()

    (change,) = plan(settings)
    assert change.fields == {"state": ("stopped", "active"), "sample_rate": (0.9, 0.5)}


def test_a_removed_scorer_is_deleted_and_created_again_when_it_returns(settings_of: SettingsOf) -> None:
    apply(plan(settings_of(LONG, WORDS)))
    planned = plan(settings_of(LONG))

    assert [(change.handle.name, change.action.value) for change in planned] == [("words", "delete")]
    assert planned[0].fields["state"] == ("active", None)
    apply(planned)
    assert states(settings_of(LONG)) == {"long": "active"}
    assert plan(settings_of(LONG)) == []

    (again,) = plan(settings_of(LONG, WORDS))
    assert again.action.value == "create"
    (handle,) = apply([again])
    assert (handle.state.value, handle.version, handle.revision) == ("active", 1, 3)


def test_a_plan_is_refused_if_a_scorer_changed_since(settings_of: SettingsOf) -> None:
    settings = settings_of(WORDS, LONG)
    planned = plan(settings)
    lifecycle.handle("long", settings).register()

    with pytest.raises(StaleHandleError, match="'long' was changed after this handle was created, by 'register'"):
        apply(planned)
    assert states(settings) == {"words": "active", "long": "registered"}
    assert [change.handle.name for change in plan(settings)] == ["long"]
    apply(plan(settings))
    assert states(settings) == {"words": "active", "long": "active"}
