"""Adapt a continuous VAE into a discrete tokenizer: the training of the paper (Sections 3.2 to 3.4).

The codebook comes first: residual k-means on the VAE's latents, and a quantizer set to retrieve the nearest code. Then
quantizer and LoRA are trained together, through one module that encodes, quantizes and decodes, on L1 + L2 + perceptual
distance + the quantizer's own two losses and, if asked for, a discriminator's.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict
from torch import nn

from .determinism import derived_seed, step_generator
from .discriminator import PatchDiscriminator
from .durable import save_tensors
from .errors import CodaError
from .images import ImageBatch, ImageSource, decode_image, image_batches, open_images, training_batches
from .images.source import BrokenImage
from .kmeans import residual_kmeans, start_from_codebook
from .layout import CodeLayout, default_sides
from .lora import add_lora, merge_lora
from .losses import adaptive_weight, hinge_discriminator_loss, hinge_generator_loss, reconstruction_loss
from .perceptual import LiteFeatures
from .progress import note, progress
from .quantizer import ResidualQuantizer
from .run_directory import RunDirectory
from .tokenizer import CodaTokenizer
from .training_state import TrainedParameters, finite, learning_rate, process_of, start_accelerator
from .vae import ContinuousVAE, load_vae, measure_normalisation

_LARGEST_DEFAULT_SIZE = 256
_VECTORS_PER_CODE = 128  # what the images for k-means give, unless their number is asked for
_STATISTICS_IMAGES = 1024
_LOG_EVERY = 10  # steps
_LARGEST_GRADIENT = 1.0


def adapt(
    vae: str | Path | ContinuousVAE,
    data: str | Path | ImageSource,
    out: str | Path = "runs/tokenizer",
    size: int | tuple[int, int] | None = None,
    sides: Sequence[int | Sequence[int]] | None = None,
    codebook_size: int = 4096,
    attention_dim: int | None = None,
    norm: str = "rms_norm",
    lora_rank: int = 32,
    steps: int = 500,
    batch_size: int = 16,
    lr: float = 5e-4,
    warmup: int = 50,
    kmeans_images: int | None = None,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    perceptual_weight: float = 0.5,
    entropy_weight: float = 0.05,
    adversarial_weight: float = 0.0,
    adversarial_start: int = 0,
    ema_decay: float = 0.995,
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: int = 100,
) -> Path:
    """Make a tokenizer of a VAE; the same call again goes on where an interrupted one stopped.

    Args:
        vae: What `load_vae` takes, or a loaded VAE (which is left as it is).
        data: Images, as `open_images` takes them.
        out: Directory of the tokenizer.
        size: Pixels, one number or (height, width); if None, the short side of the first image, 256 at most.
        sides: Grids of the levels, the last being the latent's own; `default_sides` if None.
        codebook_size: K.
        attention_dim: Width of the retrieval's attention; twice the latent's channels if None.
        norm: Of queries and keys, "rms_norm" or "layer_norm".
        lora_rank: Of the VAE's adaptation; 0 leaves the VAE as it is.
        steps: Steps of the optimizer; 0 keeps the start from k-means.
        batch_size: Images per step, of all processes together.
        lr: Highest learning rate (AdamW, betas 0.5 and 0.9 as published); linear warm-up, cosine down to 0.
        warmup: Steps of the warm-up.
        kmeans_images: Images for the codebook's start; if None, as many as give 128 vectors per code.
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the distance in EfficientNet-Lite0's feature maps.
        entropy_weight: Weight of the quantizer's entropy loss.
        adversarial_weight: Weight of a patch discriminator's loss, times the adaptive weight; 0 trains without one.
        adversarial_start: First step at which there is a discriminator.
        ema_decay: Of the moving average of what is trained, which is what is kept.
        workers: Processes that load images.
        seed: Of every random choice.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: "auto", "float32" or "bfloat16" (mixed precision; the quantizer stays in float32).
        overwrite: Start anew over what `out` holds.
        strict: Stop at the first image that cannot be read, instead of drawing another.
        checkpoint_every: Steps between checkpoints.

    Returns:
        `out`, which `CodaTokenizer.from_pretrained` reads. Beside the tokenizer, `lora/` keeps the adapter by itself.

    Raises:
        CodaError: The arguments, the VAE, the images or `out` are not as they should be.
    """
    accelerator = start_accelerator(device, dtype)
    process_of(accelerator, batch_size)
    source = open_images(data)
    loaded = load_vae(vae) if isinstance(vae, str | Path) else copy.deepcopy(vae)
    loaded = loaded.float().eval().requires_grad_(False)
    height, width = _size(size, source, loaded.factor)
    grid = (height // loaded.factor, width // loaded.factor)
    layout = CodeLayout(default_sides(*grid) if sides is None else sides, codebook_size)
    if layout.grid != grid:
        raise CodaError(f"the last side is {layout.grid}, the latent's grid at {height}x{width} pixels is {grid}")
    settings = _Settings(
        vae=_digest(loaded),
        data=source.fingerprint,
        size=(height, width),
        layout=layout.to_json(),
        attention_dim=2 * loaded.latent_channels if attention_dim is None else attention_dim,
        norm=norm,
        lora_rank=lora_rank,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        kmeans_images=-(-_VECTORS_PER_CODE * codebook_size // layout.num_tokens)
        if kmeans_images is None
        else kmeans_images,
        l1_weight=l1_weight,
        l2_weight=l2_weight,
        perceptual_weight=perceptual_weight,
        entropy_weight=entropy_weight,
        adversarial_weight=adversarial_weight,
        adversarial_start=adversarial_start,
        ema_decay=ema_decay,
        seed=seed,
        precision=accelerator.mixed_precision,
    )
    with accelerator.main_process_first():
        run = RunDirectory(out, "tokenizer", asdict(settings), overwrite=overwrite and accelerator.is_main_process)
    if not run.complete:
        loading = _Loading(source, workers, strict, checkpoint_every)
        _train(loaded, layout, settings, run, accelerator, loading)
    return run.path


@dataclass(frozen=True)
class _Settings:
    """Everything that changes the result; see `adapt`."""

    vae: str
    data: str
    size: tuple[int, int]
    layout: dict[str, Any]
    attention_dim: int
    norm: str
    lora_rank: int
    steps: int
    batch_size: int
    lr: float
    warmup: int
    kmeans_images: int
    l1_weight: float
    l2_weight: float
    perceptual_weight: float
    entropy_weight: float
    adversarial_weight: float
    adversarial_start: int
    ema_decay: float
    seed: int
    precision: str


@dataclass(frozen=True)
class _Loading:
    """What changes only how the result is come by; see `adapt`."""

    source: ImageSource
    workers: int
    strict: bool
    checkpoint_every: int


def _train(
    vae: ContinuousVAE,
    layout: CodeLayout,
    settings: _Settings,
    run: RunDirectory,
    accelerator: Accelerator,
    loading: _Loading,
) -> None:
    """From the newest checkpoint, or the start from k-means, to the finished directory."""
    quantizer = _new_quantizer(vae, layout, settings)
    checkpoint = run.latest()
    vae.to(accelerator.device)
    if checkpoint is None:
        vae = _start_from_data(vae, quantizer, settings, loading)
    else:
        vae.register_to_config(shift=checkpoint.state["shift"], scale=checkpoint.state["scale"])
    if settings.lora_rank:
        add_lora(vae, settings.lora_rank, seed=derived_seed("lora", settings.seed))

    through = _ThroughTheCodes(vae, quantizer)
    through.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPUs and on tensor cores
    model = accelerator.prepare(through)
    trained = TrainedParameters(_trainable(through), betas=(0.5, 0.9), ema_decay=settings.ema_decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("discriminator", settings.seed))
        critic = PatchDiscriminator()
    judge = accelerator.prepare(critic)
    judging = TrainedParameters(_trainable(critic), betas=(0.5, 0.9))
    features = LiteFeatures().to(accelerator.device) if settings.perceptual_weight else None

    def state(done: int) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
        tensors = trained.tensors("tokenizer")
        if settings.adversarial_weight:
            tensors |= judging.tensors("discriminator")
        return done, tensors, {"shift": vae.config["shift"], "scale": vae.config["scale"]}

    start = 0
    if checkpoint is not None:
        start = checkpoint.step
        trained.load("tokenizer", checkpoint.tensors, updates=start)
        if settings.adversarial_weight:
            judged = max(0, start - settings.adversarial_start)
            judging.load("discriminator", checkpoint.tensors, updates=judged)
        if accelerator.is_main_process:
            run.forget_log_after(start)
    elif accelerator.is_main_process:
        run.save(*state(0))

    process, skipped = process_of(accelerator, settings.batch_size), 0
    batches = training_batches(
        loading.source, settings.size, settings.batch_size, settings.seed, start, settings.steps,
        workers=loading.workers, strict=loading.strict, process=process,
    )  # fmt: skip
    with progress("Adapting", total=settings.steps, completed=start) as bar:
        for step, batch in enumerate(batches, start):
            images = batch.images.to(accelerator.device, memory_format=torch.channels_last)
            rate = learning_rate(step, settings.steps, settings.lr, settings.warmup)
            adversarial = settings.adversarial_weight > 0 and step >= settings.adversarial_start

            result = model(images)
            distance = reconstruction_loss(
                result.reconstructions, images, features,
                settings.l1_weight, settings.l2_weight, settings.perceptual_weight,
            )  # fmt: skip
            loss = distance.total + result.quantization_loss + settings.entropy_weight * result.entropy_loss
            if adversarial:
                critic.requires_grad_(False)  # its own step alone trains it
                deceit = hinge_generator_loss(critic(result.reconstructions))
                weight = accelerator.reduce(through.adaptive_weight(distance.total, deceit), "mean")
                loss = loss + settings.adversarial_weight * weight * deceit
            trained.optimizer.zero_grad()
            accelerator.backward(loss)
            gradient = trained.update(rate, _LARGEST_GRADIENT)

            if adversarial:
                critic.requires_grad_(True)
                judging.optimizer.zero_grad()
                # One pass for both: processes average their gradients once per backward pass.
                real, fake = judge(torch.cat([images, result.reconstructions.detach()])).chunk(2)
                judgement = hinge_discriminator_loss(real, fake)
                accelerator.backward(judgement)
                judging.update(rate, _LARGEST_GRADIENT)

            done, skipped = step + 1, skipped + len(batch.skipped)
            bar.advance()
            if done % _LOG_EVERY == 0 or done == settings.steps:
                figures = {
                    "loss": finite(loss, done),
                    "psnr": 10 * math.log10(4 / max(float(distance.l2), 1e-12)),
                    "perceptual": float(distance.perceptual),
                    "quantization": float(result.quantization_loss.detach()),
                    "entropy": float(result.entropy_loss.detach()),
                    "codes": result.codes.unique().numel(),  # different ones in this batch
                }
                bar.advance(0, loss=figures["loss"], psnr=figures["psnr"], codes=figures["codes"])
                if adversarial:
                    figures |= {"discriminator": float(judgement.detach()), "adaptive_weight": float(weight)}
                if accelerator.is_main_process:
                    run.log(done, **figures, gradient=float(gradient), lr=rate, skipped=skipped)
            if accelerator.is_main_process and done % loading.checkpoint_every == 0 and done < settings.steps:
                run.save(*state(done))
    if skipped:
        note(f"{skipped:,} images could not be read and were replaced by others")

    if accelerator.is_main_process:
        trained.use_average()
        through.cpu().to(memory_format=torch.contiguous_format)
        run.finish(lambda folder: _write(folder, vae, quantizer, settings))
    accelerator.wait_for_everyone()


class _Result(NamedTuple):
    """reconstructions: (B, 3, H, W), not clamped. codes: (B, T). The losses: scalars."""

    reconstructions: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor


class _ThroughTheCodes(nn.Module):
    """Encode, quantize and decode as one module, so that all gradients are averaged over processes."""

    def __init__(self, vae: ContinuousVAE, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.vae, self.quantizer = vae, quantizer
        weight = vae.last_layer
        self._last = [module for module in vae.modules() if getattr(module, "weight", None) is weight]
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last[0].register_forward_hook(self._remember)

    def forward(self, images: torch.Tensor) -> _Result:
        latents = self.vae.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # near ties need float32's bits
            out = self.quantizer(latents.float())
        reconstructions = self.vae.decode(out.quantized)
        return _Result(reconstructions, out.codes, out.quantization_loss, out.entropy_loss)

    def adaptive_weight(self, reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        """VQGAN's weight of the adversarial loss, at the decoder's last layer, of the newest forward pass."""
        assert self._seen is not None, "there was no forward pass"
        given, gave = self._seen
        gradients = [torch.autograd.grad(loss, gave, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
        return adaptive_weight(self._last[0], given, gradients[0], gradients[1])

    def _remember(self, _: nn.Module, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:
        self._seen = (given[0], gave) if gave.requires_grad else None


def _new_quantizer(vae: ContinuousVAE, layout: CodeLayout, settings: _Settings) -> ResidualQuantizer:
    """A quantizer still without a start."""
    return ResidualQuantizer(
        latent_channels=vae.latent_channels,
        codebook_size=layout.codebook_size,
        sides=[list(side) for side in layout.sides],
        attention_dim=settings.attention_dim,
        norm=settings.norm,
    )


@torch.no_grad()
def _start_from_data(
    vae: ContinuousVAE, quantizer: ResidualQuantizer, settings: _Settings, loading: _Loading
) -> ContinuousVAE:
    """Measure the latents where nobody has, fit the codebook, set the quantizer; returns the VAE to go on with."""
    source = loading.source
    count = max(settings.kmeans_images, _STATISTICS_IMAGES if vae.needs_statistics else 0)
    order = torch.randperm(len(source), generator=step_generator(settings.seed, 0, "k-means images"))[:count].tolist()

    def batches(indices: Sequence[int]) -> Iterator[ImageBatch]:
        return image_batches(
            source, settings.size, settings.batch_size, indices, workers=loading.workers, strict=loading.strict
        )

    if vae.needs_statistics:
        vae = measure_normalisation(vae, (batch.images for batch in batches(order[:_STATISTICS_IMAGES])))
    order = order[: settings.kmeans_images]
    latents = []
    with progress("Encoding images for the codebook", total=len(order), unit="images") as bar:
        for batch in batches(order):
            latents.append(vae.encode(batch.images.to(vae.device)))
            bar.advance(len(batch))
    layout = quantizer.layout
    codebook = residual_kmeans(torch.cat(latents), layout.sides, layout.codebook_size, seed=settings.seed)
    start_from_codebook(quantizer, codebook)
    return vae


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _write(folder: Path, vae: ContinuousVAE, quantizer: ResidualQuantizer, settings: _Settings) -> None:
    """The finished directory: the adapter by itself, then the tokenizer with the adapter merged."""
    if settings.lora_rank:
        autoencoder: Any = vae.autoencoder
        (adapter,) = autoencoder.peft_config.values()
        adapter.save_pretrained(str(folder / "lora"))
        save_tensors(folder / "lora" / "adapter_model.safetensors", get_peft_model_state_dict(autoencoder))
        merge_lora(vae)
    CodaTokenizer(vae, quantizer, settings.size).save_pretrained(folder)


def _size(size: int | tuple[int, int] | None, source: ImageSource, factor: int) -> tuple[int, int]:
    """Height and width in pixels."""
    if size is None:
        short = _short_side(source)
        size = min(_LARGEST_DEFAULT_SIZE, short) // factor * factor
        if not size:
            raise CodaError(f"images of {short} pixels are smaller than one cell of the latent ({factor}); give a size")
    height, width = (size, size) if isinstance(size, int) else size
    if height < factor or width < factor or height % factor or width % factor:
        raise CodaError(f"size {height}x{width} is not a multiple of the VAE's factor, {factor}")
    return height, width


def _short_side(source: ImageSource) -> int:
    """Of the first image that can be read."""
    for i in range(len(source)):
        try:
            return min(decode_image(source.read(i)).shape[1:])
        except BrokenImage:
            continue
    raise CodaError(f"no image in {source.location} can be read")


def _digest(vae: ContinuousVAE) -> str:
    """What tells a VAE from any other: a hash of its normalisation and weights."""
    digest = hashlib.sha256(repr((vae.config["shift"], vae.config["scale"])).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
