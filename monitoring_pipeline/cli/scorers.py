"""`monitoring-pipeline scorers`: list scorers and change their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from monitoring_pipeline.cli.common import Config, settings_of, shown

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from monitoring_pipeline.lifecycle.plan import PlannedChange
    from monitoring_pipeline.lifecycle.scorer_handles import ScorerHandle

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="List, register, start, change and stop scorers.")

Name = Annotated[str, typer.Argument(help="Name of the scorer.", show_default=False)]
SampleRate = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of the traces that pass the filter to score.", show_default=False),
]
Filter = Annotated[str | None, typer.Option(help='MLflow trace filter; "" removes it.', show_default=False)]

WIDE = 10_000  # characters; a pipe has no width, and a table is only as wide as its content


@app.command()
def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    config: Config = None,
) -> None:
    """Make the scorers match the configuration; prints the plan first."""
    settings = settings_of(config)
    from monitoring_pipeline.lifecycle import plan

    console = _console()
    changes = plan.plan(settings)
    for change in changes:
        _print_planned(console, change)
    counts = {action: sum(change.action is action for change in changes) for action in plan.Action}
    unchanged = len(settings.scorers) - counts[plan.Action.CREATE] - counts[plan.Action.CHANGE]
    counted = ", ".join(f"{count} to {action}" for action, count in counts.items())
    console.print(f"Plan: {counted}, {unchanged} unchanged.")
    if changes and not dry_run:
        for handle in plan.apply(changes):
            _print_note(console, handle)
        console.print("Applied.")


@app.command("list")
def list_scorers(config: Config = None) -> None:
    """List all scorers: configured ones, and ones that are only registered in the experiment."""
    settings = settings_of(config)
    from monitoring_pipeline import lifecycle

    headings = ("name", "state", "rate", "filter", "version", "digest", "code", "last change (UTC)")
    _print_table(
        headings,
        [
            (
                handle.name,
                handle.state,
                f"{handle.sample_rate:.4g}",
                handle.filter,
                handle.version,
                handle.registered_digest or handle.digest,
                _code(handle),
                handle.changed_at and f"{handle.changed_at:%Y-%m-%d %H:%M:%S}",
            )
            for handle in lifecycle.handles(settings)
        ],
    )


@app.command()
def start(name: Name, sample_rate: SampleRate = None, filter: Filter = None, config: Config = None) -> None:
    """Start scoring new traces; rate and filter stay unchanged unless given."""
    _change(name, config, lambda handle: handle.start(sample_rate, filter))


@app.command()
def update(name: Name, sample_rate: SampleRate = None, filter: Filter = None, config: Config = None) -> None:
    """Change the rate or the filter of a scorer; options that are not given stay unchanged."""
    if sample_rate is None and filter is None:
        raise typer.BadParameter("nothing to update: give --sample-rate, --filter or both")
    _change(name, config, lambda handle: handle.update(sample_rate, filter))


@app.command()
def stop(name: Name, config: Config = None) -> None:
    """Stop scoring new traces automatically; backfills still work."""
    _change(name, config, lambda handle: handle.stop())


@app.command()
def delete(name: Name, config: Config = None) -> None:
    """Unregister a scorer; its history and results stay."""
    _change(name, config, lambda handle: handle.delete())


@app.command()
def history(name: Name, config: Config = None) -> None:
    """List all changes of a scorer, oldest first."""
    settings = settings_of(config)
    from monitoring_pipeline import lifecycle

    changes = _known(lambda: lifecycle.history(name, settings))
    headings = ("revision", "time (UTC)", "action", "state", "rate", "filter", "version", "digest", "MLflow version")
    _print_table(
        (*headings, "applied"),
        [
            (
                change.revision,
                f"{change.changed_at:%Y-%m-%d %H:%M:%S}",
                change.action,
                change.standing.state,
                f"{change.standing.sample_rate:.4g}",
                change.standing.filter,
                change.standing.version,
                change.standing.digest,
                change.standing.mlflow_version,
                "yes" if change.applied else "no: another change came first",
            )
            for change in changes
        ],
    )


def _change(name: str, config: Path | None, action: Callable[[ScorerHandle], ScorerHandle]) -> None:
    """Change the scorer of that name, and print its new state."""
    settings = settings_of(config)
    from monitoring_pipeline import lifecycle

    before = _known(lambda: lifecycle.handle(name, settings))
    after = action(before)
    line = f"{name}: {before.state} -> {after.state}" if after.state != before.state else f"{name}: {after.state}"
    if after.state is not lifecycle.ScorerState.UNREGISTERED:
        line += f", rate {after.sample_rate:.4g}, filter {after.filter or 'none'}"
    _console().print(shown(line), soft_wrap=True)


def _known(look_up: Callable[[], T]) -> T:
    from monitoring_pipeline.lifecycle.scorer_handles import UnknownScorerError

    try:
        return look_up()
    except UnknownScorerError as error:
        raise typer.BadParameter(str(error)) from error


def _print_planned(console: Console, change: PlannedChange) -> None:
    sign, color = {"create": ("+", "green"), "change": ("~", "yellow"), "delete": ("-", "red")}[change.action]
    console.print(f"[{color}]{sign} {shown(change.handle.name)}[/]", soft_wrap=True)
    for field, (old, new) in change.fields.items():
        values = (
            f"{old or 'none'} -> {new or 'none'}" if change.action == "change" else str(new if old is None else old)
        )
        console.print(f"    {field}: {shown(values)}", soft_wrap=True)


def _print_note(console: Console, handle: ScorerHandle) -> None:
    if handle.note:
        note = f"note: {handle.name} runs here, but is not in MLflow's own registry: {handle.note}"
        console.print(shown(note), soft_wrap=True)


def _code(handle: ScorerHandle) -> str:
    """Whether the code, and a scorer that Databricks runs, match the registered version."""
    return ", ".join(filter(None, (_own_code(handle), handle.drift)))


def _own_code(handle: ScorerHandle) -> str:
    if handle.digest is None:
        return "not configured"
    if handle.registered_digest is None:
        return ""
    return "as registered" if handle.digest == handle.registered_digest else f"changed, now {handle.digest}"


def _print_table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        cells = ("" if value is None else shown(value) for value in row)
        table.add_row(*(cell.replace("\n", "\N{REPLACEMENT CHARACTER}") for cell in cells))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)
