"""Streaming moments equal those of all rows at once, however the stream is cut."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.activations import MomentAccumulator


def of(rows: torch.Tensor):
    accumulator = MomentAccumulator()
    accumulator.update(rows)
    return accumulator.result()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1e4, -1e6]),
)
def test_a_stream_in_batches_equals_one_batch(sizes: list[int], seed: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 2, 3, generator=generator, dtype=torch.float64) + offset
    streamed, left, right = MomentAccumulator(), MomentAccumulator(), MomentAccumulator()
    for number, batch in enumerate(rows.split(sizes)):
        streamed.update(batch)
        (left if number % 2 else right).update(batch)
    merged = MomentAccumulator()
    for part in (left, right):
        if part.result().count:
            merged.merge(part.result())
    if len(rows) == 0:
        assert streamed.result().count == 0
        return
    for found in (streamed.result(), merged.result()):
        assert found.count == len(rows)
        torch.testing.assert_close(found.mean, rows.mean(dim=0), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(found.variance, rows.var(dim=0, correction=0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.second_moment, rows.square().mean(dim=0), rtol=1e-9, atol=1e-9)


def test_variance_survives_a_huge_mean_in_half_precision() -> None:
    rows = (torch.randn(512, 4, generator=torch.Generator().manual_seed(0)) + 1000).bfloat16()
    torch.testing.assert_close(of(rows).variance, rows.double().var(dim=0, correction=0))


def test_results_are_fp64_on_the_cpu() -> None:
    found = of(torch.ones(3, 2, dtype=torch.bfloat16))
    assert found.mean.dtype == found.deviations.dtype == torch.float64
    assert found.deviations.abs().max() == 0
