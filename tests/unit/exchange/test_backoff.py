from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode.node.exchange import Backoff


class _Highest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bound_doubles_up_to_the_cap():
    backoff = Backoff(base=0.1, cap=1.0, rng=_Highest())
    assert [backoff.next() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_reset_starts_over():
    backoff = Backoff(rng=_Highest())
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == pytest.approx(0.1)


@given(st.integers(), st.integers(1, 40))
def test_jitter_is_full_and_repeatable(seed, tries):
    one, two = (Backoff(rng=random.Random(seed)) for _ in range(2))
    waits = [one.next() for _ in range(tries)]
    assert waits == [two.next() for _ in range(tries)]
    assert all(0 <= wait <= min(0.1 * 2**n, 10.0) for n, wait in enumerate(waits))


def test_two_that_fail_together_do_not_come_back_together():
    waits = {round(Backoff(rng=random.Random(seed)).next(), 6) for seed in range(50)}
    assert len(waits) > 40


def test_a_retry_after_is_honoured_up_to_the_cap():
    assert 3.0 <= Backoff(rng=random.Random(1)).next(at_least=3.0) <= 3.1
    assert 10.0 <= Backoff(rng=random.Random(1)).next(at_least=1e9) <= 10.1


@pytest.mark.parametrize(("base", "cap"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_nonsense_bounds_are_refused(base, cap):
    with pytest.raises(ValueError, match="base"):
        Backoff(base=base, cap=cap)
