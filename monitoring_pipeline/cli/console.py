"""Output of the command line: progress while a chain runs, and tables of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dagster import AssetCheckSeverity
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from monitoring_pipeline.alerts.checking import Checked
from monitoring_pipeline.cli.common import shown
from monitoring_pipeline.cli.summary import Summary, summarize
from monitoring_pipeline.datasets.files import MANIFEST
from monitoring_pipeline.orchestration.runs import ChainResult, StepEvent
from monitoring_pipeline.orchestration.unchanged import Work
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.forecast import Forecast
from monitoring_pipeline.scoring.on_demand import Assessed
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.runner import Spent
from monitoring_pipeline.settings import DatasetSettings, Settings, without_password
from monitoring_pipeline.upkeep.deletion import Deletion
from monitoring_pipeline.upkeep.maintenance import Upkept
from monitoring_pipeline.windows import Window

console = Console()
if not console.is_terminal:
    console = Console(width=120)  # a log file has no width, and rich would cut tables at 80


def show_work(window: Window, work: Work) -> None:
    """How many hours of the window are left out because nothing would change."""
    hours = len(list(window.hours()))
    if work.hour_count < hours:
        console.print(f"{hours - work.hour_count} of {hours} hours have not changed since they were computed")


@contextmanager
def show_progress(window: Window, steps: int) -> Iterator[Callable[[StepEvent], None]]:
    """A progress bar of `steps` steps; yields the function that handles the chain's events."""
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
                progress.update(task, description=shown(f"{event.step}: {event.message}"))
            else:
                progress.update(task, description=event.step)

        yield on_event


def show_summary(settings: Settings, window: Window, result: ChainResult) -> None:
    """The summary of a run: figures, scorers, failures, and where to look next."""
    scorers = load_scorers(settings.scorers)
    summary = summarize(build_resources(settings)["lake"], scorers, window)
    if summary.traces:
        _show_figures(summary)
        _show_scorers(summary)
    else:
        store = without_password(settings.mlflow.tracking_uri)
        console.print(f"No traces in this range at {shown(store)}: nothing to measure or score.", soft_wrap=True)
    _show_failures(result.failed_steps)
    for check in result.failed_checks:
        reason = "; ".join(f"{name} {entry.value}" for name, entry in check.metadata.items())
        word = "[red]check failed[/]" if check.severity == AssetCheckSeverity.ERROR else "[yellow]warning[/]"
        console.print(f"{word} {check.asset_key.to_user_string()} {check.check_name}: {shown(reason)}", soft_wrap=True)
    _show_next_steps(settings, window)


def show_backfill(settings: Settings, window: Window, scorers: Sequence[str], failed: Mapping[str, str]) -> None:
    """The ledger of the scorers after a backfill, and the failures."""
    configured = [scorer for scorer in load_scorers(settings.scorers) if scorer.name in scorers]
    _show_scorers(summarize(build_resources(settings)["lake"], configured, window))
    _show_failures(failed)


def show_forecasts(window: Window, forecasts: Sequence[Forecast]) -> None:
    """What backfills would score: traces, tokens and dollars."""
    headings = (
        "archived",
        "eligible",
        "scored",
        "failed",
        "to score",
        "tokens at most",
        "$ at most",
        "$ expected",
        "at least",
    )
    table = _table("scorer", *headings, title=f"{window}: what a backfill would do")
    for forecast in forecasts:
        at_most, expected = forecast.at_most, forecast.expected
        tokens = None if at_most.input_tokens is None else at_most.input_tokens + (at_most.output_tokens or 0)
        table.add_row(
            forecast.scorer,
            *(f"{getattr(forecast, name):,}" for name in ("archived", "eligible", "scored", "failed", "to_score")),
            "none" if tokens is None else f"{tokens:,}",
            _dollars(at_most) if tokens is not None else "none",
            _dollars(expected) if expected else "",
            "" if forecast.minutes is None else f"{forecast.minutes:,.0f} min",
        )
    console.print(table)


def show_outcomes(traces: int, assessed: Assessed, short: Sequence[str]) -> None:
    """The figures of each scorer over `traces` traces, and those below their threshold."""
    table = _table("scorer", "n", "mean", "pass rate", "errors", "$")
    for outcome in assessed.outcomes:
        mean = "" if outcome.mean is None else f"{outcome.mean:.4f}"
        rate = "" if outcome.pass_rate is None else f"{outcome.pass_rate:.1%}"
        cost = "" if outcome.cost_usd is None else f"{outcome.cost_usd:,.4f}"
        table.add_row(outcome.scorer, f"{outcome.n:,}", mean, rate, f"{outcome.errors:,}", cost)
    console.print(f"{traces:,} traces")
    console.print(table)
    if assessed.run_id:
        console.print(f"MLflow run: {assessed.run_id}", soft_wrap=True)
    for line in short:
        console.print(f"[red]too low[/] {shown(line)}", soft_wrap=True)


def show_alerts(checked: Checked) -> None:
    """The state of each rule and scope, and the outcome of messages."""
    table = Table()
    table.add_column("rule", no_wrap=True)
    table.add_column("scope")
    table.add_column("state", no_wrap=True)
    table.add_column("why")
    still_open = {episode.key for episode in checked.open}
    for evaluation in checked.evaluations:
        if (evaluation.rule.name, evaluation.scope) in still_open:
            state = "[red]alert[/]"
        else:
            state = "[dim]unknown[/]" if evaluation.holds is None else "[green]ok[/]"
        table.add_row(evaluation.rule.name, shown(evaluation.scope), state, shown(evaluation.detail))
    console.print(table)
    figures = checked.figures
    console.print(f"{figures['messages_sent']:,} messages sent, {figures['messages_pending']:,} pending")
    for notifier, reason in checked.delivered.failures.items():
        console.print(f"[yellow]warning[/] notifier {notifier}: {shown(reason)}", soft_wrap=True)


def show_datasets(datasets: Sequence[DatasetSettings]) -> None:
    """The configuration of each dataset, and how many of each were built."""
    table = Table()
    table.add_column("dataset", no_wrap=True)
    for heading in ("kind", "of", "MLflow", "built", "folder"):
        table.add_column(heading)
    for entry in datasets:
        folder = Path(entry.location) / entry.name
        built = sum(1 for _ in folder.glob(f"*/{MANIFEST}"))
        chosen_by = entry.scorer or entry.tag or entry.filter or ""
        mlflow_name = (entry.mlflow_name or entry.name) if entry.mlflow else ""
        table.add_row(entry.name, entry.kind, shown(chosen_by), shown(mlflow_name), f"{built:,}", shown(str(folder)))
    console.print(table)


UNKNOWN_TO_DELETION = (
    "not searched, because the pipeline does not know where they are: files of assess --output and of notebooks, runs "
    "that assess logged to MLflow, messages that were sent, backups and copies"
)


def show_deletion(what: str, deletion: Deletion) -> None:
    """The rows that were or would be deleted from each table, and the reports and datasets that were rewritten."""
    table = _table("table", "rows", title=f"{deletion.traces:,} traces {what}")
    for name, rows in deletion.rows.items():
        table.add_row(name, f"{rows:,}")
    console.print(table)
    for report in deletion.reports:
        console.print(f"report rewritten: {report}", soft_wrap=True, highlight=False, markup=False)
    for dataset in deletion.datasets:
        console.print(f"dataset rewritten: {dataset}", soft_wrap=True, highlight=False, markup=False)
    if deletion.in_mlflow:
        console.print(f"{deletion.in_mlflow:,} records removed from datasets in MLflow")
    if deletion.at_source is not None:
        console.print(f"{deletion.at_source:,} traces deleted in MLflow")
    if deletion.searched:
        console.print(UNKNOWN_TO_DELETION, soft_wrap=True, highlight=False, markup=False)


def show_upkeep(done: Upkept) -> None:
    """What upkeep did to each table."""
    table = _table("table", "rows removed", "files written", "files merged", "files deleted")
    for name, files in done.files.items():
        counts = (done.expired.get(name, 0), files["files_added"], files["files_removed"], files["files_deleted"])
        table.add_row(name, *(f"{count:,}" for count in counts))
    console.print(table)
    if done.put_off:
        console.print(f"[yellow]nothing removed[/]: {shown(done.put_off)}", soft_wrap=True)


def _table(name: str, *figures: str, title: str | None = None) -> Table:
    """A table with a column of names and columns of figures, under these headings."""
    table = Table(title=title, title_justify="left")
    table.add_column(name, no_wrap=True)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def _dollars(spent: Spent) -> str:
    return "price unknown" if spent.cost_usd is None else f"{spent.cost_usd:,.4f}"


def _show_figures(summary: Summary) -> None:
    error_rate = "unknown" if summary.error_rate is None else f"{summary.error_rate:.1%}"
    p95 = "unknown" if summary.p95_duration_ms is None else f"{summary.p95_duration_ms:,.0f} ms"
    console.print(
        f"{summary.traces:,} traces archived, {summary.spans:,} spans, {summary.quarantined:,} in quarantine; "
        f"error rate {error_rate}, p95 {p95}"
    )


def _show_scorers(summary: Summary) -> None:
    counted = ("archived", "filtered_out", "unsampled", "scored", "failed", "over_budget", "pending")
    table = _table("scorer", *(name.replace("_", " ") for name in counted), "mean score")
    for line in summary.scorers:
        mean = "" if line.mean_score is None else f"{line.mean_score:.3f}"
        table.add_row(line.scorer, *(f"{getattr(line, name):,}" for name in counted), mean)
    console.print(table)


def _show_failures(failed: Mapping[str, str]) -> None:
    for step, reason in failed.items():
        console.print(f"[red]failed[/] {step}: {shown(reason)}", soft_wrap=True)


def _show_next_steps(settings: Settings, window: Window) -> None:
    for day in window.days():
        report = Path(settings.reports.location) / f"{day:%Y-%m-%d}" / "report.html"
        if report.is_file():
            console.print(f"report of {day}: {report}", soft_wrap=True)
    console.print("To browse it in Dagster: make ui")
