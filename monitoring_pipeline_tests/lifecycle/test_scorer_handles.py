"""The lifecycle of scorers over a database and over HTTP: changes, conflicts, and what all readers see."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from monitoring_pipeline import lifecycle
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.lifecycle import ScorerHandle, ScorerState
from monitoring_pipeline.lifecycle.scorer_handles import UnknownScorerError, history
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.states import Change, LifecycleError, ScorerLog, StaleHandleError, effective
from monitoring_pipeline.settings import MlflowSettings, ScorerSettings, ScoringSettings, Settings
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.sources.stores import Store

SCORERS = "monitoring_pipeline_tests.scoring.sample_scorers"
CODE = ScorerSettings(name="long", scorer=f"{SCORERS}:characters", sample_rate=0.5, filter="tags.env = 'prod'")
CHANGED_CODE = ScorerSettings(name="long", scorer=f"{SCORERS}:at_least_10", sample_rate=0.25)
BUILTIN = ScorerSettings(name="order_number", builtin="RegexMatch", params={"pattern": "#W[0-9]+"})
CHANGED_BUILTIN = ScorerSettings(name="order_number", builtin="RegexMatch", params={"pattern": "#X[0-9]+"})


@pytest.fixture
def experiment(store: Store, request: pytest.FixtureRequest) -> str:
    """The name of the test's own experiment."""
    name = f"{request.node.nodeid} of {os.getpid()}"
    MlflowClient(store.uri).create_experiment(name, artifact_location=store.file.parent.as_uri())
    return name


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest, store: Store) -> str:
    """The store's tracking URI, as a database and over HTTP."""
    return store.uri if request.param == "database" else request.getfixturevalue("server")


def settings_of(uri: str, experiment: str | None, *scorers: ScorerSettings) -> Settings:
    return Settings(
        mlflow=MlflowSettings(tracking_uri=uri),
        scoring=ScoringSettings(experiment=experiment),
        scorers=list(scorers or (CODE,)),
    )


@pytest.fixture
def settings(uri: str, experiment: str) -> Settings:
    """Settings with only the scorer `long`."""
    return settings_of(uri, experiment)


@pytest.fixture
def local(store: Store, experiment: str) -> Callable[..., Settings]:
    """Settings over the database, with these scorers."""
    return lambda *scorers: settings_of(store.uri, experiment, *scorers)


def tags_of(store: Store, experiment: str) -> dict[str, str]:
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    return found.tags


def mlflow_versions(store: Store, experiment: str, name: str) -> list[int]:
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    return [entry.scorer_version for entry in store.client.store.list_scorer_versions(found.experiment_id, name)]


def test_every_change_returns_a_new_handle_and_keeps_the_old_one(settings: Settings) -> None:
    before = datetime.now(UTC)
    chain = [lifecycle.handle("long", settings)]
    chain.append(chain[-1].register())
    chain.append(chain[-1].start())
    chain.append(chain[-1].update(sample_rate=0.1))
    chain.append(chain[-1].stop())
    chain.append(chain[-1].start(sample_rate=1, filter=""))
    chain.append(chain[-1].delete())
    chain.append(chain[-1].register())

    prod = "tags.env = 'prod'"
    assert [(h.revision, h.state.value, h.sample_rate, h.filter, h.version) for h in chain] == [
        (0, "unregistered", 0.5, prod, None),
        (1, "registered", 0.5, prod, 1),
        (2, "active", 0.5, prod, 1),
        (3, "active", 0.1, prod, 1),
        (4, "stopped", 0.1, prod, 1),
        (5, "active", 1.0, None, 1),
        (6, "unregistered", 0.5, prod, None),
        (7, "registered", 0.5, prod, 1),
    ]
    assert chain[0].changed_at is None
    times = [h.changed_at for h in chain[1:] if h.changed_at]
    assert before <= times[0] and times == sorted(times) and times[-1] <= datetime.now(UTC)
    assert [h.registered_digest == h.digest for h in chain] == [h.version is not None for h in chain]
    assert replace(lifecycle.handle("long", settings), note=chain[-1].note) == chain[-1]
    with pytest.raises(FrozenInstanceError):
        chain[0].state = ScorerState.ACTIVE  # type: ignore[misc]


def test_database_and_server_see_the_same_experiment(store: Store, server: str, experiment: str) -> None:
    by_database, by_server = settings_of(store.uri, experiment), settings_of(server, experiment)
    lifecycle.handle("long", by_database).register().start(0.3)

    assert lifecycle.handle("long", by_server) == lifecycle.handle("long", by_database)
    lifecycle.handle("long", by_server).stop()
    assert lifecycle.handle("long", by_database).state is ScorerState.STOPPED
    assert history("long", by_server) == history("long", by_database)


@pytest.mark.parametrize(("filter", "kept"), [(None, "tags.a = 'b'"), ("", None), ("tags.c = 'd'", "tags.c = 'd'")])
def test_update_changes_only_given_fields_in_every_registered_state(
    local: Callable[..., Settings], filter: str | None, kept: str | None
) -> None:
    registered = lifecycle.handle("long", local()).register().update(filter="tags.a = 'b'")
    active = registered.update(0.2, filter).start(0.7, "tags.a = 'b'")
    stopped = active.update(0.3, filter).stop().update(filter="tags.a = 'b'")
    changes = history("long", local())

    assert stopped.update(0.4, filter).state is ScorerState.STOPPED
    updates = [entry.standing for entry in [*changes, *history("long", local())[-1:]] if entry.action == "update"]
    assert [(entry.state, entry.sample_rate, entry.filter) for entry in updates] == [
        ("registered", 0.5, "tags.a = 'b'"),
        ("registered", 0.2, kept),
        ("active", 0.3, kept),
        ("stopped", 0.3, "tags.a = 'b'"),
        ("stopped", 0.4, kept),
    ]


def test_start_without_a_rate_uses_the_default_of_the_kind(local: Callable[..., Settings]) -> None:
    judge = ScorerSettings(name="kind", builtin="Guidelines", params={"guidelines": "Be kind."}, model="openai:/gpt-4o")
    assert lifecycle.handle("kind", local(judge)).register().start().sample_rate == 0.1


@pytest.mark.parametrize(
    ("calls", "action", "message"),
    [
        ([], "start", "cannot start scorer 'long': it is unregistered; call register()"),
        ([], "stop", "cannot stop scorer 'long': it is unregistered; call register()"),
        ([], "delete", "cannot delete scorer 'long': it is unregistered; call register()"),
        (["register"], "stop", "cannot stop scorer 'long': it is registered; call start(), update() or delete()"),
        (["register", "start"], "start", "cannot start scorer 'long': it is active; call update(), stop() or delete()"),
        (["register", "start", "stop"], "stop", "cannot stop scorer 'long': it is stopped; call start(), update()"),
        (["register", "delete"], "delete", "cannot delete scorer 'long': it is unregistered; call register()"),
    ],
)
def test_a_wrong_transition_names_the_state_and_the_method_to_call(
    local: Callable[..., Settings], calls: list[str], action: str, message: str
) -> None:
    handle = lifecycle.handle("long", local())
    for call in calls:
        handle = getattr(handle, call)()

    with pytest.raises(LifecycleError) as error:
        getattr(handle, action)()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert lifecycle.handle("long", local()).revision == handle.revision


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_rate": -0.1}, "sample rate -0.1 of scorer 'long': must be from 0 to 1"),
        ({"sample_rate": 1.01}, "sample rate 1.01 of scorer 'long': must be from 0 to 1"),
        ({"sample_rate": float("nan")}, "sample rate nan of scorer 'long': must be from 0 to 1"),
        ({"filter": "nonsense"}, "scorer 'long': trace filter 'nonsense': "),
        ({"filter": f"tags.a = '{'b' * 5000}'"}, "the filter of scorer 'long' is too long: its 5,011 characters"),
    ],
)
@pytest.mark.parametrize("action", ["start", "update"])
def test_a_wrong_rate_or_filter_is_reported_and_nothing_is_written(
    store: Store, experiment: str, local: Callable[..., Settings], action: str, given: dict[str, Any], message: str
) -> None:
    handle = lifecycle.handle("long", local()).register()
    tags = tags_of(store, experiment)

    with pytest.raises(LifecycleError, match="^" + re.escape(message)) as error:
        getattr(handle, action)(**given)
    assert "\n" not in str(error.value)
    assert tags_of(store, experiment) == tags


def test_an_update_without_changes_is_an_error(local: Callable[..., Settings]) -> None:
    with pytest.raises(LifecycleError, match="nothing to update for scorer 'long'"):
        lifecycle.handle("long", local()).register().update()


@pytest.mark.parametrize("action", ["register", "start", "stop", "delete"])
def test_a_handle_is_stale_once_the_scorer_changed(settings: Settings, action: str) -> None:
    stale = lifecycle.handle("long", settings).register()
    current = stale.start()

    with pytest.raises(StaleHandleError) as error:
        getattr(stale, action)()
    assert str(error.value) == (
        f"scorer 'long' was changed after this handle was created, by 'start', revision 2 at "
        f"{current.changed_at:%Y-%m-%d %H:%M:%S} UTC; get a new handle with lifecycle.handle('long')"
    )
    assert lifecycle.handle("long", settings) == current


def test_a_change_by_another_process_is_seen_and_makes_the_handle_stale(settings: Settings, tmp_path: Path) -> None:
    handle = lifecycle.handle("long", settings).register().start()
    config = tmp_path / "monitoring.toml"
    config.write_text(
        f'[mlflow]\ntracking_uri = "{settings.mlflow.tracking_uri}"\n'
        f'[scoring]\nexperiment = "{settings.scoring.experiment}"\n'
        f'[[scorers]]\nname = "long"\nscorer = "{CODE.scorer}"\n'
    )
    program = "from monitoring_pipeline import lifecycle; print(lifecycle.handle('long').update(sample_rate=0.9))"
    environment, output = {**os.environ, "MONITORING_CONFIG": str(config)}, tmp_path / "output"
    other = Fork(exec, (program, {}), Path(__file__).parents[2], environment, output, tmp_path / "errors")
    assert other.wait() == 0, (tmp_path / "errors").read_text()

    assert output.read_text().strip() == repr(lifecycle.handle("long", settings))
    assert lifecycle.handle("long", settings).sample_rate == 0.9
    with pytest.raises(StaleHandleError, match="by 'update', revision 3"):
        handle.stop()


def test_history_keeps_every_change_with_its_time_even_after_a_deletion(settings: Settings) -> None:
    assert history("long", settings) == []
    handles = [lifecycle.handle("long", settings)]
    for action in ("register", "start", "stop", "delete", "register"):
        handles.append(getattr(handles[-1], action)())

    changes = history("long", settings)
    assert [(change.revision, change.action, change.applied) for change in changes] == [
        (1, "register", True),
        (2, "start", True),
        (3, "stop", True),
        (4, "delete", True),
        (5, "register", True),
    ]
    assert [change.changed_at for change in changes] == [handle.changed_at for handle in handles[1:]]


def test_a_changed_digest_is_a_new_version_and_keeps_the_rest(
    store: Store, experiment: str, local: Callable[..., Settings]
) -> None:
    before = lifecycle.handle("order_number", local(BUILTIN)).register().start(0.3, "tags.a = 'b'")
    assert (before.version, before.mlflow_version, before.note) == (1, 1, None)
    assert before.register() is before

    unregistered = lifecycle.handle("order_number", local(CHANGED_BUILTIN))
    assert (unregistered.registered_digest, unregistered.version) == (before.digest, 1)
    assert unregistered.digest != before.digest
    after = unregistered.register()
    assert (after.state, after.sample_rate, after.filter) == (ScorerState.ACTIVE, 0.3, "tags.a = 'b'")
    assert (after.version, after.mlflow_version, after.registered_digest) == (2, 2, unregistered.digest)

    again = after.delete().register()
    assert (again.version, again.mlflow_version) == (2, 2)
    assert mlflow_versions(store, experiment, "order_number") == [1, 2]
    assert lifecycle.handle("order_number", local(BUILTIN)).register().version == 3


def test_a_scorer_that_mlflow_accepts_is_registered_there_but_not_started(
    uri: str, experiment: str, store: Store
) -> None:
    judge = ScorerSettings(
        name="kind", builtin="make_judge", model="openai:/gpt-4o", params={"instructions": "{{ outputs }}?"}
    )
    handle = lifecycle.handle("kind", settings_of(uri, experiment, judge)).register().start(1.0)
    found = MlflowClient(uri).get_experiment_by_name(experiment)
    assert found

    assert (handle.mlflow_version, handle.note) == (1, None)
    registered = store.client.store.list_scorers(found.experiment_id)
    assert [(entry.scorer_name, entry.scorer_version) for entry in registered] == [("kind", 1)]
    assert store.client.store.get_online_scoring_configs([registered[0].scorer_id]) == []


@pytest.mark.parametrize(
    ("reference", "params", "reason"),
    [
        ("characters", {}, "Custom scorer registration (using @scorer decorator) is disabled"),
        ("characters", {"least": 5}, "MLflow stores only a function's source"),
        ("flight", {}, "Got ScorerKind.CLASS"),
    ],
)
def test_a_scorer_that_mlflow_refuses_is_registered_here_with_the_reason(
    uri: str, experiment: str, reference: str, params: dict[str, Any], reason: str
) -> None:
    entry = ScorerSettings(name="code", scorer=f"{SCORERS}:{reference}", params=params)
    handle = lifecycle.handle("code", settings_of(uri, experiment, entry)).register()

    assert (handle.state, handle.version, handle.mlflow_version) == (ScorerState.REGISTERED, 1, None)
    assert handle.note is not None
    assert reason in handle.note
    assert "\n" not in handle.note
    assert handle.start().state is ScorerState.ACTIVE


def test_a_code_scorer_is_registered_in_mlflow_once_it_allows_them(
    store: Store, experiment: str, local: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = lifecycle.handle("long", local()).register()
    assert refused.mlflow_version is None

    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS", "true")
    taken = refused.delete().register()
    assert (taken.version, taken.mlflow_version, taken.note) == (1, 1, None)
    assert mlflow_versions(store, experiment, "long") == [1]


@pytest.mark.parametrize("variable", [None, "sqlite:////elsewhere.db"])
def test_the_global_tracking_uri_does_not_change(
    local: Callable[..., Settings], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    before = mlflow.get_tracking_uri()

    assert lifecycle.handle("order_number", local(BUILTIN)).register().mlflow_version == 1
    assert os.environ.get("MLFLOW_TRACKING_URI") == variable
    assert mlflow.get_tracking_uri() == before


def test_of_two_writers_of_one_revision_the_earlier_wins_and_the_other_gets_an_error(settings: Settings) -> None:
    log = ScorerLog.of(settings)
    lifecycle.handle("long", settings).register()
    states = log.read()
    current = states.current("long")
    assert current
    first = log.append(states, "long", "start", replace(current.standing, state=ScorerState.ACTIVE))

    with pytest.raises(StaleHandleError, match="by 'start', revision 2"):
        log.append(states, "long", "update", replace(current.standing, sample_rate=0.9))
    assert log.read().current("long") == first
    assert [(change.revision, change.action, change.applied) for change in history("long", settings)] == [
        (1, "register", True),
        (2, "start", True),
        (2, "update", False),
    ]
    assert lifecycle.handle("long", settings).stop().revision == 3


@pytest.mark.parametrize(("earlier", "id"), [(timedelta(seconds=1), "ffffffff"), (timedelta(0), "00000000")])
def test_an_earlier_entry_that_arrives_late_wins_and_the_other_handle_is_stale(
    store: Store, server: str, experiment: str, earlier: timedelta, id: str
) -> None:
    by_database, by_server = settings_of(store.uri, experiment), settings_of(server, experiment)
    stale = lifecycle.handle("long", by_database).register()
    written = history("long", by_database)[0]
    late = Change("long", 1, "apply", replace(written.standing, sample_rate=0.9), written.changed_at - earlier, id)
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    MlflowClient(store.uri).set_experiment_tag(found.experiment_id, late.key, late.value)

    for settings in (by_database, by_server):
        assert history("long", settings) == [late, replace(written, applied=False)]
        assert lifecycle.handle("long", settings).sample_rate == 0.9
    with pytest.raises(StaleHandleError, match="by 'apply', revision 1"):
        stale.start()


def test_many_concurrent_writers_leave_one_change_that_all_agree_on(settings: Settings) -> None:
    handle = lifecycle.handle("long", settings).register()
    barrier, outcomes = threading.Barrier(4), {}

    def start(rate: float) -> None:
        barrier.wait()
        try:
            outcomes[rate] = handle.start(rate)
        except StaleHandleError as error:
            outcomes[rate] = error

    threads = [threading.Thread(target=start, args=(rate,)) for rate in (0.1, 0.2, 0.3, 0.4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(outcomes) == 4
    started = [change for change in history("long", settings) if change.revision == 2]
    assert [change.applied for change in started] == [True] + [False] * (len(started) - 1)
    winner = lifecycle.handle("long", settings)
    assert outcomes[winner.sample_rate] == winner


def test_effective_scorers_are_the_configured_ones_with_their_registered_state(
    uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("never", "registered", "active", "stopped", "deleted", "changed", "inactive")
    entries = [CODE.model_copy(update={"name": name}) for name in names]
    settings = settings_of(uri, experiment, *entries)
    for name in names[1:-1]:
        lifecycle.handle(name, settings).register()
    for name in ("active", "stopped", "deleted", "changed"):
        lifecycle.handle(name, settings).start(0.75, "")
    lifecycle.handle("stopped", settings).stop()
    lifecycle.handle("deleted", settings).delete()
    changed = CHANGED_CODE.model_copy(update={"name": "changed"})
    inactive = entries[-1].model_copy(update={"state": "stopped"})
    scorers = load_scorers([*entries[:-2], changed, inactive])

    reads = []
    read = MlflowClient.get_experiment_by_name
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *given: reads.append(given) or read(*given))
    found = effective(scorers, ScorerLog.of(settings))

    assert len(reads) == 1
    prod = CODE.filter
    assert [(s.name, s.active, s.sample_rate, s.filter, s.version) for s in found] == [
        ("never", True, 0.5, prod, None),
        ("registered", False, 0.5, prod, 1),
        ("active", True, 0.75, None, 1),
        ("stopped", False, 0.75, None, 1),
        ("deleted", False, 0.5, prod, None),
        ("changed", True, 0.75, None, None),
        ("inactive", False, 0.5, prod, None),
    ]
    assert [s.digest for s in found] == [s.digest for s in scorers]


def test_the_states_are_in_the_experiment_of_the_settings(store: Store, experiment: str) -> None:
    def tagged(name: str) -> bool:
        return any(key.startswith("monitoring.scorer.long.") for key in tags_of(store, name))

    def register(scoring_experiment: str | None, *monitored: str) -> None:
        mlflow_settings = MlflowSettings(tracking_uri=store.uri, experiments=list(monitored))
        where = ScoringSettings(experiment=scoring_experiment)
        lifecycle.handle("long", Settings(mlflow=mlflow_settings, scoring=where, scorers=[CODE])).register()

    register(None)
    assert [tagged(name) for name in ("Default", "made", experiment)] == [True, False, False]
    register(None, "made", experiment)
    assert [tagged(name) for name in ("Default", "made", experiment)] == [True, True, False]
    register(experiment, "made")
    assert tagged(experiment)


def test_a_missing_or_deleted_experiment_is_one_line_with_the_fix(uri: str, experiment: str, store: Store) -> None:
    with pytest.raises(TrackingError) as missing:
        lifecycle.handles(settings_of(uri, "nowhere"))
    assert str(missing.value) == (
        f"the scorers' states are kept in experiment 'nowhere' at {uri}, which does not exist; create it, or set "
        "[scoring] experiment to another"
    )

    client = MlflowClient(store.uri)
    found = client.get_experiment_by_name(experiment)
    assert found
    client.delete_experiment(found.experiment_id)
    with pytest.raises(
        TrackingError, match=f"which is deleted; restore it .mlflow experiments restore -x {found.experiment_id}."
    ):
        lifecycle.handles(settings_of(uri, experiment))


def test_a_store_without_a_default_experiment_has_no_states(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring_pipeline.scoring.states.DEFAULT_EXPERIMENT_ID", "987654321")
    (handle,) = lifecycle.handles(settings_of(uri, None, CODE))
    assert handle.state == "unregistered"
    with pytest.raises(TrackingError, match=r"kept in the default experiment at .*, which does not exist; create it"):
        handle.register()


def test_a_deleted_default_experiment_does_not_lose_the_states(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    client = MlflowClient(store.uri)
    settings = settings_of(store.uri, None, CODE)
    client.delete_experiment("0")
    (handle,) = lifecycle.handles(settings)
    assert handle.state == "unregistered"
    client.restore_experiment("0")
    handle.register()
    client.delete_experiment("0")
    with pytest.raises(TrackingError, match=r"default experiment at .*, which is deleted; restore it"):
        lifecycle.handles(settings)


@pytest.mark.parametrize("value", ["not JSON", "[]", "{}", '{"state": "asleep"}'])
def test_a_tag_that_was_tampered_with_is_named(
    store: Store, experiment: str, local: Callable[..., Settings], value: str
) -> None:
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    MlflowClient(store.uri).set_experiment_tag(found.experiment_id, "monitoring.scorer.long.000001.0123abcd", value)

    with pytest.raises(TrackingError, match=r"000001\.0123abcd is not a valid scorer change") as error:
        lifecycle.handles(local())
    assert "\n" not in str(error.value)


def test_an_emptied_log_makes_a_handle_stale(store: Store, experiment: str, local: Callable[..., Settings]) -> None:
    handle = lifecycle.handle("long", local()).register()
    found = MlflowClient(store.uri).get_experiment_by_name(experiment)
    assert found
    MlflowClient(store.uri).delete_experiment_tag(found.experiment_id, history("long", local())[0].key)

    with pytest.raises(StaleHandleError, match="its entries in the experiment's tags were removed"):
        handle.start()


def test_handles_are_the_configured_ones_and_those_of_the_experiment(local: Callable[..., Settings]) -> None:
    lifecycle.handle("long", local()).register().start()
    lifecycle.handle("order_number", local(BUILTIN)).register()

    assert [handle.name for handle in lifecycle.handles(local(BUILTIN))] == ["order_number", "long"]
    orphan: ScorerHandle = lifecycle.handles(local(BUILTIN))[1]
    assert (orphan.state, orphan.digest, orphan.sample_rate) == (ScorerState.ACTIVE, None, 0.5)
    stopped = orphan.update(0.2).stop()
    for action in (stopped.register, stopped.start):
        with pytest.raises(LifecycleError, match=r"it is not configured; add it to \[\[scorers\]\]"):
            action()
    stopped.delete()
    assert [handle.name for handle in lifecycle.handles(local(BUILTIN))] == ["order_number"]
    assert len(history("long", local(BUILTIN))) == 5


def test_an_unknown_name_is_reported_with_the_known_ones(local: Callable[..., Settings]) -> None:
    lifecycle.handle("order_number", local(BUILTIN)).register()
    for look_up in (lifecycle.handle, history):
        with pytest.raises(UnknownScorerError) as error:
            look_up("lnog", local())
        assert str(error.value) == "no scorer 'lnog'; existing scorers: long, order_number"


def test_importing_the_package_imports_no_mlflow() -> None:
    program = "import sys, monitoring_pipeline.scoring; print([m for m in ('mlflow', 'dagster') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
