"""Alert rules and notifiers: [[alerts]], [[notifiers]] and [notify] of monitoring.toml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from monitoring_pipeline.settings.base import Section, hours_of_text
from monitoring_pipeline.settings.sections import ScorerSettings

# A rate is a share of traces, from 0 to 1; a total is a sum per hour; other metrics are neither.
RATES = ("error_rate", "pass_rate", "coverage", "scorer_failure_rate")
TOTALS = ("cost_usd_per_hour", "tokens_per_hour")
METRICS = (*RATES, "p95_duration_ms", *TOTALS, "freshness_hours", "archive_given_up")
OF_SCORERS = ("pass_rate", "coverage", "scorer_failure_rate")
WITHOUT_HOURS = ("freshness_hours", "archive_given_up")  # current values, without window or baseline
BAD_IS_LOW = ("pass_rate", "coverage")
WINDOWS_OF_A_DAY = (1, 2, 3, 4, 6, 8, 12, 24)
LOG = "log"  # the notifier that needs no configuration

_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_ADDRESS = re.compile(r"[^@\s<>,;:]+@[^@\s<>,;:]+")


class ScopeSettings(Section):
    """The traces or scorer of a rule; by default all traces count together, and each scorer by itself."""

    experiment: str | None = Field(default=None, min_length=1, description="name of an MLflow experiment")
    trace_name: str | None = Field(default=None, min_length=1, description="trace name")
    scorer: str | None = Field(default=None, min_length=1, description="name of a configured scorer")


class AlertSettings(Section):
    """An alert rule: a metric with a `threshold`, a `change` against its past, or an `objective`."""

    name: str = Field(description="name of the rule in messages")
    metric: Literal[METRICS] = Field(description="metric that the rule watches")  # type: ignore[valid-type]
    scope: ScopeSettings = Field(default_factory=ScopeSettings, description="traces or scorer that the rule covers")
    window: str = Field(default="1h", description="hours that the metric covers, such as 1h, 6h or 3d")
    severity: Literal["info", "warning", "critical"] = Field(
        default="warning", description="critical alerts are sent in quiet hours too"
    )
    notify: list[str] = Field(
        default=[LOG], min_length=1, description="names of notifiers; `log` needs no configuration"
    )
    min_traces: int = Field(default=30, ge=1, description="with fewer traces, rates and percentiles are not evaluated")

    operator: Literal[">", ">=", "<", "<="] = Field(
        default=">", description="comparison of the metric with `threshold`"
    )
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="alert when the metric is `operator` this value"
    )

    change: Literal["up", "down", "both"] | None = Field(
        default=None, description="alert on a change in this direction, against the same hours of previous weeks"
    )
    min_change: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="smallest change that alerts: a difference of shares for a rate (default 0.05), relative for other "
        "metrics (default 0.25, i.e. 25 %)",
    )
    baseline_weeks: int = Field(default=4, ge=3, le=12, description="previous weeks to compare with")
    false_alarms_per_30_days: float = Field(default=0.3, gt=0, le=30, description="highest rate of alerts by chance")

    objective: float | None = Field(default=None, gt=0, lt=1, description="share of good traces, such as 0.99")
    burn_rate: float = Field(
        default=6.0,
        gt=0,
        allow_inf_nan=False,
        description="alert when the error budget burns this many times too fast",
    )
    short_window: str = Field(
        default="1h", description="second window, which must burn as fast, so that the alert ends soon after its cause"
    )

    @property
    def kind(self) -> Literal["threshold", "change", "objective"]:
        """The kind of rule."""
        return "change" if self.change else "objective" if self.objective is not None else "threshold"

    @property
    def window_hours(self) -> int:
        """The window's length in hours."""
        return hours_of_text(self.window)

    @property
    def short_window_hours(self) -> int:
        """The short window's length in hours."""
        return hours_of_text(self.short_window)

    @property
    def least_change(self) -> float:
        """`min_change`, or its default."""
        return self.min_change or (0.05 if self.metric in RATES else 0.25)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return _checked_name(name)

    @field_validator("window", "short_window")
    @classmethod
    def _is_a_window(cls, text: str) -> str:
        hours_of_text(text)
        return text

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("threshold", "change", "objective") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{self.name}: {' and '.join(given) or 'none'} given; give one of threshold, change, objective"
            )
        of_kind = {
            "threshold": {"operator"},
            "change": {"min_change", "baseline_weeks", "false_alarms_per_30_days"},
            "objective": {"burn_rate", "short_window"},
        }
        of_others = set().union(*(names for kind, names in of_kind.items() if kind != self.kind))
        if unused := sorted(of_others & self.model_fields_set):
            raise ValueError(f"{self.name}: {', '.join(unused)} does not apply to a rule with {self.kind}; remove it")
        return self

    @model_validator(mode="after")
    def _metric_and_kind_fit(self) -> Self:
        if self.kind != "threshold" and self.metric in WITHOUT_HOURS:
            raise ValueError(f"{self.name}: {self.metric} can only have a threshold")
        if self.kind == "objective" and self.metric not in RATES:
            raise ValueError(f"{self.name}: an objective needs a rate ({', '.join(RATES)}), not {self.metric}")
        if self.metric in WITHOUT_HOURS and "window" in self.model_fields_set:
            raise ValueError(f"{self.name}: {self.metric} is a current value and has no window; remove window")
        if self.scope.scorer and self.metric not in OF_SCORERS:
            raise ValueError(f"{self.name}: {self.metric} does not depend on a scorer; remove scope.scorer")
        if self.scope.trace_name and self.metric in (*OF_SCORERS, "archive_given_up"):
            raise ValueError(f"{self.name}: {self.metric} is not available by trace name; remove scope.trace_name")
        if self.scope.experiment and self.metric == "archive_given_up":
            raise ValueError(f"{self.name}: archive_given_up covers all experiments; remove scope.experiment")
        return self

    @model_validator(mode="after")
    def _can_occur(self) -> Self:
        if self.kind == "threshold" and self.metric in RATES and not 0 <= (self.threshold or 0) <= 1:
            raise ValueError(f"{self.name}: threshold = {self.threshold} of {self.metric}: must be from 0 to 1")
        if self.kind == "change" and self.window_hours not in WINDOWS_OF_A_DAY:
            windows = ", ".join(f"{hours}h" for hours in WINDOWS_OF_A_DAY)
            raise ValueError(f"{self.name}: window = {self.window!r} of a change must divide a day evenly: {windows}")
        if self.objective is not None:
            if self.short_window_hours >= self.window_hours:
                raise ValueError(
                    f"{self.name}: short_window = {self.short_window!r} must be shorter than window = {self.window!r}"
                )
            if self.burn_rate * (1 - self.objective) >= 1:
                raise ValueError(
                    f"{self.name}: burn_rate = {self.burn_rate:g} of objective = {self.objective:g} needs more bad "
                    f"traces than are possible; it must be below {1 / (1 - self.objective):.3g}"
                )
        return self


class NotifierSettings(Section):
    """A recipient of messages. Secret addresses and passwords come from the environment variables named here."""

    name: str = Field(description="name that rules use in `notify`")
    kind: Literal["webhook", "slack", "email", "log"] = Field(description="how messages are sent")
    url_env: str | None = Field(
        default=None, description="environment variable with the address of the webhook or Slack webhook"
    )
    host: str | None = Field(default=None, min_length=1, description="host of the mail server")
    port: int = Field(default=587, ge=1, le=65535, description="port of the mail server")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="encryption of the connection to the mail server"
    )
    user: str | None = Field(default=None, min_length=1, description="user name at the mail server")
    password_env: str | None = Field(default=None, description="environment variable with the password of `user`")
    sender: str | None = Field(default=None, description="sender address of mails")
    to: list[str] = Field(default=[], description="recipient addresses of mails")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return _checked_name(name)

    @field_validator("url_env", "password_env")
    @classmethod
    def _is_a_variable(cls, name: str | None) -> str | None:
        # The value is not repeated: it may be the secret itself.
        if name is not None and not re.fullmatch(_VARIABLE, name):
            raise ValueError("must be the name of an environment variable, such as SLACK_WEBHOOK; put the secret there")
        return name

    @field_validator("sender", "to")
    @classmethod
    def _are_addresses(cls, given: str | list[str] | None) -> str | list[str] | None:
        for address in [given] if isinstance(given, str) else given or []:
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is not a mail address; write it as alerts@example.org")
        return given

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"webhook": {"url_env"}, "slack": {"url_env"}, "email": {"host", "sender", "to"}, "log": set()}
        optional = {"port", "security", "user", "password_env"} if self.kind == "email" else set()
        missing = sorted(name for name in needed[self.kind] if not getattr(self, name))
        if missing:
            raise ValueError(f"{self.name}: kind = {self.kind!r} needs {', '.join(missing)}")
        unused = sorted(self.model_fields_set - {"name", "kind"} - needed[self.kind] - optional)
        if unused:
            raise ValueError(f"{self.name}: {', '.join(unused)} does not apply to kind = {self.kind!r}; remove it")
        if (self.user is None) != (self.password_env is None):
            raise ValueError(f"{self.name}: user and password_env belong together; give both or neither")
        if self.user and self.security == "none":
            raise ValueError(f"{self.name}: the password would be sent unencrypted; use security = 'starttls' or 'tls'")
        return self


class NotifySettings(Section):
    every_minutes: Literal[1, 2, 3, 5, 10, 15, 20, 30, 60] = Field(
        default=5, description="interval at which rules are checked"
    )
    quiet: str | None = Field(
        default=None, description="hours, such as 22:00-07:00, in which only critical alerts are sent"
    )
    time_zone: str = Field(default="UTC", description="time zone of the quiet hours, such as Europe/Berlin")

    @field_validator("quiet")
    @classmethod
    def _is_a_span(cls, quiet: str | None) -> str | None:
        if quiet is not None and (not _QUIET.fullmatch(quiet) or quiet[:5] == quiet[6:]):
            raise ValueError(f"{quiet!r} is not a range of hours: write it as 22:00-07:00")
        return quiet

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is not a time zone: write it as Europe/Berlin") from None
        return name

    def is_quiet(self, moment: datetime) -> bool:
        """Whether `moment` (timezone-aware) lies in the quiet hours."""
        if self.quiet is None:
            return False
        start, end = (time.fromisoformat(part) for part in self.quiet.split("-"))
        local = moment.astimezone(ZoneInfo(self.time_zone)).time()
        return start <= local < end if start < end else local >= start or local < end

    @property
    def interval(self) -> timedelta:
        """The time between two checks."""
        return timedelta(minutes=self.every_minutes)


def alert_problems(
    alerts: Sequence[AlertSettings], notifiers: Sequence[NotifierSettings], scorers: Sequence[ScorerSettings]
) -> list[str]:
    """Problems across rules and notifiers: a line for each duplicate or unknown name."""
    problems = []
    for section, names in (("alerts", [rule.name for rule in alerts]), ("notifiers", [n.name for n in notifiers])):
        problems += [
            f"{section}: name {name!r} is used {names.count(name)} times; give each its own"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
    if any(notifier.name == LOG for notifier in notifiers):
        problems.append(f"notifiers: {LOG!r} is built in; choose another name")
    known = [LOG, *(notifier.name for notifier in notifiers)]
    configured = [scorer.name for scorer in scorers]
    for index, rule in enumerate(alerts):
        problems += [
            f"alerts[{index}].notify = {name!r}: no such notifier; configured are {', '.join(known)}"
            for name in rule.notify
            if name not in known
        ]
        if rule.scope.scorer and rule.scope.scorer not in configured:
            problems.append(
                f"alerts[{index}].scope.scorer = {rule.scope.scorer!r}: no such scorer; configured are "
                f"{', '.join(configured)}"
            )
    return problems


def _checked_name(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{name!r} must be letters, digits, _ and -, at most 64, and start with a letter")
    return name
