"""Dataset files: records as JSONL and Parquet, and a manifest with their origin.

The manifest is written last: files without a manifest, or that do not match it, come from an interrupted write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import uuid4

from monitoring_pipeline.datasets.records import Dataset, Origin, Record, canonical, digest_of
from monitoring_pipeline.errors import LakeError, MonitoringError, first_line
from monitoring_pipeline.resources.tombstones import trace_digest
from monitoring_pipeline.settings.datasets import Format

if TYPE_CHECKING:
    from monitoring_pipeline.datasets.diverse import Embed
    from monitoring_pipeline.resources.lake import LakeResource

MANIFEST = "manifest.json"
PARTS = ("inputs", "outputs", "expectations", "metadata")


@dataclass(frozen=True)
class Written:
    """The path of a dataset's manifest, and the digest of its records."""

    manifest: Path
    digest: str


def write_dataset(
    records: Iterable[Record], folder: str | Path, formats: Sequence[Format] = ("jsonl",), name: str | None = None
) -> Written:
    """Write the records to records.jsonl, records.parquet or both in `folder`, replacing existing files.

    The Parquet file has the columns inputs, outputs, expectations and metadata as JSON text; missing parts are null.
    The manifest has name, files, record_count, digest (SHA-256 of the JSONL lines), created_at, and origin (null if
    unknown).

    Raises:
        MonitoringError: a format is unknown, a record cannot be written as JSON, or the folder cannot be written.
    """
    dataset = records if isinstance(records, Dataset) else Dataset(records)
    if unknown := sorted(set(formats) - set(get_args(Format))):
        raise MonitoringError(f"format {', '.join(unknown)} is unknown; use {' or '.join(get_args(Format))}")
    folder = Path(folder)
    try:
        manifest = {
            "name": name,
            "files": [_file_of(format) for format in formats],
            "record_count": len(dataset),
            "digest": digest_of(dataset),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "origin": asdict(dataset.origin) if dataset.origin else None,
        }
        folder.mkdir(parents=True, exist_ok=True)
        for format in formats:
            _replace(folder / _file_of(format), _WRITERS[format], dataset)
        path = folder / MANIFEST
        _replace(path, _write_json, manifest)
        for format in set(get_args(Format)) - set(formats):  # left from an earlier dataset
            (folder / _file_of(format)).unlink(missing_ok=True)
    except OSError as error:
        raise MonitoringError(f"cannot write the dataset in {folder}: {error}") from error
    except (TypeError, ValueError) as error:
        raise MonitoringError(f"a record cannot be written as JSON: {error}") from error
    return Written(path, manifest["digest"])


def read_dataset(path: str | Path) -> Dataset:
    """Return the dataset at `path`, a folder or its manifest.

    Raises:
        MonitoringError: there is no dataset, or its records do not match the manifest.
    """
    manifest, path = _manifest(path)
    file = path.parent / manifest["files"][0]
    try:
        lines = file.read_text(encoding="utf-8").split("\n") if file.suffix == ".jsonl" else _parquet_lines(file)
        records = [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise MonitoringError(f"cannot read the dataset {file}: {error}") from error
    if digest_of(records) != manifest["digest"]:
        raise MonitoringError(f"the records in {file} do not match {path}; build the dataset again")
    return Dataset(records, Origin(**manifest["origin"]) if manifest["origin"] else None)


def rebuild(lake: LakeResource, path: str | Path, embed: Embed | None = None) -> Dataset:
    """Rebuild the dataset from the table versions in its manifest, and write its files again.

    `path` is the manifest or its folder; `embed` is required if the sample was drawn by meaning. If the records differ,
    nothing is written.

    Raises:
        MonitoringError: the dataset was not built from the archive, a version can no longer be read, or the records
            differ.
    """
    from pydantic import ValidationError
    from pyspark.errors import PySparkException

    from monitoring_pipeline.datasets.building import dataset_of_lake
    from monitoring_pipeline.datasets.query import Query

    manifest, path = _manifest(path)
    origin = Origin(**manifest["origin"]) if manifest["origin"] else None
    if origin is None or not origin.versions:
        built = "written by hand" if origin is None else "built from traces that were passed in"
        raise MonitoringError(f"{path}: the dataset was {built}, not from the archive; it cannot be rebuilt")
    try:
        query = Query.model_validate(origin.query)
    except ValidationError as error:
        raise MonitoringError(f"{path}: its query cannot be read: {error.errors()[0]['msg']}") from error
    if query.embedded and embed is None:
        raise MonitoringError(f"{path}: the sample was drawn by meaning; pass the embedding function (embed)")
    try:
        dataset = dataset_of_lake(lake, query, embed, origin.versions)
    except (LakeError, PySparkException) as error:
        versions = " or ".join(f"version {version} of {table}" for table, version in origin.versions.items())
        raise MonitoringError(
            f"{path}: {versions} can no longer be read; old versions are removed after [upkeep] "
            f"keep_versions_hours, and when traces are deleted on request ({first_line(error)})"
        ) from error
    if digest_of(dataset) != manifest["digest"]:
        raise MonitoringError(
            f"{path}: the {len(dataset)} rebuilt records differ from the {manifest['record_count']} of the manifest; "
            "check that [lake] location is the lake of the original records"
        )
    for format in _formats(manifest):
        _replace(path.parent / _file_of(format), _WRITERS[format], dataset)
    return dataset


def forget(folder: str | Path, digests: Collection[str]) -> list[Path]:
    """Rewrite the datasets below `folder` without the records of deleted traces; returns the changed folders.

    Also deletes what interrupted writes left there: temporary files, and records without a manifest. `digests` are
    digests of trace ids, as in the table deleted_traces. Nothing may write datasets meanwhile.

    Raises:
        MonitoringError: a dataset cannot be read or written.
    """
    changed = _forget_unfinished(Path(folder))
    for path in sorted(Path(folder).glob(f"*/{MANIFEST}")):
        manifest, dataset = _manifest(path)[0], read_dataset(path)
        kept = [record for record in dataset if not _is_of(record, digests)]
        if len(kept) < len(dataset):
            write_dataset(Dataset(kept, dataset.origin), path.parent, _formats(manifest), manifest["name"])
            changed.append(path.parent)
    return changed


def _forget_unfinished(folder: Path) -> list[Path]:
    """Delete the files of interrupted writes; returns the folders that had records without a manifest."""
    names = [MANIFEST, *map(_file_of, get_args(Format))]
    without_manifest = {
        file.parent for name in names for file in folder.glob(f"*/{name}") if not (file.parent / MANIFEST).exists()
    }
    try:
        for name in names:
            for file in folder.glob(f"*/.{name}.*"):
                file.unlink()
            for parent in without_manifest:
                (parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise MonitoringError(f"cannot delete the files of an interrupted write in {folder}: {error}") from error
    return sorted(without_manifest)


def _is_of(record: Record, digests: Collection[str]) -> bool:
    source = record.get("metadata", {}).get("source_trace")
    return source is not None and trace_digest(source) in digests


def _formats(manifest: dict[str, Any]) -> list[Format]:
    return [format for format in get_args(Format) if _file_of(format) in manifest["files"]]


def _manifest(path: str | Path) -> tuple[dict[str, Any], Path]:
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["files"][0], *(manifest[key] for key in ("name", "digest", "record_count", "origin"))
    except OSError as error:
        raise MonitoringError(f"no dataset at {path}: {error.strerror}; pass a manifest or its folder") from error
    except (ValueError, LookupError, TypeError) as error:
        raise MonitoringError(
            f"{path} is not the manifest of a dataset; pass the {MANIFEST} next to its records"
        ) from error
    return manifest, path


def _file_of(format: str) -> str:
    return f"records.{format}"


def _replace(target: Path, write: Callable[[Path, Any], None], content: Any) -> None:
    """Write to a temporary file, then move it to `target`."""
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        write(temporary, content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_jsonl(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{canonical(record)}\n" for record in records)


def _write_parquet(path: Path, records: Iterable[Record]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(part, pa.string()) for part in PARTS])
    rows = [{part: canonical(record[part]) for part in PARTS if part in record} for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _parquet_lines(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    return [canonical({part: json.loads(text) for part, text in row.items() if text is not None}) for row in rows]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, Any], None]] = {"jsonl": _write_jsonl, "parquet": _write_parquet}
