"""Redaction: planted values are nowhere in the lake, the rest is a valid trace, and nothing else changes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import AssessmentSource, Feedback, Trace
from pydantic import ValidationError

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings, RedactSettings
from monitoring_pipeline.sources.mlflow import read_traces
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES
from monitoring_pipeline.traces.detectors import DETECTORS
from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.traces.redaction import Redactor
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json

ALL: list[Any] = ["email", "phone", "card", "iban", "ip"]
KINDS = [*ALL, "api_key"]
SETTINGS = RedactSettings(detectors=ALL, patterns={"api_key": r"sk-[A-Za-z0-9]{20,}"})
EACH = 1000


# ---- planted values, made by other rules than the detectors' ----


def luhn_digit(payload: str) -> str:
    """The check digit, by the table of doubled digits."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    total = sum(doubled[int(d)] if i % 2 == 0 else int(d) for i, d in enumerate(reversed(payload)))
    return str(-total % 10)


def card(rng: random.Random) -> str:
    prefix, length = rng.choice([("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("3530", 16), ("36", 14)])
    payload = prefix + "".join(rng.choices("0123456789", k=length - len(prefix) - 1))
    number = payload + luhn_digit(payload)
    gap = rng.choice(["", " ", "-"])
    return gap.join(number[i : i + 4] for i in range(0, length, 4)) if length == 16 else number


def iban(rng: random.Random) -> str:
    """A number whose check digits are 98 minus the remainder of the number with 00 as check digits."""
    forms = [("DE", "N" * 18), ("GB", "AAAA" + "N" * 14), ("FR", "N" * 23), ("NL", "AAAA" + "N" * 10)]
    country, form = rng.choice(forms)
    account = "".join(rng.choice("0123456789") if c == "N" else rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") for c in form)
    spelled = "".join(str(ord(c) - 55) if c.isalpha() else c for c in f"{account}{country}00")
    number = f"{country}{98 - int(spelled) % 97:02}{account}"
    return number if rng.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def email(rng: random.Random) -> str:
    name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8))
    end, top = rng.choice([".doe", "+tag", "_x", "-y", ""]), rng.choice(["com", "co.uk", "de", "museum"])
    return f"{name}{end}@{name[:5]}x.{top}"


def phone(rng: random.Random) -> str:
    d = lambda k: "".join(rng.choices("0123456789", k=k))  # noqa: E731
    nanp = (f"{rng.randint(2, 9)}{d(2)}", f"{rng.randint(2, 9)}{d(2)}", d(4))
    return rng.choice(
        [
            f"+{rng.randint(1, 9)}{d(10)}",
            f"+49 {rng.randint(100, 999)} {d(4)} {d(4)}",
            "({}) {}-{}".format(*nanp),
            "{}-{}-{}".format(*nanp),
            "+1 ({}) {}-{}".format(*nanp),
            f"+44 (0)20 {d(4)} {d(4)}",
            f"0{rng.randint(100, 999)} {d(3)} {d(4)}",
        ]
    )


def ip(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return ".".join(str(rng.randint(1, 255)) for _ in range(4))
    return ":".join(f"{rng.randint(1, 65535):x}" for _ in range(8))


def api_key(rng: random.Random) -> str:
    return "sk-" + "".join(rng.choices("abcdefghijkABCDEFGH0123456789", k=24))


MAKERS = {"email": email, "phone": phone, "card": card, "iban": iban, "ip": ip, "api_key": api_key}
PLANTED = {kind: [MAKERS[kind](random.Random(f"{kind}{n}")) for n in range(EACH)] for kind in KINDS}


@pytest.mark.parametrize("kind", ALL)
def test_a_detector_finds_every_value_of_its_kind_completely(kind: str) -> None:
    def found(text: str) -> list[str]:
        return [text[start:end] for start, end in DETECTORS[kind](text)]

    assert [value for value in PLANTED[kind] if value not in found(f"call: {value}, please.")] == []


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("card", "4111 1111 1111 1112"),  # the checksum
        ("card", "1767243600000000000"),  # a time in nanoseconds
        ("card", "tr-41111111111111114111111111111111"),
        ("iban", "DE89370400440532013001"),
        ("iban", "XX89370400440532013000"),
        ("ip", "v1.2.3.4"),
        ("ip", "300.1.1.1"),
        ("ip", "12:30:45"),
        ("ip", "std::vector"),
        ("phone", "2026-01-01T05:00:00+01:00"),
        ("phone", "2026-01-01"),
        ("phone", "01.02.2026 1200"),
        ("phone", "tr-00000000000000000000000000000001"),
        ("phone", "1767243600000"),
        ("phone", "order 4155552671"),
        ("email", "user@localhost"),
        ("email", "@decorator.name"),
    ],
)
def test_a_detector_ignores_similar_values(kind: str, text: str) -> None:
    assert [text[a:b] for a, b in DETECTORS[kind](text)] == []


def test_digits_next_to_a_card_number_do_not_hide_it() -> None:
    text = "5 4111 1111 1111 1111 12/26"
    assert Redactor(SETTINGS).text(text) == "5 [redacted:card] 12/26"


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_matches_are_within_the_text_and_a_second_pass_finds_nothing_new(text: str) -> None:
    redactor = Redactor(SETTINGS)
    for find in DETECTORS.values():
        assert all(0 <= start < end <= len(text) for start, end in find(text))
    once = redactor.text(text)
    assert redactor.text(once) == once


# ---- in the lake ----


def plant(store: Store) -> None:
    """Traces with ten of each kind: in inputs, outputs, attributes, tags, metadata, errors and feedback."""
    for number in range(EACH // 10):
        of_trace = [[PLANTED[kind][number * 10 + n] for kind in KINDS] for n in range(10)]
        texts = [f"contact {' ; '.join(values)} ." for values in of_trace]
        stack = {"exception.message": texts[4], "exception.stacktrace": f"Traceback\n  {texts[5]}"}
        span = span_json(
            number,
            attributes={
                "mlflow.spanInputs": json.dumps({"messages": [{"content": texts[0]}], texts[1]: 1}),
                "mlflow.spanOutputs": json.dumps(json.dumps({"answer": texts[2]})),
                "custom": json.dumps([texts[3]]),
            },
            status={"code": "STATUS_CODE_ERROR", "message": texts[6]},
            events=[{"name": "exception", "time_unix_nano": 1, "attributes": stack}],
        )
        store.log(
            number,
            [span],
            [Feedback(name="ok", value=texts[7], rationale=texts[8], source=AssessmentSource("HUMAN", "reviewer"))],
            tags={"note": texts[9]},
            trace_metadata={"about": json.dumps({"text": texts[9]})},
            request_preview=texts[0],
            response_preview=texts[2],
        )


def bytes_of(folder: str) -> bytes:
    """The values of all columns of all parquet files, decoded, and the bytes of all other files."""
    parts: list[bytes] = []
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            parts.append(json.dumps(pq.read_table(file).to_pylist(), default=str, ensure_ascii=False).encode())
        if file.is_file():
            parts.append(file.read_bytes())
    return b"\n".join(parts)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> tuple[LakeResource, Store]:
    folder = tmp_path_factory.mktemp("planted")
    store = Store.create(folder)
    plant(store)
    lake = LakeResource(location=str(folder / "lake"), spark=spark)
    tracking = TrackingResource(tracking_uri=store.uri)
    archive_window(ArchiveSettings(redact=SETTINGS), tracking, lake, HOUR)
    return lake, store


def test_nothing_planted_is_anywhere_in_the_lake(planted: tuple[LakeResource, Store]) -> None:
    stored = bytes_of(planted[0].location).decode("utf-8", "replace")
    assert stored.count('"trace_id"') >= EACH // 10
    found = {kind: sum(value in stored for value in PLANTED[kind]) for kind in KINDS}
    assert found == dict.fromkeys(KINDS, 0)


def test_the_search_would_find_planted_values(planted: tuple[LakeResource, Store], tmp_path: Path) -> None:
    lake, store = planted
    open_lake = LakeResource(location=str(tmp_path / "lake"), spark=lake.spark)
    archive_window(ArchiveSettings(), TrackingResource(tracking_uri=store.uri), open_lake, HOUR)

    stored = bytes_of(open_lake.location).decode("utf-8", "replace")
    assert all(value in stored for kind in KINDS for value in PLANTED[kind])


def test_redacted_traces_are_traces_with_their_ids_times_types_and_counts(
    planted: tuple[LakeResource, Store],
) -> None:
    lake, store = planted
    given_ = {
        trace.info.trace_id: trace
        for batch in read_traces(store.client, [store.experiment_id], HOUR)
        for trace in batch
        if isinstance(trace, Trace)
    }
    rows = lake.read(AGENT_TRACES).toArrow().to_pylist(maps_as_pydicts="strict")
    assert len(rows) == EACH // 10
    for row in rows:
        trace, before = Trace.from_json(row["trace_json"]), given_[row["trace_id"]]
        assert trace.info.trace_id == before.info.trace_id
        assert trace.info.request_time == before.info.request_time
        [span], [was] = trace.data.spans, before.data.spans
        assert (span.span_id, span.start_time_ns, span.end_time_ns, span.span_type, span.status.status_code) == (
            was.span_id,
            was.start_time_ns,
            was.end_time_ns,
            was.span_type,
            was.status.status_code,
        )
        assert span.inputs["messages"][0]["content"] == "contact " + " ; ".join(f"[redacted:{k}]" for k in KINDS) + " ."
        assert set(row["redactions"]) == set(KINDS)
        assert all(count >= 10 for count in row["redactions"].values())


def test_the_database_source_yields_the_same_rows(planted: tuple[LakeResource, Store], tmp_path: Path) -> None:
    lake, store = planted
    other = LakeResource(location=str(tmp_path / "lake"), spark=lake.spark)
    counts = archive_window(
        ArchiveSettings(source="mlflow-sql", redact=SETTINGS), TrackingResource(tracking_uri=store.uri), other, HOUR
    )
    assert set(counts.redactions) == set(KINDS)
    digests = [sorted(lk.read(AGENT_TRACES).toArrow()["content_digest"].to_pylist()) for lk in (lake, other)]
    assert digests[0] == digests[1]


def row_of(store: Store, lake: LakeResource, redact: RedactSettings) -> dict[str, Any]:
    archive_window(ArchiveSettings(redact=redact), TrackingResource(tracking_uri=store.uri), lake, HOUR)
    [row] = lake.read(AGENT_TRACES).toArrow().to_pylist(maps_as_pydicts="strict")
    return row


def test_a_trace_without_anything_to_remove_is_unchanged(store: Store, lake: LakeResource) -> None:
    store.log(1)
    row = row_of(store, lake, SETTINGS)
    [trace] = [trace for batch in read_traces(store.client, [store.experiment_id], HOUR) for trace in batch]
    assert isinstance(trace, Trace)
    assert json.loads(row["trace_json"]) == trace.to_dict()
    assert row["redactions"] is None


def test_a_path_removes_its_values_and_their_previews(store: Store, lake: LakeResource) -> None:
    inputs = {"messages": [{"role": "user", "content": "my name is Ann"}], "n": 4}
    span = span_json(1, attributes={"mlflow.spanInputs": json.dumps(inputs)})
    store.log(1, [span], request_preview="my name is Ann")
    row = row_of(store, lake, RedactSettings(json_paths=["$.messages[*].content"]))

    assert json.loads(row["request"]) == {"messages": [{"role": "user", "content": "[redacted:json_path]"}], "n": 4}
    assert b"Ann" not in bytes_of(lake.location)


def test_a_path_leaves_no_preview_of_a_trace_without_spans(store: Store, lake: LakeResource) -> None:
    from mlflow.entities import TraceState

    store.log(1, [], state=TraceState.IN_PROGRESS, duration_ms=None, request_preview="my name is Ann")
    assert row_of(store, lake, RedactSettings(json_paths=["$.a"]))["request"] == "[redacted:json_path]"


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("$.a.b", {"a": {"b": "X", "c": [1, 2]}, "d": [{"b": 1}, {"b": 2}]}),
        ("$['a']['c'][0]", {"a": {"b": "s", "c": ["X", 2]}, "d": [{"b": 1}, {"b": 2}]}),
        ("$.d[*].b", {"a": {"b": "s", "c": [1, 2]}, "d": [{"b": "X"}, {"b": "X"}]}),
        ("$.d[1]", {"a": {"b": "s", "c": [1, 2]}, "d": [{"b": 1}, "X"]}),
        ("$..b", {"a": {"b": "X", "c": [1, 2]}, "d": [{"b": "X"}, {"b": "X"}]}),
        ("$.*", {"a": "X", "d": "X"}),
        ("$.nowhere.at.all", {"a": {"b": "s", "c": [1, 2]}, "d": [{"b": 1}, {"b": 2}]}),
    ],
)
def test_values_that_a_path_selects(path: str, left: dict[str, Any]) -> None:
    document = {"a": {"b": "s", "c": [1, 2]}, "d": [{"b": 1}, {"b": 2}]}
    redacted = Redactor(RedactSettings(json_paths=[path])).text(json.dumps(document))
    assert json.loads(redacted.replace("[redacted:json_path]", "X")) == left


def test_a_key_that_occurs_twice_hides_nothing() -> None:
    assert "jane" not in Redactor(SETTINGS).text('{"a": "jane@example.com", "a": 1}')


def test_two_keys_that_become_one_keep_both_values() -> None:
    redacted = json.loads(Redactor(SETTINGS).text('{"jane@example.com": 1, "joe@example.com": 2}'))
    assert redacted == {"[redacted:email]": 1, "[redacted:email] 2": 2}


def test_a_number_that_is_a_card_number_becomes_text() -> None:
    assert json.loads(Redactor(SETTINGS).text('{"card": 4111111111111111, "n": 17}')) == {
        "card": "[redacted:card]",
        "n": 17,
    }


def test_json_nested_too_deeply_is_searched_as_text() -> None:
    text = "[" * 600 + '"jane@example.com"' + "]" * 600
    assert Redactor(SETTINGS).text(text) == text.replace("jane@example.com", "[redacted:email]")


def test_sessions_named_by_addresses_stay_distinct(store: Store, lake: LakeResource) -> None:
    for number, who in enumerate(("jane@example.com", "joe@example.com")):
        store.log(number, trace_metadata={"mlflow.trace.session": who, "mlflow.trace.user": who})
    archive_window(ArchiveSettings(redact=SETTINGS), TrackingResource(tracking_uri=store.uri), lake, HOUR)
    rows = lake.read(AGENT_TRACES).toArrow()
    assert len(set(rows["session_id"].to_pylist())) == 2
    assert set(rows["user_id"].to_pylist()) == {"[redacted:email]"}


def test_the_quarantine_is_redacted(lake: LakeResource) -> None:
    trace = UnreadableTrace("tr-1", START, "ValueError: jane@example.com", "TraceInfo(note='jane@example.com')")
    archive(lake, HOUR, [[trace]], {}, redactor=Redactor(SETTINGS))
    [row] = lake.read(QUARANTINED_TRACES).toArrow().to_pylist()
    assert (row["reason"], row["raw"]) == ("ValueError: [redacted:email]", "TraceInfo(note='[redacted:email]')")


def test_with_paths_the_quarantine_stores_no_raw_text(lake: LakeResource) -> None:
    redactor = Redactor(RedactSettings(json_paths=["$.a"]))
    archive(lake, HOUR, [[UnreadableTrace("tr-1", START, "broken", "{'a': 'Ann'")]], {}, redactor=redactor)
    [row] = lake.read(QUARANTINED_TRACES).toArrow().to_pylist()
    assert row["raw"] == "[redacted:json_path]"


@pytest.mark.parametrize(
    ("given_settings", "fix"),
    [
        ({"detectors": ["e-mail"]}, "'email', 'phone', 'card', 'iban' or 'ip'"),
        ({"patterns": {"k": "("}}, "is not a regular expression"),
        ({"patterns": {"k": "a*"}}, "matches the empty text"),
        ({"patterns": {"k": "(a+)+$"}}, "possessive"),
        ({"patterns": {"email": "a"}}, "is taken"),
        ({"patterns": {"My Key": "a"}}, "lower-case letters"),
        ({"json_paths": ["messages.content"]}, r"write \$ and then"),
        ({"json_paths": ["$.a[?(@.b)]"]}, r"write \$ and then"),
    ],
)
def test_a_setting_that_cannot_be_used_names_the_fix(given_settings: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        RedactSettings(**given_settings)


# ---- the recorded conversations ----


def test_the_findings_in_the_recorded_conversations_match_the_documentation(
    recorded_store: str, lake: LakeResource
) -> None:
    redact = RedactSettings(detectors=ALL)
    tracking = TrackingResource(tracking_uri=recorded_store, experiments=["airline"])
    counts = archive_window(ArchiveSettings(source="mlflow-sql", redact=redact), tracking, lake, RECORDED_WINDOW)
    assert counts.read == 681
    assert set(counts.redactions) == {"email"}  # the customers' addresses, all true positives
    stored = [Trace.from_json(text) for text in lake.read(AGENT_TRACES).toArrow()["trace_json"].to_pylist()]
    assert len(stored) == 681
    assert not any("@example.com" in json.dumps(trace.to_dict(), default=str) for trace in stored)
