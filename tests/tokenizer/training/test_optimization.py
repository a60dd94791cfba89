import pytest

from coda.tokenizer.training.optimization import learning_rate


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_learning_rate_warms_up_then_decays(floor: float) -> None:
    rates = [learning_rate(step, 100, 1.0, warmup=10, floor=floor) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[99] < 0.02
    assert rates[100] == pytest.approx(floor)
    assert [learning_rate(step, 100, 1.0, 10, "constant") for step in (10, 99)] == [1, 1]
