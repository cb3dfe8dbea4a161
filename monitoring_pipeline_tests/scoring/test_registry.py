"""Configured scorers: loading, parameters, digests, and errors."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.scoring import builtins
from monitoring_pipeline.scoring.limits import Price
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
from monitoring_pipeline.traces import reading
from monitoring_pipeline_tests.scoring import sample_scorers
from monitoring_pipeline_tests.scoring.test_builtins import entry as builtin

SAMPLES = sample_scorers.__name__
ONE_OF_A_KIND = [
    "characters", "at_least_10", "with_words", "flight", "order_number", "short", "relevance", "polite", "both_words",
]  # fmt: skip
IN_ANOTHER_PROCESS = """
import json, sys
from monitoring_pipeline.scoring import builtins
from monitoring_pipeline.scoring.limits import Price
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import ScorerSettings
print(json.dumps([s.digest for s in load_scorers([ScorerSettings(**entry) for entry in json.loads(sys.argv[1])])]))
"""


def sample(attribute: str, **values: object) -> ScorerSettings:
    return ScorerSettings.model_validate({"name": attribute, "scorer": f"{SAMPLES}:{attribute}", **values})


def load(attribute: str, **values: object) -> ConfiguredScorer:
    (loaded,) = load_scorers([sample(attribute, **values)])
    return loaded


def problems(*entries: ScorerSettings) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_scorers(list(entries))
    return caught.value.problems


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def test_settings_become_scorers_in_their_order() -> None:
    entries = [
        sample("flight", sample_rate=0.25, filter="status = 'OK'"),
        ScorerSettings(name="errors", scorer=f"{SHIPPED_SCORERS}:tool_errors"),
    ]
    loaded = [(scorer.name, scorer.sample_rate, scorer.filter) for scorer in load_scorers(entries)]
    assert loaded == [("flight", 0.25, "status = 'OK'"), ("errors", 1.0, None)]


def test_digests_are_the_same_in_every_process() -> None:
    shipped = [
        ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in ("tool_errors", "response_quality")
    ]
    entries = [*map(sample, ONE_OF_A_KIND), *shipped, *map(builtin, builtins.names())]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, json.dumps([entry.model_dump() for entry in entries])]
    # The order of a set of texts, such as a built-in scorer's columns, changes with the seed.
    processes = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    here = [scorer.digest for scorer in load_scorers(entries)]
    for out, err in outputs:
        assert json.loads(out or "[]") == here, err.decode()


def test_digests_are_the_same_after_reloading() -> None:
    before = [load(name).digest for name in ONE_OF_A_KIND]
    importlib.reload(sample_scorers)
    assert [load(name).digest for name in ONE_OF_A_KIND] == before


def test_a_digest_is_16_hexadecimal_digits() -> None:
    assert all(len(load(name).digest) == 16 and int(load(name).digest, 16) >= 0 for name in ONE_OF_A_KIND)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("at_least_10", "at_least_200", id="captured value"),
        pytest.param("at_least_10", "with_words", id="captured set"),
        pytest.param("flight", "hotel", id="field of a class"),
        pytest.param("order_number", "any_number", id="field of a built-in"),
        pytest.param("short", "long", id="limit of a built-in"),
        pytest.param("relevance", "relevance_by_another_model", id="model of a built-in"),
        pytest.param("polite", "polite_by_another_model", id="model of a judge"),
        pytest.param("polite", "polite_by_another_prompt", id="prompt of a judge"),
        pytest.param("polite", "polite_at_a_temperature", id="parameters of a judge"),
        pytest.param("polite", "polite_or_not", id="scale of a judge"),
        pytest.param("both_words", "one_word_twice", id="parts of an ensemble"),
        pytest.param("both_words", "either_word", id="function of an ensemble"),
    ],
)
def test_scorers_that_judge_differently_have_different_digests(one: str, other: str) -> None:
    assert load(one).digest != load(other).digest


def test_a_digest_changes_with_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "from mlflow.genai.scorers import scorer\n\n@scorer\ndef rate(outputs):\n    return len(outputs) > {limit}\n"
    names = [
        module(tmp_path, "digest_first", text.format(limit=1)),
        module(tmp_path, "digest_same", text.format(limit=1)),
        module(tmp_path, "digest_other", text.format(limit=2)),
    ]
    first, same, other = load_scorers([ScorerSettings(name=name, scorer=f"{name}:rate") for name in names])
    assert first.digest == same.digest != other.digest


def test_a_digest_changes_with_the_params() -> None:
    digests = {load("characters", params=params).digest for params in ({}, {"least": 1}, {"least": 2})}
    assert len(digests) == 3


def test_the_order_of_params_makes_no_difference() -> None:
    one = load("characters", params={"least": 1, "words": ["a"]})
    other = load("characters", params={"words": ["a"], "least": 1})
    assert one.digest == other.digest


@pytest.mark.parametrize("values", [{"name": "another"}, {"sample_rate": 0.1}, {"filter": "status = 'OK'"}])
def test_a_digest_does_not_change_with(values: dict[str, object]) -> None:
    assert load("characters", **values).digest == load("characters").digest


def test_params_reach_the_function() -> None:
    outputs = "a flight"
    least = [load("characters", params={"least": least}).scorer.run(outputs=outputs) for least in (8, 9)]
    assert least == [True, False]


def test_a_digest_changes_with_the_modules_of_this_package_that_the_scorer_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("response_quality", "tool_errors", "stage_latency")
    entries = [ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in names]
    entries.append(ScorerSettings(name="strict", scorer=entries[0].reference, params={"min_characters": 40}))
    before = [scorer.digest for scorer in load_scorers(entries)]
    source_of = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda it: "changed" if it is reading else source_of(it))
    after = [scorer.digest for scorer in load_scorers(entries)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_bound_scorer_keeps_its_name_description_and_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from mlflow.genai.scorers import scorer\n\n"
        "@scorer(name='n', description='d', timeout=7)\ndef rate(outputs, limit=1):\n    return limit\n"
    )
    name = module(tmp_path, "bound_scorer", text)
    (loaded,) = load_scorers([ScorerSettings(name="x", scorer=f"{name}:rate", params={"limit": 5})])
    assert (loaded.scorer.name, loaded.scorer.description, loaded.scorer.timeout) == ("n", "d", 7)


@pytest.mark.parametrize(
    ("name", "expected"), [("characters", True), ("at_least_200", False), ("flight", True), ("order_number", "no")]
)
def test_each_kind_of_scorer_runs(name: str, expected: object) -> None:
    result = load(name).scorer.run(outputs="a flight")
    assert getattr(result, "value", result) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(sample("characters", params={"most": 1}), "'most'; it has least, words", id="unknown param"),
        pytest.param(sample("characters", params={"outputs": "x"}), "'outputs'", id="param of MLflow's own"),
        pytest.param(sample("flight", params={"word": "x"}), "takes no params", id="params of a class"),
        pytest.param(sample("undecorated"), "is a function, not a scorer", id="not a scorer"),
        pytest.param(sample("MODEL"), "is a str, not a scorer", id="a text"),
        pytest.param(sample("nothing"), "has no 'nothing'", id="missing attribute"),
        pytest.param(sample("flight", filter="status = OK"), "trace filter 'status = OK'", id="bad filter"),
        pytest.param(sample("without_source"), "define it in a module", id="no source"),
        pytest.param(
            ScorerSettings(name="absent", scorer="no_such_module_here:x"), "ModuleNotFoundError", id="missing module"
        ),
    ],
)
def test_an_unusable_scorer_is_reported_in_one_line(entry: ScorerSettings, message: str) -> None:
    (problem,) = problems(entry)
    assert problem.startswith(f"scorer {entry.name!r}: ")
    assert message in problem
    assert "\n" not in problem


@pytest.mark.parametrize("statement", ["raise RuntimeError('big\\n boom')", "raise SystemExit('big boom')"])
def test_a_module_that_raises_is_reported_in_one_line(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = module(tmp_path, "raises_at_import", statement)
    (problem,) = problems(ScorerSettings(name="x", scorer=f"{name}:rate"))
    assert problem.startswith("scorer 'x': importing raises_at_import failed: ")
    assert problem.endswith("Error: big boom" if "Error" in statement else "SystemExit: big boom")


def test_all_problems_are_reported_together() -> None:
    bad = [sample("nothing"), sample("undecorated"), sample("flight", filter="status = OK")]
    lines = problems(bad[0], sample("flight"), *bad[1:])
    assert [line.split(":")[0] for line in lines] == ["scorer 'nothing'", "scorer 'undecorated'", "scorer 'flight'"]


@pytest.mark.parametrize("name", ["characters", "order_number", "both_words", "whole_session"])
def test_a_scorer_without_a_model_samples_everything_and_costs_nothing(name: str) -> None:
    scorer = load(name)
    assert (scorer.sample_rate, scorer.model, scorer.price, scorer.limits.concurrency) == (1.0, None, None, 1)


@pytest.mark.parametrize(("name", "rate"), [("relevance", 0.2), ("polite", 0.05)])
def test_a_judge_of_your_own_is_a_judge(name: str, rate: float) -> None:
    scorer = load(name)
    assert (scorer.sample_rate, scorer.model, scorer.limits.concurrency) == (rate, sample_scorers.MODEL, 8)
    assert load(name, sample_rate=0).sample_rate == 0


def test_prices_of_a_judge_come_from_the_settings_or_else_the_price_list() -> None:
    (listed,) = load_scorers([builtin("Safety")])
    assert listed.price is not None
    # The price of gpt-4o-mini: 0.15 and 0.60 dollars per million tokens.
    assert listed.price.cost_usd(1_000_000, 0) == pytest.approx(0.15)
    assert listed.price.cost_usd(0, 1_000_000) == pytest.approx(0.60)
    given = {"usd_per_million_input_tokens": 2, "usd_per_million_output_tokens": 0}
    (set_by_hand,) = load_scorers([builtin("Safety", **given)])
    assert set_by_hand.price == Price(2e-6, 0.0)
    (unknown,) = load_scorers([builtin("Safety", model="openai:/not-on-any-list")])
    assert unknown.price is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"usd_per_million_input_tokens": 2}, "usd_per_million_output_tokens go together; set both"),
        (
            {"model": "openai:/not-listed", "max_usd_per_day": 1},
            "max_usd_per_day needs the price of openai:/not-listed",
        ),
        ({"model": "endpoints:/mine", "requests_per_minute": 5}, "does not apply to endpoints:/mine"),
        ({"model": "typesafe:/mine", "requests_per_minute": 5}, "does not apply to typesafe:/mine"),
        ({"model": "elsewhere:/mine", "requests_per_minute": 5}, "does not apply to elsewhere:/mine"),
        ({"model": None, "requests_per_minute": 5}, "does not apply to databricks"),
    ],
)
def test_an_unenforceable_limit_is_reported_in_one_line(
    values: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_GENAI_JUDGE_DEFAULT_MODEL", "databricks")
    (problem,) = problems(builtin("Safety", **values))
    assert message in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("limit", "message"),
    [("max_usd_per_day", "is for judges, whose calls cost money"), ("requests_per_minute", "calls no model")],
)
def test_a_limit_of_judges_is_refused_for_code(limit: str, message: str) -> None:
    (problem,) = problems(sample("flight", **{limit: 1}))
    assert message in problem
