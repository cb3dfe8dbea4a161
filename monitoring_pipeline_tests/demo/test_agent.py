"""The support agent computes its answers from the help text, the conversation and the tools."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from monitoring_pipeline.demo.agent import (
    HelpIndex,
    Message,
    Order,
    Reply,
    Section,
    ServiceUnavailable,
    Shop,
    SupportAgent,
    UnknownOrder,
    decide_intent,
    load_help,
)
from monitoring_pipeline.demo.traffic import SimulatedTracer

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


def order(number: str, delivered_days_ago: float) -> Order:
    delivered = NOW - timedelta(days=delivered_days_ago)
    return Order(
        number, "glass vase", 34.9, delivered - timedelta(days=4), delivered - timedelta(days=3), delivered_at=delivered
    )


@pytest.fixture
def shop() -> Shop:
    orders = [order("LL-10001", 5), order("LL-10002", -1), order("LL-10003", 45), order("LL-10004", -3.5)]
    return Shop({each.order_id: each for each in orders}, NOW)


def tracer() -> SimulatedTracer:
    return SimulatedTracer(NOW, random.Random(0), {})


def ask(shop: Shop, *questions: str, index: HelpIndex | None = None) -> tuple[Reply, SimulatedTracer]:
    """The reply to the last of a customer's questions, and the tracer of that run."""
    messages: list[Message] = [{"role": "user", "content": question} for question in questions]
    recorder = tracer()
    return SupportAgent(shop, index or HelpIndex(load_help()), 1, recorder).answer(messages), recorder


def tools(recorder: SimulatedTracer) -> list[tuple[str, bool]]:
    """The tools that were called, in order, and whether they succeeded."""
    return [(span.name, span.failure is None) for span in recorder.spans if span.span_type == "TOOL"]


def test_bundled_help_has_sections_with_titles_and_texts() -> None:
    sections = load_help()
    assert 20 <= len(sections) <= 30
    assert all(section.title and section.text for section in sections)
    assert len({section.anchor for section in sections}) == len(sections)


@pytest.mark.parametrize("section", load_help(), ids=lambda section: section.anchor)
def test_every_section_is_found_by_its_title(section: Section) -> None:
    assert HelpIndex(load_help()).search(section.title, 1)[0][0] == section


def test_search_ranks_best_first_and_keeps_the_limit() -> None:
    index = HelpIndex(load_help())
    found = index.search("What does standard delivery or express shipping cost?", 10)
    scores = [score for _, score in found]
    assert found[0][0].title == "Shipping costs"
    assert len(found) > 2
    assert scores == sorted(scores, reverse=True)
    assert index.search("What does standard delivery or express shipping cost?", 2) == found[:2]


def test_help_question_is_answered_from_the_help_text(shop: Shop) -> None:
    reply, recorder = ask(shop, "How many years of warranty do lamps have?")
    assert "lamps of five years" in reply.text
    assert (reply.intent, reply.helpful, tools(recorder)) == ("help", True, [])
    retriever = next(span for span in recorder.spans if span.span_type == "RETRIEVER")
    assert retriever.outputs[0]["metadata"]["doc_uri"] == "help.md#warranty"


def test_answer_follows_the_text_it_is_given(shop: Shop) -> None:
    sections = [section for section in load_help() if section.title != "Warranty"]
    index = HelpIndex([*sections, Section("Warranty", "Lamps are covered for ninety years.")])
    reply, _ = ask(shop, "How many years of warranty do lamps have?", index=index)
    assert reply.text == "Lamps are covered for ninety years."


def test_question_outside_the_help_text_gets_a_short_unhelpful_answer(shop: Shop) -> None:
    reply, _ = ask(shop, "Are you hiring in Lisbon?")
    assert reply.text == "Sorry, I found nothing about that."
    assert not reply.helpful


@pytest.mark.parametrize(
    ("questions", "intent"),
    [
        (["Where is my parcel LL-10001?"], "parcel"),
        (["please REFUND ll-10001"], "refund"),
        (["What is the status of order LL-10001?"], "order"),
        (["LL-10001"], "order"),
        (["I would like my money back", "It is LL-10001"], "refund"),
        (["Where is my parcel?", "It is LL-10001"], "parcel"),
        (["Where is my parcel LL-10001?", "Who pays customs duties?"], "help"),
        (["How does a refund work?"], "help"),
    ],
)
def test_intent(questions: list[str], intent: str) -> None:
    assert decide_intent(questions) == intent


def test_order_number_is_requested_and_then_used(shop: Shop) -> None:
    reply, recorder = ask(shop, "Where is my parcel?")
    assert "number of the order" in reply.text
    assert tools(recorder) == []
    reply, recorder = ask(shop, "Where is my parcel?", "The number is LL-10002.")
    assert tools(recorder) == [("lookup_order", True), ("track_parcel", True)]
    assert "LL-10002" in reply.text
    assert "in the regional depot" in reply.text  # two thirds of the way


def test_refund_is_made_once(shop: Shop) -> None:
    reply, recorder = ask(shop, "Please refund LL-10001")
    assert "RF-10001 over 34.90 euros" in reply.text
    assert tools(recorder) == [("lookup_order", True), ("create_refund", True)]
    reply, _ = ask(shop, "Please refund LL-10001")
    assert "already been refunded" in reply.text


@pytest.mark.parametrize(
    ("order_id", "reason", "obstacle"),
    [
        ("LL-10002", "faulty", "not been delivered yet"),
        ("LL-10003", "not wanted", "more than 30 days ago"),
        ("LL-10003", "faulty", None),
    ],
)
def test_refund_rules(shop: Shop, order_id: str, reason: str, obstacle: str | None) -> None:
    refund = shop.create_refund(order_id, reason)
    assert obstacle in refund["obstacle"] if obstacle else refund["refund_id"] == "RF-10003"
    assert shop.refunded == (set() if obstacle else {order_id})


def test_parcel_moves_with_the_time(shop: Shop) -> None:
    assert shop.lookup_order("LL-10004")["status"] == "being packed"
    places = []
    for hours in range(0, 24 * 4, 12):
        shop.now = NOW + timedelta(hours=hours)
        places.append(shop.track_parcel("LL-10004")["place"])
    assert list(dict.fromkeys(places)) == [*Shop.STOPS, "delivered"]


def test_tools_fail_for_unknown_orders_and_services_that_are_down(shop: Shop) -> None:
    with pytest.raises(UnknownOrder, match="LL-99999"):
        shop.lookup_order("LL-99999")
    shop.outages = {"orders": "refused", "carrier": "refused", "payments": "refused"}
    with pytest.raises(ServiceUnavailable, match="orders service: refused"):
        shop.lookup_order("LL-10001")
    with pytest.raises(ServiceUnavailable, match="carrier service: refused"):
        shop.track_parcel("LL-10001")
    with pytest.raises(ServiceUnavailable, match="payments service: refused"):
        shop.create_refund("LL-10001", "faulty")
    assert shop.refunded == set()


def test_agent_recovers_from_an_unknown_order(shop: Shop) -> None:
    reply, recorder = ask(shop, "Please refund LL-99999")
    assert tools(recorder) == [("lookup_order", False)]
    assert recorder.spans[0].failure is None
    assert "cannot find an order LL-99999" in reply.text


def test_agent_falls_back_to_the_order_when_the_carrier_is_down(shop: Shop) -> None:
    shop.outages = {"carrier": "refused"}
    reply, recorder = ask(shop, "Where is my parcel LL-10002?")
    assert tools(recorder) == [("lookup_order", True), ("track_parcel", False)]
    assert recorder.spans[0].failure is None
    assert "Delivery day: 11 January" in reply.text


def test_agent_fails_with_an_apology_when_the_order_service_is_down(shop: Shop) -> None:
    shop.outages = {"orders": "refused"}
    reply, recorder = ask(shop, "Where is my parcel LL-10002?")
    failure = ("ServiceUnavailable", "orders service: refused")
    assert [(span.span_type, span.failure) for span in recorder.spans] == [
        ("AGENT", failure),
        ("RETRIEVER", None),
        ("TOOL", failure),
        ("CHAT_MODEL", None),
    ]
    assert reply.text.startswith("I apologise")
    assert not reply.helpful


def test_chat_model_bills_the_tokens_of_its_texts(shop: Shop) -> None:
    short, long = (
        next(span for span in ask(shop, question)[1].spans if span.span_type == "CHAT_MODEL").attributes
        for question in ("Are you hiring?", "Are you, by any chance, hiring?")
    )
    assert short["mlflow.chat.tokenUsage"]["output_tokens"] == 8  # Sorry , I found nothing about that .
    usage, cost = long["mlflow.chat.tokenUsage"], long["mlflow.llm.cost"]
    assert usage["input_tokens"] == short["mlflow.chat.tokenUsage"]["input_tokens"] + 5  # , by any chance ,
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert cost["total_cost"] == pytest.approx(usage["input_tokens"] * 0.4e-6 + usage["output_tokens"] * 1.6e-6)


def test_simulated_clock_nests_spans_and_passes_on_exceptions() -> None:
    recorder = tracer()
    with pytest.raises(UnknownOrder), recorder.span("support_agent", "AGENT", {}):
        with recorder.span("search_help", "RETRIEVER", {}):
            pass
        with recorder.span("lookup_order", "TOOL", {}):
            raise UnknownOrder("there is no order X")
    agent, retriever, tool = recorder.spans
    assert (agent.parent, retriever.parent, tool.parent) == (None, 0, 0)
    assert agent.start_ns == retriever.start_ns < retriever.end_ns == tool.start_ns < tool.end_ns < agent.end_ns
    assert tool.failure == agent.failure == ("UnknownOrder", "there is no order X")
