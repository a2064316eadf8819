"""One question to an OpenAI-compatible endpoint: asked again where that may help, given up where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx2

from excise.errors import ScorerError
from excise.evaluation.judging.endpoint import KEY, Endpoint

_AGAIN = frozenset({408, 409, 425, 429})
_MAX_TOKENS = 1024  # a judge may think before it says one word


class AskError(Exception):
    """A question that got no answer; the message is its reason in a few words."""


class UnreachableError(AskError):
    """Nobody listens there."""


@dataclass(frozen=True)
class Reply:
    """What came back; tokens are 0 and the cost None where the endpoint does not say."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class Client:
    """Keeps connections to an endpoint, for any number of threads; use it as a context manager.

    What an endpoint turns down as unknown to it (a JSON schema, a temperature, the name of the token limit) is left out
    or renamed from then on.

    pause      waits for so many seconds; tests need not
    transport  None: the network
    """

    def __init__(
        self,
        endpoint: Endpoint,
        schema: Mapping[str, Any],
        *,
        pause: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._pause = pause
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        limits = httpx2.Limits(max_connections=endpoint.concurrency)
        self._http = httpx2.Client(headers=headers, timeout=endpoint.timeout, limits=limits, transport=transport)
        form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": dict(schema)}}
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": _MAX_TOKENS, "response_format": form}

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The answer to one chat.

        Timeouts, cut connections, malformed replies, 429 and 5xx are tried again, after as long as the server says, or
        ever longer. Raises `AskError` when all attempts are used up or trying again is of no use, `ScorerError` for a
        key that is refused or a model that is not there: no other question would fare better.
        """
        reason, unreachable = "no attempt", False
        for attempt in range(self.endpoint.attempts):
            options = dict(self._options)
            body = {"model": self.endpoint.model, "messages": [dict(message) for message in messages], **options}
            wait = self.endpoint.backoff * 2**attempt
            try:
                response = self._http.post(f"{self.endpoint.url}/chat/completions", json=body)
            except httpx2.TransportError as error:
                reason, unreachable = _told(error), isinstance(error, httpx2.ConnectError)
            else:
                unreachable = False
                reply = _read(response) if response.is_success else None
                if reply is not None:
                    return self._priced(reply)
                reason = f"HTTP {response.status_code}" if not response.is_success else "malformed reply"
                self._refuse_hopeless(response)
                if self._adapted(response, options):
                    continue
                if not response.is_success and response.status_code not in _AGAIN and response.status_code < 500:
                    raise AskError(reason)
                wait = _asked_to_wait(response) or wait
            if attempt + 1 < self.endpoint.attempts:
                self._pause(min(wait, self.endpoint.longest_wait))
        raise (UnreachableError if unreachable else AskError)(reason)

    def _priced(self, reply: Reply) -> Reply:
        if reply.cost is not None or self.endpoint.prices is None:
            return reply
        prompt, completion = self.endpoint.prices
        cost = (reply.prompt_tokens * prompt + reply.completion_tokens * completion) / 1e6
        return replace(reply, cost=cost)

    def _refuse_hopeless(self, response: httpx2.Response) -> None:
        where = f"the judge at {self.endpoint.url}"
        if response.status_code == 401:
            raise ScorerError(f"{where} does not accept the key (HTTP 401)", hint=f"set {KEY}; answers so far are kept")
        if response.status_code == 404:
            raise ScorerError(
                f"{where} knows no model '{self.endpoint.model}', or is no chat endpoint (HTTP 404)",
                hint="check the model's name, and that the address ends where /chat/completions begins",
            )

    def _adapted(self, response: httpx2.Response, sent: Mapping[str, Any]) -> bool:
        """Whether the endpoint turned an option down, so that asking without it is worth an attempt."""
        if response.status_code not in (400, 415, 422, 501):
            return False
        said = response.text.lower()
        if "response_format" in sent and any(word in said for word in ("response_format", "json_schema", "schema")):
            self._options.pop("response_format", None)
        elif "max_tokens" in sent and "max_tokens" in said:
            limit = self._options.pop("max_tokens", None)
            if limit is not None:
                self._options["max_completion_tokens"] = limit
        elif "temperature" in sent and "temperature" in said:
            self._options.pop("temperature", None)
        else:
            return False
        return True

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()


def _read(response: httpx2.Response) -> Reply | None:
    """What a response says; None where it is not what such an endpoint answers."""
    try:
        content: Any = response.json()
        text = content["choices"][0]["message"]["content"] or ""
        usage = content.get("usage") or {}
        prompt, completion = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        cost = usage.get("cost")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return Reply(str(text), prompt, completion, float(cost) if isinstance(cost, int | float) else None)


def _told(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "timeout"
    return "no connection" if isinstance(error, httpx2.ConnectError) else "connection cut"


def _asked_to_wait(response: httpx2.Response) -> float | None:
    """Seconds, from Retry-After: a number or a date (RFC 9110, section 10.2.3)."""
    said = response.headers.get("Retry-After", "").strip()
    if not said:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
