"""Threads for baking: one tensor per thread, each computed on one core, so that reading, maths and writing overlap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread_each() -> Iterator[None]:
    """PyTorch computes on the calling thread alone inside the block; the setting is put back afterwards.

    Baking works on small blocks, where PyTorch's own threads cost more than they bring; and results then do not depend
    on the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting tasks are dropped when the block ends with an exception."""
    with one_thread_each():
        # The number of threads is a setting of each thread: a new one begins with the default.
        pool = ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 1)), initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
