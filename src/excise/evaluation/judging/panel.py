"""Many questions to a judge at once: none is lost, none is paid for twice, and what fails is unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from excise.behaviors.measures import Label
from excise.errors import ScorerError
from excise.evaluation.judging.cache import Kept, VerdictCache
from excise.evaluation.judging.client import AskError, Client, Reply, UnreachableError
from excise.evaluation.judging.endpoint import URL
from excise.evaluation.judging.question import label_in
from excise.progress import Progress, silent

Chat = Sequence[Mapping[str, str]]
_READINGS = 2  # how often a judge is asked whose answer holds no label
UNREADABLE = "no label in the reply"


@dataclass(frozen=True)
class Opinion:
    """What a judge said of one response.

    label    None where it said nothing that can be read, or could not be asked
    failure  why there is no label; empty where there is one
    kept     whether it came from the cache
    cost     in the currency of the prices; None where none are known
    """

    label: Label | None
    failure: str = ""
    kept: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


def judge_all(
    client: Client, chats: Sequence[Chat], *, cache: VerdictCache, progress: Progress = silent
) -> tuple[Opinion, ...]:
    """One opinion per chat, in their order.

    Equal chats are asked about once. Every label is in the cache as soon as it is there, so that a call that was
    stopped goes on where it was; failures are not kept, and are asked about again next time. Raises `ScorerError` for
    a judge that nobody could reach, or that accepts no question at all (see `Client.ask`), `DiskFullError`.
    """
    keys = [cache.key(client.endpoint, chat) for chat in chats]
    questions = dict(zip(keys, chats, strict=True))
    found = {key: _remembered(kept) for key in questions if (kept := cache.get(key)) is not None}
    waiting = [key for key in questions if key not in found]
    pool = ThreadPoolExecutor(max_workers=client.endpoint.concurrency, thread_name_prefix="judge")
    try:
        under_way: dict[Future[Opinion], str] = {pool.submit(_opinion, client, questions[key]): key for key in waiting}
        while under_way:
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                key = under_way.pop(future)
                found[key] = _taken(future, client, found.values())
                _keep(cache, key, found[key])
                progress("judge", len(found), len(questions), "answers")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    counted: set[str] = set()
    opinions = []
    for key in keys:
        opinions.append(_again(found[key]) if key in counted else found[key])
        counted.add(key)
    return tuple(opinions)


def failures(opinions: Sequence[Opinion]) -> dict[str, int]:
    """How many responses are unknown for each reason."""
    return dict(Counter(opinion.failure for opinion in opinions if opinion.label is None).most_common())


def _taken(future: Future[Opinion], client: Client, before: Iterable[Opinion]) -> Opinion:
    try:
        return future.result()
    except UnreachableError as error:
        if not any(opinion.label is not None and not opinion.kept for opinion in before):
            raise ScorerError(
                f"nobody answers at {client.endpoint.url} ({error})",
                hint=f"check {URL}, and that the server runs; answers so far are kept",
            ) from error
        return Opinion(None, str(error))


def _opinion(client: Client, chat: Chat) -> Opinion:
    """Asks, and asks once more where the answer cannot be read; what both took is counted."""
    replies: list[Reply] = []
    failure = UNREADABLE
    label: Label | None = None
    while label is None and len(replies) < _READINGS:
        try:
            replies.append(client.ask(chat))
        except UnreachableError:
            raise
        except AskError as error:
            failure = str(error)
            break
        label = label_in(replies[-1].text)
    costs = [reply.cost for reply in replies if reply.cost is not None]
    return Opinion(
        label,
        "" if label is not None else failure,
        False,
        sum(reply.prompt_tokens for reply in replies),
        sum(reply.completion_tokens for reply in replies),
        sum(costs) if costs else None,
    )


def _remembered(kept: Kept) -> Opinion:
    return Opinion(kept.label, "", True, kept.prompt_tokens, kept.completion_tokens, kept.cost)


def _again(opinion: Opinion) -> Opinion:
    """The opinion on a response that another one of this call is equal to: it took nothing more."""
    return Opinion(opinion.label, opinion.failure, opinion.label is not None)


def _keep(cache: VerdictCache, key: str, opinion: Opinion) -> None:
    if opinion.label is not None:
        cache.put(key, Kept(opinion.label, opinion.prompt_tokens, opinion.completion_tokens, opinion.cost))
