from collections.abc import Callable
from typing import Any

import pytest
import torch

from coda.tokenizer import ContinuousVAE, ResidualQuantizer
from coda.tokenizer.training.trainable_tokenizer import TrainableTokenizer
from coda.tokenizer.vae.acceleration import checkpoint_decoder, compile_autoencoder
from coda.tokenizer.vae.lora import add_lora


def make(small_autoencoder: Callable[..., Any], kind: str, images: torch.Tensor) -> TrainableTokenizer:
    torch.manual_seed(0)
    vae = ContinuousVAE(small_autoencoder(kind), [0.0], [1.0])
    quantizer = ResidualQuantizer(vae.latent_channels, 16, [1, vae.encode(images).shape[-1]])
    add_lora(vae, 2)
    return TrainableTokenizer(vae, quantizer)


def train_step(tokenizer: TrainableTokenizer, images: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Everything that a step computes, and how many numbers the decoder keeps for the backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = tokenizer(images)
    reconstruction = (output.reconstructions - images).square().mean()
    adversarial = output.reconstructions.sin().mean()
    weight = tokenizer.adaptive_weight(reconstruction, adversarial)
    (reconstruction + weight * adversarial + output.quantization_loss).backward()
    gradients = [p.grad for p in tokenizer.parameters() if p.requires_grad and p.grad is not None]
    return [output.reconstructions.detach(), weight, *gradients], kept


def test_checkpointing_keeps_less_and_changes_nothing(
    kind: str, small_autoencoder: Callable[..., Any], images: torch.Tensor
) -> None:
    plain, checkpointed = (make(small_autoencoder, kind, images) for _ in range(2))
    checkpoint_decoder(checkpointed.vae)
    (expected, before), (found, after) = (train_step(each, images) for each in (plain, checkpointed))
    assert len(found) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert after < before
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "backend"),
    [("AutoencoderTiny", "eager"), pytest.param("AutoencoderKL", "aot_eager", marks=pytest.mark.slow)],
    indirect=["kind"],
)
def test_a_compiled_autoencoder_gives_the_same_step(
    kind: str, backend: str, small_autoencoder: Callable[..., Any], images: torch.Tensor
) -> None:
    plain, compiled = (make(small_autoencoder, kind, images) for _ in range(2))
    checkpoint_decoder(compiled.vae)
    compile_autoencoder(compiled.vae, backend)
    found, expected = train_step(compiled, images)[0], train_step(plain, images)[0]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
