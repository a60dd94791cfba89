import pytest
import torch

from coda.tokenizer import CodaError
from coda.tokenizer.training.optimization import check_finite, learning_rate


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_learning_rate_warms_up_then_decays(floor: float) -> None:
    rates = [learning_rate(step, 100, 1.0, warmup=10, floor=floor) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[99] < 0.02
    assert rates[100] == pytest.approx(floor)
    assert [learning_rate(step, 100, 1.0, 10, "constant") for step in (10, 99)] == [1, 1]


def test_a_diverged_training_is_reported_by_loss_and_gradient() -> None:
    assert check_finite(3, loss=torch.tensor(0.5)) == {"loss": 0.5}
    for loss, gradient in ((float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(CodaError, match=r"the (loss is nan|gradient is inf) at step 3: .* diverged"):
            check_finite(3, loss=torch.tensor(loss), gradient=torch.tensor(gradient))
