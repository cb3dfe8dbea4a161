"""What the command line shows: progress while a chain runs, and a table when it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from monitoring_pipeline.definitions import build_resources
from monitoring_pipeline.launch import ChainResult, StepEvent
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import Settings, without_password
from monitoring_pipeline.summary import Summary, summarize
from monitoring_pipeline.windows import Window

console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a log file has no width of its own, and tables would be cut at 80


@contextmanager
def show_progress(window: Window, steps: int) -> Iterator[Callable[[StepEvent], None]]:
    """A progress bar over `steps` steps; gives the function that takes the chain's events."""
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console.print(f"Monitoring {window}")
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=steps)

        def on_event(event: StepEvent) -> None:
            if event.kind == "success":
                progress.update(task, advance=1, description=f"{event.step} done")
                if not console.is_terminal:
                    console.print(f"  {event.step} done")
            elif event.kind == "failure":
                progress.console.print(f"[red]  {event.step} failed[/]")
            elif event.kind == "progress":
                progress.update(task, description=escape(f"{event.step}: {event.message}"))
            else:
                progress.update(task, description=event.step)

        yield on_event


def show_summary(settings: Settings, window: Window, result: ChainResult) -> None:
    """The closing table, what failed, and where to look on."""
    scorers = load_scorers(settings.scorers)
    summary = summarize(build_resources(settings)["lake"], scorers, window)
    if summary.traces:
        _show_figures(summary)
        _show_scorers(summary)
    else:
        store = without_password(settings.mlflow.tracking_uri)
        console.print(f"No traces in this range at {escape(store)}: nothing to measure or score.", soft_wrap=True)
    for step, reason in result.failed_steps.items():
        console.print(f"[red]failed[/] {step}: {escape(reason)}", soft_wrap=True)
    for check in result.failed_checks:
        reason = "; ".join(f"{name} {entry.value}" for name, entry in check.metadata.items())
        console.print(
            f"[red]check failed[/] {check.asset_key.to_user_string()} {check.check_name}: {escape(reason)}",
            soft_wrap=True,
        )
    _show_next_steps(settings, window)


def _show_figures(summary: Summary) -> None:
    error_rate = "unknown" if summary.error_rate is None else f"{summary.error_rate:.1%}"
    p95 = "unknown" if summary.p95_duration_ms is None else f"{summary.p95_duration_ms:,.0f} ms"
    console.print(
        f"{summary.traces:,} traces archived, {summary.spans:,} spans, {summary.quarantined:,} in quarantine; "
        f"error rate {error_rate}, p95 {p95}"
    )


def _show_scorers(summary: Summary) -> None:
    table = Table()
    table.add_column("scorer", no_wrap=True)
    for heading in ("archived", "filtered out", "unsampled", "scored", "failed", "pending", "mean score"):
        table.add_column(heading, justify="right")
    for line in summary.scorers:
        counts = (line.archived, line.filtered_out, line.unsampled, line.scored, line.failed, line.pending)
        mean = "" if line.mean_score is None else f"{line.mean_score:.3f}"
        table.add_row(line.scorer, *(f"{count:,}" for count in counts), mean)
    console.print(table)


def _show_next_steps(settings: Settings, window: Window) -> None:
    for day in window.days():
        report = Path(settings.reports.location) / f"{day:%Y-%m-%d}" / "report.html"
        if report.is_file():
            console.print(f"report of {day}: {report}", soft_wrap=True)
    console.print("To browse it in Dagster: make ui")
