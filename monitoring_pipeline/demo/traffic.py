"""Simulated customer traffic for the support agent, logged as MLflow traces.

The agent really runs; only the clock is simulated. The duration of each stage of the agent is drawn from a log-normal
distribution (STAGES: median in milliseconds and sigma, by span name), seeded by the trace's id. Services fail at random
at everyday rates, and in one incident hour the order service is slow and mostly down. Ids are hashes of the arguments,
so the same arguments produce the same traces.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.demo.agent import HelpIndex, Message, Order, Reply, Shop, SupportAgent, load_help
from monitoring_pipeline.windows import HOUR, Window, floor_hour, to_microseconds

if TYPE_CHECKING:
    from mlflow.entities import Assessment
    from mlflow.entities.span import Span as MlflowSpan

STAGES = {
    "support_agent": (25.0, 0.3),
    "search_help": (60.0, 0.4),
    "lookup_order": (140.0, 0.5),
    "track_parcel": (320.0, 0.6),
    "create_refund": (260.0, 0.5),
    "write_answer": (700.0, 0.45),
}
OUTAGE_RATES = {"orders": 0.035, "carrier": 0.08, "payments": 0.05}
INCIDENT_OUTAGE_RATE = 0.75
INCIDENT_SLOWDOWN = {"lookup_order": 45.0}
INCIDENT_HOURS_BEFORE_END = 10

RELEASES = {"1.4.0": 1, "1.5.0": 3}  # release -> sections of the help text that it reads; 1.5.0 starts halfway
STAGING_SHARE = 0.1
EXPECTATION_SHARE = 1 / 8
FEEDBACK_SHARE = 1 / 10
MIN_SESSIONS_AN_HOUR = 4
SESSION_LIMIT = timedelta(minutes=20)  # longer than the longest session
BATCH = 200  # traces per call to the store: small enough for frequent progress


# --- recording ---


@dataclass
class SpanRecord:
    """A recorded step: times in nanoseconds since 1970, `failure` the type and message of its exception."""

    name: str
    span_type: str
    inputs: Any
    parent: int | None
    start_ns: int
    end_ns: int = 0
    outputs: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    failure: tuple[str, str] | None = None

    def fail(self, error: Exception) -> None:
        self.failure = (type(error).__name__, str(error))


class SimulatedTracer:
    """Records spans on a clock that advances only by the simulated durations of stages."""

    def __init__(self, start: datetime, rng: random.Random, slowdown: Mapping[str, float]) -> None:
        self.spans: list[SpanRecord] = []
        self._now_ns = to_microseconds(start) * 1_000
        self._rng = rng
        self._slowdown = slowdown
        self._open: list[int] = []

    @contextmanager
    def span(self, name: str, span_type: str, inputs: Any) -> Iterator[SpanRecord]:
        record = SpanRecord(name, span_type, inputs, self._open[-1] if self._open else None, self._now_ns)
        self._open.append(len(self.spans))
        self.spans.append(record)
        try:
            yield record
        except Exception as error:
            record.fail(error)
            raise
        finally:
            median_ms, sigma = STAGES[name]
            duration_ms = self._rng.lognormvariate(math.log(median_ms), sigma) * self._slowdown.get(name, 1.0)
            self._now_ns += int(duration_ms * 1_000_000)
            record.end_ns = self._now_ns
            self._open.pop()


@dataclass
class TraceRecord:
    """A run of the agent: the content of an MLflow trace, and people's judgements of it (None: not judged)."""

    trace_id: str
    session_id: str
    user_id: str
    tags: dict[str, str]
    spans: list[SpanRecord]
    expected_tools: list[str] | None
    user_satisfied: bool | None


# --- customers ---

HELP_QUESTIONS = (
    "How long do I have to return an item?",
    "When will the money of a refund be on my card?",
    "Which items are excluded from returns?",
    "Can I exchange a jumper for another size?",
    "My lamp arrived damaged, do I get a replacement?",
    "How many working days does standard delivery take?",
    "What does express shipping cost?",
    "Is shipping free above a certain amount?",
    "Do you ship to Norway?",
    "Who pays customs duties?",
    "Can I still change the delivery address?",
    "I was not at home, will the courier try again?",
    "When does a parcel count as lost?",
    "Can I pay with PayPal?",
    "When is an invoice due?",
    "Why was my card declined?",
    "Can I pay in monthly instalments and what interest do you charge?",
    "How do I enter a voucher code?",
    "How long are gift cards valid?",
    "Is there a discount for students?",
    "I forgot my password, how long is the reset link valid?",
    "How do I delete my account?",
    "How can I unsubscribe from the newsletter?",
    "Until when can an order be cancelled?",
    "Where do I download a receipt with our tax number?",
    "How many years of warranty do lamps have?",
    "Do you sell spare parts for looms?",
    "Will I hear when a sold-out article is available again?",
    "What are the opening hours of the phone support?",
)
OTHER_QUESTIONS = (
    "Who designed the chandelier in the film last night?",
    "Are you hiring in Lisbon?",
    "Is the oak from certified forests?",
    "Can you recommend a good pizzeria?",
    "Does the blue rug suit a dog?",
)


@dataclass(frozen=True)
class Scenario:
    """A customer's request, wordings for it, and the tools, in order, that a right answer needs."""

    wordings: tuple[str, ...]
    tools: tuple[str, ...]


HELP = Scenario(HELP_QUESTIONS, ())
OTHER = Scenario(OTHER_QUESTIONS, ())
ORDER_STATUS = Scenario(
    (
        "What is the status of order {order_id}?",
        "Has my order {order_id} left yet?",
        "Please check my purchase {order_id}, is everything all right with it?",
        "Where is the refund for order {order_id} that you promised?",  # sounds like a request for a refund
    ),
    ("lookup_order",),
)
PARCEL = Scenario(
    (
        "Where is my parcel? The order is {order_id}.",
        "Can you track the package of {order_id}?",
        "My parcel {order_id} has not arrived, where is it?",
        "The courier should have been here by now with {order_id}.",
        "I am still waiting for {order_id}, how far has it come?",  # names neither parcel nor carrier
    ),
    ("lookup_order", "track_parcel"),
)
REFUND = Scenario(
    (
        "I want my money back for {order_id}.",
        "Please refund order {order_id}, I do not like the colour.",
        "The glass in {order_id} was broken, I want a refund.",
        "Order {order_id} arrived damaged, please give me my money back.",
        "The zip of {order_id} came off after a day, pay me what I paid you.",  # names no refund
    ),
    ("lookup_order", "create_refund"),
)
NEXT_MESSAGES = {  # of customers who give the order number only when the agent asks for it
    "Where is my parcel?": PARCEL,
    "Can you track my package, please?": PARCEL,
    "I would like a refund for my order.": REFUND,
    "What about my order?": ORDER_STATUS,
}
SCENARIOS = {HELP: 0.34, OTHER: 0.05, ORDER_STATUS: 0.2, PARCEL: 0.23, REFUND: 0.18}
ASKED_FIRST_SHARE = 0.08
MISTYPED_SHARE = 0.05


@dataclass(frozen=True)
class Turn:
    """A customer's message, and the tools that a right answer needs."""

    question: str
    expected_tools: tuple[str, ...]


def session_turns(rng: random.Random, order_ids: Sequence[str]) -> list[Turn]:
    """The turns of one session of a customer with these orders: one to three requests of one or two messages each."""
    turns: list[Turn] = []
    order_id = rng.choice(order_ids)
    for _ in range(rng.choices((1, 2, 3), weights=(50, 33, 17))[0]):
        if rng.random() < ASKED_FIRST_SHARE:
            opening = rng.choice(list(NEXT_MESSAGES))
            turns += [Turn(opening, ()), Turn(f"The number is {order_id}.", NEXT_MESSAGES[opening].tools)]
            continue
        scenario = rng.choices(list(SCENARIOS), weights=list(SCENARIOS.values()))[0]
        wording = rng.choice(scenario.wordings)
        if scenario.tools and rng.random() < MISTYPED_SHARE:
            turns.append(Turn(wording.format(order_id=f"LL-9{rng.randrange(10_000):04}"), ("lookup_order",)))
        else:
            turns.append(Turn(wording.format(order_id=order_id), scenario.tools))
    return turns


ITEMS = {
    "linen curtain": 89.0,
    "reading lamp": 64.5,
    "wool rug": 219.0,
    "table loom": 349.0,
    "quilted jacket": 129.9,
    "glass vase": 34.9,
    "oak stool": 99.0,
    "pillow case": 19.9,
}


def order_book(rng: random.Random, until: datetime, customers: int) -> dict[str, list[Order]]:
    """One to four orders per customer, by user id, placed in the 50 days up to `until`."""
    orders: dict[str, list[Order]] = {}
    number = 10_000
    for customer in range(customers):
        mine = orders[f"customer-{customer:04}"] = []
        for _ in range(rng.randint(1, 4)):
            item = rng.choice(list(ITEMS))
            placed = until - timedelta(days=50 * rng.random() ** 2)
            shipped = placed + timedelta(hours=rng.uniform(6, 40))
            delivered = shipped + timedelta(days=rng.uniform(1, 5))
            mine.append(Order(f"LL-{number}", item, ITEMS[item], placed, shipped, delivered))
            number += 1
    return orders


# --- simulation ---


def simulate(end: datetime, hours: int, traces: int, seed: int) -> Iterator[TraceRecord]:
    """Yield the runs of the agent in the `hours` before `end`, session by session, ordered by session start.

    There are at least `traces` runs, and at least MIN_SESSIONS_AN_HOUR sessions start in each hour, more in the
    afternoon than at night (UTC). The incident hour starts INCIDENT_HOURS_BEFORE_END hours before the end, or halfway
    through the window if it is shorter than twice that.

    Raises:
        ValueError: `end` has no time zone, or `hours` or `traces` is not positive.
    """
    if end.tzinfo is None or hours < 1 or traces < 1:
        raise ValueError(f"needs an end with a time zone and at least 1 hour and 1 trace, not {end}, {hours}, {traces}")
    last = floor_hour(end)
    window = Window(last - hours * HOUR, last)
    incident_start = last - min(INCIDENT_HOURS_BEFORE_END, (hours + 1) // 2) * HOUR
    incident = Window(incident_start, incident_start + HOUR)
    run = f"{seed} {window} {traces}"
    rng = random.Random(run)
    # At most 8,000 orders: their numbers have five digits and stay below mistyped numbers, which start with 9.
    orders = order_book(rng, window.start, customers=min(20 + traces // 10, 2_000))
    shop = Shop({order.order_id: order for mine in orders.values() for order in mine}, window.start)
    index = HelpIndex(load_help())
    halfway = window.start + (window.end - window.start) / 2

    for number, (start, turns, user_id) in enumerate(_sessions(rng, window, traces, orders)):
        session_id = f"session-{_digest(run, number, length=12)}"
        environment = "staging" if rng.random() < STAGING_SHARE else "production"
        messages: list[Message] = []
        shop.now = start
        for position, turn in enumerate(turns):
            trace_id = _digest(run, number, position, length=32)
            release = list(RELEASES)[shop.now >= halfway]
            in_incident = shop.now in incident
            shop.outages = _outages(rng, in_incident)
            slowdown = INCIDENT_SLOWDOWN if in_incident else {}
            tracer = SimulatedTracer(shop.now, random.Random(trace_id), slowdown)
            messages.append({"role": "user", "content": turn.question})
            reply = SupportAgent(shop, index, RELEASES[release], tracer).answer(messages)
            messages.append({"role": "assistant", "content": reply.text})
            yield TraceRecord(
                trace_id=f"tr-{trace_id}",
                session_id=session_id,
                user_id=user_id,
                tags={"environment": environment, "release": release, "intent": reply.intent},
                spans=tracer.spans,
                expected_tools=list(turn.expected_tools) if rng.random() < EXPECTATION_SHARE else None,
                user_satisfied=_satisfied(rng, turn, reply, tracer.spans) if rng.random() < FEEDBACK_SHARE else None,
            )
            duration_ns = tracer.spans[0].end_ns - tracer.spans[0].start_ns
            shop.now += timedelta(microseconds=duration_ns // 1_000, seconds=rng.uniform(10, 110))


def _sessions(
    rng: random.Random, window: Window, traces: int, orders: Mapping[str, list[Order]]
) -> Iterator[tuple[datetime, list[Turn], str]]:
    """The start, turns and customer of each session, ordered by start."""
    weights = [1 + 0.7 * math.cos((hour.hour - 14) / 24 * math.tau) for hour in window.hours()]
    for hour, weight in zip(window.hours(), weights, strict=True):
        quota = math.ceil(traces * weight / sum(weights))
        planned: list[tuple[list[Turn], str]] = []
        while sum(len(turns) for turns, _ in planned) < quota or len(planned) < MIN_SESSIONS_AN_HOUR:
            user_id = rng.choice(list(orders))
            planned.append((session_turns(rng, [order.order_id for order in orders[user_id]]), user_id))
        # No trace may start at the end of the window or later.
        room = HOUR - SESSION_LIMIT if hour + HOUR == window.end else HOUR
        starts = sorted(hour + room * rng.random() for _ in planned)
        yield from ((start, turns, user_id) for start, (turns, user_id) in zip(starts, planned, strict=True))


def _outages(rng: random.Random, in_incident: bool) -> dict[str, str]:
    rates = OUTAGE_RATES | ({"orders": INCIDENT_OUTAGE_RATE} if in_incident else {})
    message = "overloaded, request refused (503)" if in_incident else "connection reset"
    return {service: message for service, rate in rates.items() if rng.random() < rate}


def _satisfied(rng: random.Random, turn: Turn, reply: Reply, spans: Sequence[SpanRecord]) -> bool:
    if spans[0].failure:
        return rng.random() < 0.05
    if not reply.helpful:
        return rng.random() < 0.2
    called = [span.name for span in spans if span.span_type == "TOOL"]
    return rng.random() < (0.92 if called == list(turn.expected_tools) else 0.35)


def _digest(*parts: object, length: int) -> str:
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:length]


# --- logging ---


def mlflow_spans(trace: TraceRecord) -> list[MlflowSpan]:
    """Return the spans of a trace as MLflow entities, root first.

    Session, user, name and tags of the trace are attributes of the root span, where MLflow's store reads them. The
    store computes the trace's token usage and cost from the spans.
    """
    from mlflow.entities.span import Span
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    otel_trace_id = int(trace.trace_id.removeprefix("tr-"), 16)
    contexts = [
        SpanContext(
            otel_trace_id, int(_digest(trace.trace_id, n, length=16), 16), False, TraceFlags(TraceFlags.SAMPLED)
        )
        for n in range(len(trace.spans))
    ]
    root_attributes = {"session.id": trace.session_id, "user.id": trace.user_id}
    root_attributes |= {f"mlflow.traceTag.{key}": value for key, value in trace.tags.items()}
    root_attributes["mlflow.traceTag.mlflow.traceName"] = trace.spans[0].name

    spans = []
    for record, context in zip(trace.spans, contexts, strict=True):
        attributes = {
            "mlflow.traceRequestId": trace.trace_id,
            "mlflow.spanType": record.span_type,
            "mlflow.spanInputs": record.inputs,
            **record.attributes,
            **(root_attributes if record.parent is None else {}),
        }
        if record.outputs is not None:
            attributes["mlflow.spanOutputs"] = record.outputs
        status, events = Status(StatusCode.OK), []
        if record.failure:
            kind, message = record.failure
            status = Status(StatusCode.ERROR, f"{kind}: {message}")
            details = {"exception.type": kind, "exception.message": message}
            events = [Event("exception", details, timestamp=record.end_ns)]
        spans.append(
            Span(
                ReadableSpan(
                    name=record.name,
                    context=context,
                    parent=None if record.parent is None else contexts[record.parent],
                    resource=Resource.get_empty(),
                    attributes={key: json.dumps(value) for key, value in attributes.items()},
                    events=events,
                    status=status,
                    start_time=record.start_ns,
                    end_time=record.end_ns,
                )
            )
        )
    return spans


def mlflow_assessments(trace: TraceRecord) -> list[Assessment]:
    """Return people's judgements of a trace: expectation `expected_tools` and feedback `user_satisfied`, if any."""
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    given_ms = trace.spans[0].end_ns // 1_000_000
    assessments: list[Assessment] = []
    if trace.expected_tools is not None:
        reviewer = AssessmentSource("HUMAN", "support-lead")
        assessments.append(
            Expectation("expected_tools", trace.expected_tools, source=reviewer, create_time_ms=given_ms)
        )
    if trace.user_satisfied is not None:
        customer = AssessmentSource("HUMAN", trace.user_id)
        assessments.append(Feedback("user_satisfied", trace.user_satisfied, source=customer, create_time_ms=given_ms))
    for assessment in assessments:
        assessment.assessment_id = f"a-{_digest(trace.trace_id, assessment.name, length=32)}"
    return assessments


def fill(
    tracking_uri: str,
    experiment: str,
    end: datetime,
    hours: int = 48,
    traces: int = 2000,
    seed: int = 7,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Fill an empty experiment, created if missing, with traces; returns how many were written.

    The traces are from `simulate` and start in the `hours` before `end`, which is floored to the hour. `on_progress`
    receives the number written so far after each batch. MLflow's global tracking URI does not change.

    Raises:
        ValueError: the experiment already has traces, or `simulate` rejects an argument.
    """
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

    client = MlflowClient(tracking_uri)
    tracing = TracingClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    if found and tracing.search_traces(locations=[experiment_id], max_results=1, include_spans=False):
        raise ValueError(f"experiment {experiment!r} already holds traces: give the name of a new one")

    written = 0
    records = simulate(end, hours, traces, seed)
    while batch := list(islice(records, BATCH)):
        tracing.log_spans(experiment_id, [span for trace in batch for span in mlflow_spans(trace)])
        for trace in batch:
            for assessment in mlflow_assessments(trace):
                tracing.log_assessment(trace.trace_id, assessment)
        written += len(batch)
        if on_progress:
            on_progress(written)
    return written
