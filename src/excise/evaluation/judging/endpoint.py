"""Which judge is asked, and how patiently: from environment variables, so that no key is in a file or a command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from excise.errors import InputError

URL, MODEL, KEY, PRICE = "EXCISE_JUDGE_URL", "EXCISE_JUDGE_MODEL", "EXCISE_JUDGE_KEY", "EXCISE_JUDGE_PRICE"
_HINT = f"set {URL} to the base of an OpenAI-compatible API (it ends in /v1), {MODEL}, and {KEY} where it wants a key"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint.

    url          its base, such as `http://localhost:8000/v1`
    model        as the endpoint calls it
    key          sent as a bearer token; None sends none
    prices       of a million prompt and completion tokens, in whatever currency; None: unknown
    timeout      seconds for one request
    attempts     how often one question is asked at most, where the network or the server fails
    backoff      seconds before the second attempt; doubled for each further one, unless the server says how long
    longest_wait seconds; a server that asks for more is not waited for any longer
    concurrency  questions under way at a time
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    prices: tuple[float, float] | None = None
    timeout: float = 120.0
    attempts: int = 6
    backoff: float = 1.0
    longest_wait: float = 60.0
    concurrency: int = 8

    @classmethod
    def from_environment(cls, model: str = "", *, environment: Mapping[str, str] | None = None) -> Endpoint:
        """The endpoint that the environment names; `model` goes before its variable. Raises `InputError`."""
        found = os.environ if environment is None else environment
        url, named = found.get(URL, "").rstrip("/"), model or found.get(MODEL, "")
        if not url or not named:
            raise InputError(f"no judge to ask: {URL if not url else MODEL} is not set", hint=_HINT)
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{URL} is no http address", hint=_HINT)
        return cls(url=url, model=named, key=found.get(KEY) or None, prices=_prices(found.get(PRICE, "")))


def _prices(text: str) -> tuple[float, float] | None:
    if not text.strip():
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{PRICE} is '{text}'", hint="give the prices of a million prompt and completion tokens: 0.15,0.6"
        ) from error
    return prompt, completion
