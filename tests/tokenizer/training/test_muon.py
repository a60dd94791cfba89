import pytest
import torch
from torch import nn

from coda.tokenizer.training.muon import Muon, orthogonalize
from coda.tokenizer.training.optimization import OptimizerWithEMA


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_orthogonalize_moves_singular_values_near_one(shape):
    left, values, right = torch.linalg.svd(normal(3, *shape), full_matrices=False)
    found = orthogonalize((left * torch.linspace(0.05, 3, values.shape[1])) @ right)
    moved = left.mT @ found @ right.mT  # the singular vectors stay
    diagonal = moved.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    torch.testing.assert_close(moved - diagonal.diag_embed(), torch.zeros_like(moved), atol=1e-4, rtol=0)


def test_orthogonalize_leaves_zero_at_zero():
    assert not orthogonalize(torch.zeros(2, 3, 5)).any()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_it_updates_matrices_as_torchs_muon(shape):
    ours, theirs = nn.Parameter(normal(*shape)), nn.Parameter(normal(*shape))
    one = Muon([ours], weight_decay=0.1, dtype=torch.bfloat16)
    other = torch.optim.Muon([theirs], lr=0.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad, theirs.grad = normal(*shape, seed=step + 1), normal(*shape, seed=step + 1)
        for optimizer in (one, other):
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_matrices_of_one_shape_are_updated_as_each_alone(device):
    together = [nn.Parameter(normal(6, 4, seed=seed).to(device)) for seed in range(3)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizers = [Muon(together), *(Muon([parameter]) for parameter in alone)]
    for step in range(2):
        for number, parameters in enumerate(zip(together, alone, strict=True)):
            for parameter in parameters:
                parameter.grad = normal(6, 4, seed=10 * step + number).to(device)
        together[1].grad = alone[1].grad = None
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(together[1], normal(6, 4, seed=1).to(device))


def test_a_convolution_counts_as_a_matrix_in_every_memory_format():
    gradient = normal(6, 4, 3, 3, seed=1)
    found = []
    for weight in (normal(6, 4, 3, 3), normal(6, 4, 3, 3).to(memory_format=torch.channels_last), normal(6, 36)):
        parameter = nn.Parameter(weight if weight.ndim == 4 else normal(6, 4, 3, 3).flatten(1))
        parameter.grad = gradient.reshape(parameter.shape)
        optimizer = Muon([parameter])
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        found.append(parameter.detach().reshape(6, 36))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.patches = nn.Conv2d(4, 3, 1)
        self.conv = nn.Conv2d(3, 3, 3)


def test_muon_trains_hidden_weights_and_adamw_the_rest():
    model = Small()
    optimizer = OptimizerWithEMA(model, (0.9, 0.99), 0.9, optimizer="muon")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-3)
    by_muon = {name for name in optimizer.state_tensors("x") if name.startswith("x.momentum.")}
    assert by_muon == {"x.momentum.hidden.weight", "x.momentum.conv.weight"}
    by_adamw = {name.removeprefix("x.exp_avg.") for name in optimizer.state_tensors("x") if ".exp_avg." in name}
    assert by_adamw == {"embedding.weight", "hidden.bias", "patches.weight", "patches.bias", "conv.bias"}
