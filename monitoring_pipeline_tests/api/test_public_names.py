"""Public names do not change by accident: they equal a checked-in listing."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from monitoring_pipeline import api
from monitoring_pipeline.api.common import renamed
from monitoring_pipeline_tests.api.public_names import listing

LISTED = Path(__file__).with_name("public_names.txt")


def test_public_names_match_the_listing() -> None:
    """Fails with the difference; a deliberate change belongs in the listing and in CHANGELOG.md."""
    difference = difflib.unified_diff(
        LISTED.read_text(encoding="utf-8").splitlines(),
        listing().splitlines(),
        "listed",
        "in the code",
        n=0,
        lineterm="",
    )
    changed = "\n".join(difference)
    assert not changed, (
        f"public names have changed:\n{changed}\nIf that is meant, note it in CHANGELOG.md and run "
        f"python -m monitoring_pipeline_tests.api.public_names > {LISTED.name}"
    )


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("query_archived_traces", "filter", "filter_string"),
        ("assess", "filter", "filter_string"),
        ("assess", "start", "start_time"),
        ("assess", "end", "end_time"),
        ("evaluate_production_traces", "evaluators", "scorers"),
        ("build_dataset_from_traces", "filter", "filter_string"),
        ("build_dataset_with_expectations", "filter", "filter_string"),
        ("build_dataset_from_tagged_traces", "filter", "filter_string"),
        ("extract_failures_for_eval", "filter", "filter_string"),
        ("build_regression_tests", "filter", "filter_string"),
        ("build_diverse_eval_dataset", "filter", "filter_string"),
    ],
)
def test_former_keywords_still_name_the_parameter(name: str, old: str, new: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) got both '{new}' and '{old}', its former name$"):
        getattr(api, name)(**{old: None, new: None})


def test_a_former_keyword_warns_and_reaches_the_function() -> None:
    @renamed(start="start_time")
    def hours(start_time: int, end_time: int = 2) -> tuple[int, int]:
        return start_time, end_time

    with pytest.warns(DeprecationWarning, match=r"^hours\(\): 'start' is now 'start_time'$"):
        assert hours(start=1, end_time=3) == (1, 3)  # type: ignore[call-arg]
    assert hours(1) == hours(start_time=1) == (1, 2)
