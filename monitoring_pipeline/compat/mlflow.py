"""Private parts of MLflow. Imports are inside functions, because MLflow takes a second to load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol


class Send(Protocol):
    """Sends a judge's request to its model and returns the response."""

    def __call__(
        self, endpoint: str, headers: dict[str, str], payload: dict[str, Any], num_retries: int
    ) -> dict[str, Any]: ...


Parse = Callable[[dict[str, Any], Any], tuple[Any, dict[str, Any]]]


class JudgeRequests(NamedTuple):
    """The two functions that MLflow's judges use for each request: one sends it, one parses the response."""

    send: Send
    parse: Parse


def replace_judge_requests(replacement: Callable[[JudgeRequests], JudgeRequests]) -> None:
    """Replace MLflow's functions with the result of `replacement`, permanently in this process."""
    from mlflow.genai.judges.adapters import gateway_adapter

    own = JudgeRequests(gateway_adapter.send_chat_request, gateway_adapter._parse_response_message)  # pyright: ignore
    new = replacement(own)
    gateway_adapter.send_chat_request = new.send  # pyright: ignore[reportPrivateImportUsage]
    gateway_adapter._parse_response_message = new.parse


def tracking_uri_within(uri: str) -> AbstractContextManager[None]:
    """Set MLflow's global tracking URI to `uri` within the block."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    return _use_tracking_uri(uri)


@contextmanager
def same_registry() -> Iterator[None]:
    """Restore the process's model registry after the block."""
    from mlflow.environment_variables import MLFLOW_REGISTRY_URI
    from mlflow.tracking._model_registry import utils

    earlier, variable = utils._registry_uri, os.environ.get(MLFLOW_REGISTRY_URI.name)
    try:
        yield
    finally:
        utils._registry_uri = earlier
        os.environ.pop(MLFLOW_REGISTRY_URI.name, None)
        if variable is not None:
            os.environ[MLFLOW_REGISTRY_URI.name] = variable


def bundled_prices(model: str) -> dict[str, Any] | None:
    """Return the entry of a model (`openai:/gpt-4.1`) in MLflow's bundled price list; None if that is not a model.

    Returns {} if the list lacks the model. MLflow's public look-up would first download a newer list.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.metrics.genai.model_utils import _parse_model_uri
    from mlflow.utils.providers import _load_bundled_provider

    try:
        provider, name = _parse_model_uri(model)
    except MlflowException:
        return None
    return dict(_load_bundled_provider(provider).get(name.split("/", 1)[-1], {}))


def token_prices(provider: str | None, model: str) -> tuple[float, float, float, float] | None:
    """Dollars for an input token, an output token, a cached input token and one written to the cache.

    From the list that MLflow brings; None if the model is not in it.
    """
    # Otherwise MLflow asks the internet for a newer list.
    os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
    from mlflow.utils.providers import cost_per_token

    def price(**tokens: int) -> float | None:
        for hint in dict.fromkeys((provider and provider.lower(), None)):
            if (cost := cost_per_token(model, custom_llm_provider=hint, **tokens)) is not None:
                return sum(cost)
        return None

    prices = (
        price(prompt_tokens=1),
        price(completion_tokens=1),
        price(prompt_tokens=1, cache_read_input_tokens=1),
        price(prompt_tokens=1, cache_creation_input_tokens=1),
    )
    return None if None in prices else prices  # type: ignore[return-value]
