"""Configuration of rules and notifiers: a line for each mistake, and quiet hours."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import NotifySettings, load_settings

RULE = '[[alerts]]\nname = "a"\nmetric = "error_rate"\n'
MAIL = '[[notifiers]]\nname = "m"\nkind = "email"\nhost = "h"\nsender = "a@b.c"\nto = ["d@e.f"]\n'


def problems(tmp_path: Path, toml: str) -> list[str]:
    file = tmp_path / "monitoring.toml"
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(SettingsError) as failure:
        load_settings(file)
    return [problem.removeprefix(f"{file}: ") for problem in failure.value.problems]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (
            '[[alerts]]\nname = "a"\nmetric = "errors"\nthreshold = 1',
            "alerts[0].metric = 'errors': input should be 'err",
        ),
        (RULE, "alerts[0]: a: none given; give one of threshold, change, objective"),
        (RULE + 'threshold = 0.1\nchange = "up"', "alerts[0]: a: threshold and change given; give one of"),
        (RULE + "threshold = 10", "alerts[0]: a: threshold = 10.0 of error_rate: must be from 0 to 1"),
        (
            RULE + 'threshold = 0.1\noperator = "=="',
            "alerts[0].operator = '==': input should be '>', '>=', '<' or '<='",
        ),
        (
            RULE + 'threshold = 0.1\nwindow = "90m"',
            "alerts[0].window: '90m' is not a length of time: write whole hours or days",
        ),
        (
            RULE + 'threshold = 0.1\nseverity = "bad"',
            "alerts[0].severity = 'bad': input should be 'info', 'warning' or",
        ),
        (RULE + 'threshold = 0.1\nnotify = "x"', "alerts[0].notify = 'x': must be a list, such as"),
        (RULE + 'threshold = 0.1\nnotify = ["x"]', "alerts[0].notify = 'x': no such notifier; configured are log"),
        (
            RULE + "threshold = 0.1\nburn_rate = 2",
            "alerts[0]: a: burn_rate does not apply to a rule with threshold; remove",
        ),
        (RULE + "threshold = 0.1\nthresh = 2", "alerts[0].thresh: unknown key; known here: name, metric, scope, "),
        (
            RULE + 'threshold = 0.1\nscope = { name = "x" }',
            "alerts[0].scope.name: unknown key; known here: experiment, ",
        ),
        (
            RULE + 'threshold = 0.1\nscope = { scorer = "x" }',
            "alerts[0]: a: error_rate does not depend on a scorer; remove",
        ),
        (RULE + 'change = "up"\nwindow = "5h"', "alerts[0]: a: window = '5h' of a change must divide a day evenly"),
        (RULE + 'objective = 0.99\nwindow = "1h"', "alerts[0]: a: short_window = '1h' must be shorter than window"),
        (
            RULE + 'objective = 0.9\nwindow = "6h"\nburn_rate = 14',
            "alerts[0]: a: burn_rate = 14 of objective = 0.9 needs",
        ),
        (RULE + "threshold = 0.1\n" + RULE + "threshold = 0.2", "alerts: name 'a' is used 2 times; give each its own"),
        (
            '[[alerts]]\nname = "a"\nmetric = "pass_rate"\nthreshold = 0.8\nscope = { scorer = "x" }',
            "alerts[0].scope.scorer = 'x': no such scorer; configured are response_quality, ",
        ),
        (
            '[[alerts]]\nname = "a"\nmetric = "freshness_hours"\nchange = "up"',
            "alerts[0]: a: freshness_hours can only have a threshold",
        ),
        ('[[notifiers]]\nname = "s"\nkind = "slack"', "notifiers[0]: s: kind = 'slack' needs url_env"),
        ('[[notifiers]]\nname = "s"\nkind = "pager"', "notifiers[0].kind = 'pager': input should be"),
        (MAIL + 'user = "u"', "notifiers[0]: m: user and password_env belong together"),
        (
            MAIL + 'user = "u"\npassword_env = "P"\nsecurity = "none"',
            "notifiers[0]: m: the password would be sent unencrypted",
        ),
        (MAIL.replace("d@e.f", "d@e.f, x"), "notifiers[0].to: 'd@e.f, x' is not a mail address"),
        ('[[notifiers]]\nname = "log"\nkind = "log"', "notifiers: 'log' is built in; choose another name"),
        ("[notify]\nevery_minutes = 7", "notify.every_minutes = 7: input should be 1, 2, 3, 5"),
        ('[notify]\nquiet = "22-7"', "notify.quiet: '22-7' is not a range of hours: write it as 22:00-07:00"),
        ('[notify]\ntime_zone = "Mars"', "notify.time_zone: 'Mars' is not a time zone: write it as Europe/Berlin"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key(tmp_path: Path, toml: str, line: str) -> None:
    (found,) = problems(tmp_path, toml)
    assert found.startswith(line)
    assert "\n" not in found


@pytest.mark.parametrize("key", ["url_env", "url", "password_env"])
def test_an_address_given_instead_of_a_variables_name_is_not_printed(tmp_path: Path, key: str) -> None:
    (found,) = problems(tmp_path, f'[[notifiers]]\nname = "s"\nkind = "slack"\n{key} = "https://hooks/T0/hunter2"')[:1]
    assert "hunter2" not in found


def test_the_documented_rules_are_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(encoding="utf-8")
    toml = text.split("```toml\n")[1].split("```")[0].replace('"safety"', '"tool_errors"')
    file = tmp_path / "monitoring.toml"
    file.write_text(toml, encoding="utf-8")
    assert [rule.kind for rule in load_settings(file).alerts] == ["threshold", "change", "objective"]


@pytest.mark.parametrize(
    ("quiet", "hour", "expected"),
    [("22:00-07:00", 21, True), ("22:00-07:00", 6, False), ("09:00-17:00", 8, True), ("09:00-17:00", 16, False)],
)
def test_quiet_hours_use_their_time_zone_and_exclude_the_end(quiet: str, hour: int, expected: bool) -> None:
    settings = NotifySettings(quiet=quiet, time_zone="Europe/Berlin")  # an hour ahead of UTC in winter
    assert settings.is_quiet(datetime(2026, 1, 5, hour, tzinfo=UTC)) is expected
