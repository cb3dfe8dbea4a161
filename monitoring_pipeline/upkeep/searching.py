"""The search that ends a deletion: whether any of the deleted traces' marks is left where this package writes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import AGENT_TRACES, TABLES
from monitoring_pipeline.text import count
from monitoring_pipeline.upkeep.dagster_records import Records
from monitoring_pipeline.upkeep.marks import Marks, only_of_deleted

CHUNK_BYTES = 1 << 20
OVERLAP_BYTES = 1 << 10  # longer than a mark, which may lie across two chunks
ROWS_AT_A_TIME = 1000


@dataclass
class Search:
    """What was searched: files, their bytes, and texts in Dagster's storage. `left` names the places with marks."""

    marks: Marks
    files: int = 0
    size: int = 0
    texts: int = 0
    left: tuple[str, ...] = ()
    not_here: str = ""

    def __str__(self) -> str:
        what = f"{count(len(self.marks.trace_ids))} trace ids and {count(len(self.marks.words))} words of theirs"
        where = f"{count(self.files)} files ({self.size / 1e6:,.1f} MB) and {count(self.texts)} records of Dagster"
        found = f"found in {', '.join(self.left)}" if self.left else "nothing found"
        return f"searched {where} for {what}: {found}{self.not_here}"


def search(lake: LakeResource, settings: Settings, marks: Marks, records: Records, more: Iterable[Path] = ()) -> Search:
    """Look for the marks in the lake, reports, datasets, Dagster's records and `more` files.

    Bytes of files count, and the values of Parquet. The files that this package keeps in the temporary folder have no
    texts, only times of requests. In the archive only ids of traces count, since a mark of a
    remaining trace says nothing. Files and rows are read in pieces. A lake that is not on this machine is not searched;
    its tables are checked for the traces in another way.
    """
    done = Search(marks)
    found: dict[str, set[str]] = {}
    is_local = "://" not in lake.location and not lake.is_in_catalog
    if not is_local:
        done.not_here = f"; not searched: the files of {lake.location}"
    for file in [*(_files_of_lake(lake) if is_local else ()), *_other_files(settings), *records.files, *more]:
        if marks_in_file := marks_in(file, marks):
            found[str(file)] = marks_in_file
        done.files, done.size = done.files + 1, done.size + file.stat().st_size
    for stored in records.texts:
        for text in stored.read(records.run_ids):
            done.texts += 1
            if marks_in_text := marks.found_in(text):
                found.setdefault(f"Dagster's table {stored.table.name}", set()).update(marks_in_text)
    deleted = only_of_deleted(lake, marks, set().union(*found.values()))
    done.left = tuple(place for place, of_place in found.items() if of_place & deleted)
    return done


def _files_of_lake(lake: LakeResource) -> Iterator[Path]:
    for table in TABLES:
        yield from _files(Path(lake.path(table)))


def _other_files(settings: Settings) -> Iterator[Path]:
    for pattern in ("report.*", ".report.*"):
        yield from sorted(Path(settings.reports.location).glob(f"*/{pattern}"))
    for entry in settings.datasets:
        yield from _files(Path(entry.location) / entry.name)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def marks_in(file: Path, marks: Marks) -> set[str]:
    """Return the marks in the bytes of the file, or in the values of a Parquet file."""
    if file.suffix == ".parquet":
        columns = ["trace_id"] if AGENT_TRACES.name in file.parts and "_delta_log" not in file.parts else None
        return set().union(*(marks.found_in(text) for text in _texts_of_parquet(file, columns)))
    return set().union(*(marks.found_in(chunk) for chunk in _chunks(file)))


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        end = b""
        while chunk := stream.read(CHUNK_BYTES):
            yield end + chunk
            end = chunk[-OVERLAP_BYTES:]


def _texts_of_parquet(file: Path, columns: Collection[str] | None) -> Iterator[str]:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=None if columns is None else [*columns]):
            for column in batch.columns:
                for values in _strings(column):
                    yield "\n".join(values.drop_null().to_pylist())


def _strings(values: pa.Array) -> Iterator[pa.Array]:
    """The arrays of texts within an array, however deep."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        yield values
    elif pa.types.is_struct(values.type):
        for part in values.flatten():
            yield from _strings(part)
    elif pa.types.is_map(values.type):
        yield from _strings(values.keys)
        yield from _strings(values.items)
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield from _strings(values.flatten())
