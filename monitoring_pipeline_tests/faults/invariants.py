"""What must hold after a recovery: each invariant compares the rows of the lake with the truth, and names violations.

The rows are read by a plain reader of Delta tables; figures are computed here, not by the package.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from deltalake import DeltaTable

from monitoring_pipeline.tables import TABLES
from monitoring_pipeline_tests.faults import truth
from monitoring_pipeline_tests.faults.truth import Held, Truth, mark, sampled, trace_id
from monitoring_pipeline_tests.faults.world import JUDGE_RATE, MIDNIGHT

Row = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """The live rows of all tables, the truth, the versions' digests, and the version and rate that ran last."""

    lake: Path
    rows: dict[str, list[Row]]
    truth: Truth
    digests: dict[str, int]
    version: int
    rate: float

    @classmethod
    def of(cls, lake: Path, truth: Truth, digests: dict[str, int], version: int, rate: float) -> Seen:
        rows = {
            table.name: DeltaTable(lake / table.name).to_pyarrow_table().to_pylist(maps_as_pydicts="lossy")
            for table in TABLES
            if (lake / table.name / "_delta_log").is_dir()
        }
        return cls(lake, rows, truth, digests, version, rate)

    def of_traces(self, table: str) -> dict[int, list[Row]]:
        """The rows of the table by number of the trace."""
        found: defaultdict[int, list[Row]] = defaultdict(list)
        for row in self.rows.get(table, []):
            found[_number(row)].append(row)
        return found

    def held(self) -> dict[int, Held]:
        """What the lake holds of each trace."""
        archived, quarantined = self.of_traces("agent_traces"), self.of_traces("quarantined_traces")
        results, earlier = self.of_traces("assessments"), self.of_traces("superseded_assessments")
        declined = self.of_traces("not_applicable")
        found: dict[int, Held] = {}
        for number in self.truth.lake:
            here = [*archived[number], *_of_grade(results[number]), *_of_grade(declined[number])]
            found[number] = Held(
                hour=_hour(here[0]["trace_hour"]) if here else None,
                revision=_revision(archived[number][0]) if archived[number] else None,
                in_quarantine=_hour(quarantined[number][0]["trace_hour"]) if quarantined[number] else None,
                results=frozenset(
                    [(self.digests[row["scorer_digest"]], _scored(row)) for row in _of_grade(results[number])]
                    + [(self.digests[row["scorer_digest"]], 0) for row in _of_grade(declined[number])]
                ),
                superseded=frozenset(
                    (self.digests[row["scorer_digest"]], _scored(row), _hour(row["trace_hour"]))
                    for row in _of_grade(earlier[number])
                ),
            )
        return found

    def kept(self) -> dict[int, list[int]]:
        """The archived traces by hour, of the days that the archive keeps."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for row in self.rows["agent_traces"]:
            if _hour(row["trace_hour"]) >= self.truth.archive_from:
                found[_hour(row["trace_hour"])].append(_number(row))
        return found


def archived_once(seen: Seen) -> Iterator[str]:
    """Each trace of the source is archived once, with its latest content, or in quarantine with a reason."""
    archived, quarantined = seen.of_traces("agent_traces"), seen.of_traces("quarantined_traces")
    for number, trace in seen.truth.originals.items():
        is_kept = trace.hour >= seen.truth.archive_from
        if len(archived[number]) > 1:
            yield f"trace {number} is archived {len(archived[number])} times"
        if not trace.exists or number in seen.truth.forgotten or not is_kept:
            continue
        if trace.is_readable:
            rows = [(_hour(row["trace_hour"]), _revision(row)) for row in archived[number]]
            if rows != [(trace.hour, trace.revision)]:
                yield f"trace {number}: archived as {rows}, but is {(trace.hour, trace.revision)}"
            if quarantined[number]:
                yield f"trace {number} is in quarantine, but can be read"
        elif [bool(row["reason"]) for row in quarantined[number]] != [True]:
            yield f"trace {number} cannot be read, and is not in quarantine once and with a reason"
    yield from (f"trace {number} never was" for number in archived.keys() - seen.truth.originals.keys())


def no_row_twice(seen: Seen) -> Iterator[str]:
    """No table has two rows with one key."""
    for table in TABLES:
        keys = Counter(tuple(str(row[name]) for name in table.key) for row in seen.rows.get(table.name, []))
        yield from (f"{table.name}: {count} rows with the key {key}" for key, count in keys.items() if count > 1)


def what_was_kept_stays(seen: Seen) -> Iterator[str]:
    """The lake holds of each trace one of the possibilities: nothing archived, scored or superseded was lost."""
    for number, held in seen.held().items():
        if number not in seen.truth.forgetting and held not in seen.truth.lake[number]:
            possible = " or ".join(map(str, sorted(seen.truth.lake[number], key=str)))
            yield f"trace {number}: the lake holds {held}, but may hold {possible}"


def scored_once(seen: Seen) -> Iterator[str]:
    """Each archived trace in the sample has one result of the last version, for its content, and one of the judge."""
    results, declined = seen.of_traces("assessments"), seen.of_traces("not_applicable")
    for number in (number for numbers in seen.kept().values() for number in numbers):
        [archived] = seen.of_traces("agent_traces")[number][:1]
        if sampled(number, seen.rate):
            rows = [
                row
                for row in (*_of_grade(results[number]), *_of_grade(declined[number]))
                if seen.digests[row["scorer_digest"]] == seen.version
            ]
            found = [_value(row) for row in rows]
            if found != [_expected(number, seen.version, _revision(archived))]:
                yield f"trace {number}: results of version {seen.version}: {found}"
        judged = [row for row in results[number] if row["scorer"] == "safety"]
        wanted = sampled(number, JUDGE_RATE, "safety")
        if [row["value"] for row in judged] != (['"yes"'] if wanted else []):
            yield f"trace {number}: {len(judged)} judgements {[(r['value'], r['error_message']) for r in judged]}"


def ledgers_add_up(seen: Seen) -> Iterator[str]:
    """Each row of the ledger adds up, and that of the version that ran last has the counts of its hour."""
    lines: dict[int, Row] = {}
    for row in seen.rows["scorer_coverage"]:
        if row["archived"] != row["eligible"] + row["filtered_out"] + row["unsampled"] or row["eligible"] != sum(
            row[name] for name in ("scored", "failed", "over_budget", "pending")
        ):
            yield f"the ledger does not add up: {row}"
        if row["scorer"] == truth.SCORER and seen.digests[row["scorer_digest"]] == seen.version:
            lines[_hour(row["hour"])] = row
    held, kept = seen.held(), seen.kept()
    for hour in {*kept, *lines}:
        if hour < seen.truth.archive_from:
            continue
        counts = Counter[str](archived=len(kept.get(hour, [])))
        for number in kept.get(hour, []):
            if any(version == seen.version for version, _ in held[number].results):
                counts[truth.outcome(number)] += 1
            else:
                counts["pending" if sampled(number, seen.rate) else "unsampled"] += 1
        names = ("archived", "scored", "failed", "not_applicable", "unsampled", "pending")
        found = {name: lines[hour][name] if hour in lines else 0 for name in names}
        if found != (wanted := {name: counts[name] for name in names}):
            yield f"hour {hour}: the ledger has {found}, the lake {wanted}"


def forgotten_everywhere(seen: Seen) -> Iterator[str]:
    """No live row and no file of the lake tells of a trace that was deleted for privacy."""
    words = {word: number for number in seen.truth.forgotten for word in (trace_id(number), mark(number))}
    words |= {truth.user(number): number for number in seen.truth.forgotten}
    texts = {f"the table {name}": rows for name, rows in seen.rows.items()}
    if words:
        files = (file for file in seen.lake.rglob("*.parquet") if not file.name.startswith(".") and _is_whole(file))
        texts |= {str(file.relative_to(seen.lake)): pq.read_table(file).to_pylist() for file in files}
    for place, rows in texts.items():
        text = json.dumps(rows, default=str)
        yield from (f"{place} still has {word} of trace {number}" for word, number in words.items() if word in text)


def figures_are_right(seen: Seen) -> Iterator[str]:
    """Derived figures of the kept hours equal those computed anew from the truth."""
    kept, held = seen.kept(), seen.held()
    start = seen.truth.archive_from
    numbers = sorted(number for numbers in kept.values() for number in numbers)
    rows = (row for row in seen.rows["trace_performance"] if _hour(row["trace_hour"]) >= start)
    durations = sorted((_number(row), row["duration_ms"]) for row in rows)
    if durations != (wanted := [(number, truth.duration_ms(number)) for number in numbers]):
        yield f"durations {durations}, the truth {wanted}"
    errors = sorted(_number(row) for row in seen.rows["trace_errors"] if _hour(row["trace_hour"]) >= start)
    if errors != (wanted := [number for number in numbers if truth.has_failed(number)]):
        yield f"errors of {errors}, the truth {wanted}"
    hourly = {
        _hour(row["hour"]): (row["trace_count"], row["error_count"], row["avg_duration_ms"], row["p50_duration_ms"])
        for row in seen.rows["hourly_performance"]
        if row["trace_name"] is None and _hour(row["hour"]) >= start
    }
    for hour in {*kept, *hourly}:
        durations = sorted(truth.duration_ms(number) for number in kept.get(hour, []))
        middle = len(durations) // 2
        wanted = durations and (
            len(durations),
            sum(map(truth.has_failed, kept[hour])),
            fmean(durations),
            durations[middle] if len(durations) % 2 else fmean(durations[middle - 1 : middle + 1]),
        )
        if not wanted or hourly.get(hour) != wanted:
            yield f"hour {hour}: performance {hourly.get(hour)}, the truth {wanted}"
    yield from _wrong_quality(seen, held)


def _wrong_quality(seen: Seen, held: dict[int, Held]) -> Iterator[str]:
    scores: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    failed = Counter[tuple[int, int]]()
    for number, each in held.items():
        for version, revision in each.results:
            if each.hour is None or each.hour < seen.truth.archive_from:
                continue
            if truth.outcome(number) == "scored":
                scores[each.hour, version].append(truth.score(version, revision))
            failed[each.hour, version] += truth.outcome(number) == "failed"
    found = {
        (_hour(row["hour"]), seen.digests[row["scorer_digest"]]): (row["scored"], row["failed"], row["mean_score"])
        for row in seen.rows["hourly_quality"]
        if row["scorer"] == truth.SCORER and _hour(row["hour"]) >= seen.truth.archive_from
    }
    for key in {*scores, *+failed, *found}:
        wanted = (len(scores[key]), failed[key], fmean(scores[key]) if scores[key] else None)
        if found.get(key) != wanted:
            yield f"hour {key[0]}, version {key[1]}: quality {found.get(key)}, the truth {wanted}"


def expired_is_gone(seen: Seen) -> Iterator[str]:
    """Retention has removed all days before its cuts."""
    cuts = {"archive": seen.truth.archive_from, "results": seen.truth.results_from, None: 0}
    for table in TABLES:
        rows = seen.rows.get(table.name, [])
        if old := [row for row in rows if _hour(row[table.hour]) < cuts[table.kept_with]]:
            yield f"{table.name} has {len(old)} rows before hour {cuts[table.kept_with]}"


def no_hour_is_due(seen: Seen) -> Iterator[str]:
    """The account of the kept hours has the source's counts, so that none of them is due."""
    traces = seen.truth.originals.values()
    wanted = Counter(each.hour for each in traces if each.exists and each.hour >= seen.truth.archive_from)
    found = {_hour(row["hour"]): row["source_traces"] for row in seen.rows["archived_hours"]}
    for hour in wanted | Counter({hour: 0 for hour in found if hour >= seen.truth.archive_from}):
        if found.get(hour, 0) != wanted[hour]:
            yield f"hour {hour}: {found.get(hour, 0)} traces accounted, {wanted[hour]} at the source"


INVARIANTS: tuple[Callable[[Seen], Iterator[str]], ...] = (
    archived_once,
    no_row_twice,
    what_was_kept_stays,
    scored_once,
    ledgers_add_up,
    forgotten_everywhere,
    figures_are_right,
    expired_is_gone,
    no_hour_is_due,
)


def _hour(moment: datetime) -> int:
    return int((moment - MIDNIGHT).total_seconds()) // 3600


def _number(row: Row) -> int:
    return int(row["trace_id"].removeprefix("tr-"), 16)


def _of_grade(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["scorer"] == truth.SCORER]


def _revision(row: Row) -> int:
    return int(json.loads(row["response"]).rpartition("revision ")[2].partition(",")[0]) if row["response"] else 0


def _value(row: Row) -> str | None:
    return row.get("value") or row.get("error_message")


def _expected(number: int, version: int, revision: int) -> str | None:
    match truth.outcome(number):
        case "scored":
            return str(truth.score(version, revision))
        case "failed":
            return f"ValueError: version {version}, revision {revision}"
    return None


def _scored(row: Row) -> int:
    """The revision that the result is about."""
    text = row["value"] or row["error_message"].rpartition(" ")[2]
    return int(text) % 1000


def _is_whole(file: Path) -> bool:
    """Whether the file has the end of a parquet file; one that a fault cut off has rows that no reader finds."""
    with file.open("rb") as content:
        content.seek(-4, 2)
        return content.read() == b"PAR1"
