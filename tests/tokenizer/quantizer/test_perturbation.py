import pytest
import torch

from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor
from coda.tokenizer.quantizer.perturbation import perturb_codes
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer


@pytest.fixture
def quantizer():
    quantizer = ResidualQuantizer(4, 64, (1, 4), attention_dim=8, norm="rms_norm")
    initialize_nearest_neighbor(quantizer, torch.randn(64, 4))
    return quantizer


def test_the_share_asked_for_is_replaced_by_near_codes(quantizer):
    codes = torch.randint(64, (200, 17))
    perturbed = perturb_codes(quantizer, codes, 0.25, step_generator(0, 0))
    replaced = perturbed != codes
    assert float(replaced.double().mean()) == pytest.approx(0.25, abs=0.03)
    values = quantizer.value_table()
    ranks = torch.cdist(values, values).argsort(dim=1).argsort(dim=1)[codes[replaced], perturbed[replaced]]
    assert ranks.min() >= 1 and (ranks <= 8).double().mean() > 0.99
    assert len(ranks.unique()) >= 8


def test_a_step_decides_and_processes_share_its_draws(quantizer):
    codes = torch.randint(64, (6, 17))
    first, again, other = (perturb_codes(quantizer, codes, 0.5, step_generator(3, step)) for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for rank in range(2):
        part = perturb_codes(quantizer, codes[rank::2], 0.5, step_generator(3, 1), (rank, 2))
        assert torch.equal(part, first[rank::2])
    assert torch.equal(perturb_codes(quantizer, codes, 0.0, step_generator(3, 1)), codes)
