"""A scorer of every kind that can be configured, and some that cannot."""

from __future__ import annotations

import functools
from typing import Any

from mlflow.entities import Trace
from mlflow.genai.judges import make_judge
from mlflow.genai.scorers import RegexMatch, RelevanceToQuery, ResponseLength, Scorer, make_scorer_ensemble, scorer

MODEL = "openai:/gpt-4o-mini"
POLITE = "Is {{ outputs }} polite?"


@scorer
def characters(outputs: Any, least: int = 0, words: tuple[str, ...] = ()) -> bool:
    return len(str(outputs)) >= least and all(word in str(outputs) for word in words)


def at_least(least: int, words: frozenset[str] = frozenset()) -> Scorer:
    @scorer
    def long_enough(outputs: Any) -> bool:
        return len(str(outputs)) >= least and all(word in str(outputs) for word in words)

    return long_enough


at_least_10 = at_least(10)
at_least_200 = at_least(200)
with_words = at_least(0, frozenset({"flight", "refund", "booking", "passenger"}))


class Keyword(Scorer):
    """A scorer written as a class."""

    word: str = "flight"

    def __call__(self, *, outputs: Any) -> bool:  # type: ignore[override]
        return self.word in str(outputs)


flight = Keyword(name="keyword")
hotel = Keyword(name="keyword", word="hotel")

order_number = RegexMatch(pattern=r"#W\d{7}")  # type: ignore[call-arg]
any_number = RegexMatch(pattern=r"\d")  # type: ignore[call-arg]
short = ResponseLength(max_length=100)  # type: ignore[call-arg]
long = ResponseLength(max_length=1000)  # type: ignore[call-arg]

relevance = RelevanceToQuery(model=MODEL)
relevance_by_another_model = RelevanceToQuery(model="openai:/gpt-4o")
polite = make_judge(name="polite", instructions=POLITE, model=MODEL)
polite_by_another_model = make_judge(name="polite", instructions=POLITE, model="openai:/gpt-4o")
polite_by_another_prompt = make_judge(name="polite", instructions=POLITE + " Be strict.", model=MODEL)
polite_at_a_temperature = make_judge(
    name="polite", instructions=POLITE, model=MODEL, inference_params={"temperature": 1.0}
)
polite_or_not = make_judge(name="polite", instructions=POLITE, model=MODEL, feedback_value_type=bool)

both_words = make_scorer_ensemble(name="both", scorers=[flight, hotel], ensemble_fn="agg_all")
either_word = make_scorer_ensemble(name="both", scorers=[flight, hotel], ensemble_fn="agg_any")
one_word_twice = make_scorer_ensemble(name="both", scorers=[flight, flight], ensemble_fn="agg_all")


@scorer
def whole_session(session: list[Trace]) -> int:
    return len(session)


def undecorated(outputs: Any) -> bool:
    return bool(outputs)


without_source = scorer(functools.partial(undecorated), name="without_source")
