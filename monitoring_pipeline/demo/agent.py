"""A small support agent of an online shop: it reads the help text, calls the shop's tools and fills in templates.

It needs no model and no network. It computes every answer from the conversation, help.md, the order book and the state
of the services, so that answers are right, unhelpful or wrong for real reasons. It is instrumented like any other
agent: each step runs in a span of its tracer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

MODEL = "template-writer"
MODEL_PROVIDER = "monitoring-pipeline-demo"
INPUT_USD_PER_TOKEN = 0.40e-6
OUTPUT_USD_PER_TOKEN = 1.60e-6

ORDER_ID = re.compile(r"\bLL-\d{5}\b", re.IGNORECASE)
REFUND_PERIOD = timedelta(days=30)

Message = dict[str, str]


class Span(Protocol):
    """A running step."""

    outputs: Any
    attributes: dict[str, Any]

    def fail(self, error: Exception) -> None:
        """Mark the step as failed by `error`, for a step that ends without raising it."""
        ...


class Tracer(Protocol):
    """Records the steps of an agent; a span is marked as failed if an exception leaves it."""

    def span(self, name: str, span_type: str, inputs: Any) -> AbstractContextManager[Span]: ...


# --- retrieval ---

FUNCTION_WORDS = """
    a about an and any are as at be been but by can could did do does for from get had has have hello hi how i if in is
    it its know let like long many me much my no not of on or our please so tell thank thanks that the them then there
    they this to up us want was we what when where which who why will with would you your
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
SUFFIXES = ("ments", "ment", "ings", "ing", "ed", "es", "s", "e", "y")


def terms(text: str) -> list[str]:
    """The content words of `text` in order, roughly stemmed ("shipping" and "ships" are "ship")."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [_stem(word) for word in words if word not in STOP_WORDS]


def _stem(word: str) -> str:
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


@dataclass(frozen=True)
class Section:
    title: str
    text: str

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def load_help() -> list[Section]:
    """The sections of the bundled help text, in order."""
    chapters = Path(__file__).with_name("help.md").read_text("utf-8").split("\n## ")[1:]
    parts = [chapter.partition("\n") for chapter in chapters]
    return [Section(title.strip(), " ".join(text.split())) for title, _, text in parts]


class HelpIndex:
    """Sections ranked with Okapi BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009)."""

    SATURATION = 1.5  # k1
    LENGTH_WEIGHT = 0.75  # b
    MIN_SCORE = 2.5  # one rare word is enough, one common word is not

    def __init__(self, sections: Sequence[Section]) -> None:
        self.sections = list(sections)
        self._counts = [Counter(terms(f"{section.title} {section.text}")) for section in self.sections]
        self._lengths = [counts.total() for counts in self._counts]
        self._mean_length = sum(self._lengths) / len(self._lengths)
        self._frequency = Counter(term for counts in self._counts for term in counts)

    def weight(self, term: str) -> float:
        """The inverse document frequency of a term, never negative."""
        frequency = self._frequency[term]
        return math.log(1 + (len(self.sections) - frequency + 0.5) / (frequency + 0.5))

    def search(self, question: str, limit: int) -> list[tuple[Section, float]]:
        """At most `limit` sections relevant to the question, with their scores, best first."""
        query = dict.fromkeys(terms(question))
        scored = [(section, self._score(query, n)) for n, section in enumerate(self.sections)]
        found = [(section, score) for section, score in scored if score >= self.MIN_SCORE]
        return sorted(found, key=lambda pair: -pair[1])[:limit]

    def _score(self, query: Mapping[str, None], n: int) -> float:
        counts = self._counts[n]
        length = self.SATURATION * (1 - self.LENGTH_WEIGHT + self.LENGTH_WEIGHT * self._lengths[n] / self._mean_length)
        shared = [term for term in query if term in counts]
        return sum(
            self.weight(term) * counts[term] * (self.SATURATION + 1) / (counts[term] + length) for term in shared
        )

    def passage(self, question: str, sections: Sequence[Section], limit: int = 2) -> str:
        """The `limit` sentences of the sections that match the question best, in the order of the text."""
        query = dict.fromkeys(terms(question))
        sentences = [(section, sentence) for section in sections for sentence in re.split(r"(?<=[.!?]) ", section.text)]

        def relevance(n: int) -> float:
            section, sentence = sentences[n]
            words = {*terms(sentence)}
            title = {*terms(section.title)}
            return sum(self.weight(term) * ((term in words) + (term in title)) for term in query)

        best = sorted(range(len(sentences)), key=lambda n: -relevance(n))[:limit]
        return " ".join(sentences[n][1] for n in sorted(best))


# --- tools ---


class ToolError(Exception):
    """A tool could not process its request."""


class UnknownOrder(ToolError):
    """No order has this number."""


class ServiceUnavailable(ToolError):
    """A service behind a tool is down."""


@dataclass(frozen=True)
class Order:
    order_id: str
    item: str
    price_eur: float
    placed_at: datetime
    shipped_at: datetime
    delivered_at: datetime

    def status(self, now: datetime) -> str:
        if now < self.shipped_at:
            return "being packed"
        return "delivered" if now >= self.delivered_at else "on its way"


@dataclass
class Shop:
    """The backend of the agent's tools: the order book, the time, and the services that are down.

    `outages` maps a service ("orders", "carrier" or "payments") to the message it fails with.
    """

    orders: Mapping[str, Order]
    now: datetime
    outages: Mapping[str, str] = field(default_factory=dict)
    refunded: set[str] = field(default_factory=set)

    STOPS = ("at the warehouse", "in the sorting centre", "in the regional depot", "out for delivery")

    def lookup_order(self, order_id: str) -> dict[str, Any]:
        """The order's number, item, price, status and expected day of delivery.

        Raises:
            UnknownOrder: no order has this number.
            ServiceUnavailable: the order service is down.
        """
        self._reach("orders")
        order = self._order(order_id)
        return {
            "order_id": order.order_id,
            "item": order.item,
            "price_eur": order.price_eur,
            "status": "refunded" if order_id in self.refunded else order.status(self.now),
            "delivery_day": f"{order.delivered_at:%d %B}",
        }

    def track_parcel(self, order_id: str) -> dict[str, Any]:
        """The place of an order's parcel, according to the carrier.

        Raises:
            UnknownOrder: no order has this number.
            ServiceUnavailable: the carrier's service is down.
        """
        self._reach("carrier")
        order = self._order(order_id)
        if self.now >= order.delivered_at:
            return {"order_id": order_id, "place": "delivered"}
        travelled = max((self.now - order.shipped_at) / (order.delivered_at - order.shipped_at), 0.0)
        return {"order_id": order_id, "place": self.STOPS[int(travelled * len(self.STOPS))]}

    def create_refund(self, order_id: str, reason: str) -> dict[str, Any]:
        """Refund an order: the refund's number, amount and reason, or the `obstacle` if the shop's rules forbid it.

        Raises:
            UnknownOrder: no order has this number.
            ServiceUnavailable: the payment service is down.
        """
        self._reach("payments")
        order = self._order(order_id)
        if order_id in self.refunded:
            return {"obstacle": f"order {order_id} has already been refunded"}
        if self.now < order.delivered_at:
            return {"obstacle": f"order {order_id} has not been delivered yet"}
        if reason != "faulty" and self.now - order.delivered_at > REFUND_PERIOD:
            return {"obstacle": f"order {order_id} was delivered more than {REFUND_PERIOD.days} days ago"}
        self.refunded.add(order_id)
        return {"refund_id": f"RF-{order_id[3:]}", "amount_eur": order.price_eur, "reason": reason}

    def _reach(self, service: str) -> None:
        if service in self.outages:
            raise ServiceUnavailable(f"{service} service: {self.outages[service]}")

    def _order(self, order_id: str) -> Order:
        if order_id not in self.orders:
            raise UnknownOrder(f"there is no order {order_id}")
        return self.orders[order_id]


# --- intent ---

CUES = {
    "refund": {*terms("refund money back broken damaged faulty cracked return")},
    "parcel": {*terms("parcel package track courier arrive arrived delivered tracking carrier")},
    "order": {*terms("order status ordered purchase")},
}
OWN_MATTER = re.compile(r"\bmy (order|parcel|package|refund|money)\b", re.IGNORECASE)


def find_order_id(text: str) -> str | None:
    match = ORDER_ID.search(text)
    return match[0].upper() if match else None


def decide_intent(questions: Sequence[str]) -> str:
    """The intent of a customer's last question: "refund", "parcel", "order" or "help".

    A question about the customer's own order has an order number or says "my order"; all other questions are for the
    help text. A message with nothing but a number continues the question before it.
    """
    question = questions[-1]
    has_order_id = find_order_id(question) is not None
    topic = _topic(question)
    if topic is None and has_order_id:
        return next(filter(None, map(_topic, reversed(questions[:-1]))), "order")
    own_matter = has_order_id or OWN_MATTER.search(question)
    return topic if topic and own_matter else "help"


def _topic(question: str) -> str | None:
    words = {*terms(question)}
    hits = {intent: len(words & cues) for intent, cues in CUES.items()}
    best = max(hits, key=lambda intent: hits[intent])
    return best if hits[best] else None


# --- answers ---

TEMPLATES = {
    "help": "{passage}",
    "not_found": "Sorry, I found nothing about that.",
    "ask_order_id": "I will gladly look into that. What is the number of the order? It starts with LL.",
    "unknown_order": "I cannot find an order {order_id}. Please check the number in your confirmation e-mail.",
    "order_status": "Your order {order_id} ({item}, {price_eur:.2f} euros) is {status}. Delivery day: {delivery_day}.",
    "parcel_found": "The parcel with your {item} (order {order_id}) is {place}. Delivery day: {delivery_day}.",
    "parcel_not_scanned": "The carrier cannot tell us the place of your parcel just now. Order {order_id} is {status}. "
    "Delivery day: {delivery_day}.",
    "refund_created": "Done: refund {refund_id} over {amount_eur:.2f} euros for your {item} is on its way.",
    "refund_refused": "I cannot refund your {item}: {obstacle}.",
    "apology": "I apologise: one of our systems does not answer at the moment, so I cannot help you with this now. "
    "Please try again later.",
}
UNHELPFUL = ("not_found", "apology")


@dataclass(frozen=True)
class Reply:
    """An answer, the intent it was given for, and whether it answers the question."""

    text: str
    intent: str
    helpful: bool


def count_tokens(text: str) -> int:
    """The number of words and punctuation marks, for which the template writer is billed."""
    return len(re.findall(r"\w+|[^\w\s]", text))


class SupportAgent:
    """Answers the customers of `shop`, with at most `sections` sections of the help text per question."""

    def __init__(self, shop: Shop, index: HelpIndex, sections: int, tracer: Tracer) -> None:
        self.shop = shop
        self.index = index
        self.sections = sections
        self.tracer = tracer

    def answer(self, messages: Sequence[Message]) -> Reply:
        """The reply to a conversation whose last message is the customer's."""
        questions = [message["content"] for message in messages if message["role"] == "user"]
        with self.tracer.span("support_agent", "AGENT", {"messages": list(messages)}) as span:
            sections = self._retrieve(questions[-1])
            intent = decide_intent(questions)
            span.attributes["intent"] = intent
            try:
                template, facts = self._handle(intent, questions, sections)
            except ServiceUnavailable as error:
                span.fail(error)
                template, facts = "apology", {"error": str(error)}
            text = self._write(messages, template, facts)
            span.outputs = {"messages": [{"role": "assistant", "content": text}]}
        return Reply(text, intent, template not in UNHELPFUL)

    def _retrieve(self, question: str) -> list[Section]:
        with self.tracer.span("search_help", "RETRIEVER", {"query": question}) as span:
            found = self.index.search(question, self.sections)
            span.outputs = [
                {
                    "page_content": f"{section.title}: {section.text}",
                    "metadata": {"doc_uri": f"help.md#{section.anchor}", "score": round(score, 3)},
                    "id": section.anchor,
                }
                for section, score in found
            ]
        return [section for section, _ in found]

    def _handle(self, intent: str, questions: Sequence[str], sections: Sequence[Section]) -> tuple[str, dict[str, Any]]:
        """The matching template and its values, from tools if the intent needs them."""
        if intent == "help":
            if not sections:
                return "not_found", {}
            return "help", {"passage": self.index.passage(questions[-1], sections)}
        order_id = next(filter(None, map(find_order_id, reversed(questions))), None)
        if order_id is None:
            return "ask_order_id", {}
        try:
            order = self._call(self.shop.lookup_order, order_id=order_id)
        except UnknownOrder:
            return "unknown_order", {"order_id": order_id}
        if intent == "refund":
            return self._refund(order, questions)
        if intent == "parcel":
            return self._track(order)
        return "order_status", order

    def _refund(self, order: dict[str, Any], questions: Sequence[str]) -> tuple[str, dict[str, Any]]:
        faulty = {*terms("broken damaged faulty cracked")} & {*terms(" ".join(questions))}
        reason = "faulty" if faulty else "not wanted"
        refund = self._call(self.shop.create_refund, order_id=order["order_id"], reason=reason)
        return ("refund_refused" if "obstacle" in refund else "refund_created"), order | refund

    def _track(self, order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            parcel = self._call(self.shop.track_parcel, order_id=order["order_id"])
        except ServiceUnavailable:
            return "parcel_not_scanned", order
        return "parcel_found", order | parcel

    def _call(self, tool: Callable[..., dict[str, Any]], **arguments: str) -> dict[str, Any]:
        with self.tracer.span(tool.__name__, "TOOL", arguments) as span:
            result = tool(**arguments)
            span.outputs = result
        return result

    def _write(self, messages: Sequence[Message], template: str, values: dict[str, Any]) -> str:
        instruction = f"Fill in this template: {TEMPLATES[template]}\nValues: {json.dumps(values)}"
        prompt = [{"role": "system", "content": instruction}, *messages]
        with self.tracer.span("write_answer", "CHAT_MODEL", {"messages": prompt}) as span:
            text = TEMPLATES[template].format(**values)
            span.outputs = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            span.attributes |= _billing(sum(count_tokens(message["content"]) for message in prompt), count_tokens(text))
        return text


def _billing(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The model, token usage and cost (USD) of a call, as span attributes that MLflow reads."""
    input_cost = input_tokens * INPUT_USD_PER_TOKEN
    output_cost = output_tokens * OUTPUT_USD_PER_TOKEN
    return {
        "mlflow.llm.model": MODEL,
        "mlflow.llm.provider": MODEL_PROVIDER,
        "mlflow.chat.tokenUsage": {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
        "mlflow.llm.cost": {
            "input_cost": input_cost,
            "output_cost": output_cost,
            "total_cost": input_cost + output_cost,
        },
    }
