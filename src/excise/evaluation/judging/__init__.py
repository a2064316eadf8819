"""Asking a model behind an OpenAI-compatible endpoint what a response is."""

from excise.evaluation.judging.cache import VerdictCache
from excise.evaluation.judging.client import Client, Reply
from excise.evaluation.judging.endpoint import Endpoint
from excise.evaluation.judging.panel import Opinion, judge_all
from excise.evaluation.judging.question import label_in, messages, schema

__all__ = [
    "Client",
    "Endpoint",
    "Opinion",
    "Reply",
    "VerdictCache",
    "judge_all",
    "label_in",
    "messages",
    "schema",
]
