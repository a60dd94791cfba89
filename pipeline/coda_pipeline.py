"""Classes in, images out: the transformer samples codes, the tokenizer's decoder turns them into images.

N images in all · B of them per batch · T codes per image · C channels and (h, w) grid of the latent
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import EvalResult
from torch import nn

from coda.generator import MaskGitScheduler, MaskGitTransformer
from coda.generator.sampling import Hook, SamplingStep
from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE, ResidualQuantizer
from coda.tokenizer.foundation.bounds import check_integer
from coda.tokenizer.foundation.hub import HUB_OPTIONS, UPLOAD_OPTIONS, fetch, local_path, upload
from coda.tokenizer.images import to_pil
from coda.tokenizer.images.grid import labelled_grid

from .classes import ClassTable
from .loading import check_index, one_line_errors, pipeline_folder, stored_as_float32
from .model_card import model_card
from .seeds import Seeds, generators_per_image

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "codes")
Images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
ClassLabel = int | str | None
StepCallback = Callable[["CodaPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

# Saved pipelines name packages, not files, so files can move inside of a package.
_COMPONENTS = {
    "vae": ("coda.tokenizer", ContinuousVAE),
    "quantizer": ("coda.tokenizer", ResidualQuantizer),
    "transformer": ("coda.generator", MaskGitTransformer),
    "scheduler": ("coda.generator", MaskGitScheduler),
}
_MODELS = ("vae", "quantizer", "transformer")
_MOST_IMAGES = 1_000_000  # of one call


@dataclass
class CodaPipelineOutput(BaseOutput):
    """Output of `CodaPipeline`.

    Attributes:
        images: By `output_type`: N PIL images; an array (N, H, W, 3) or a tensor (N, 3, H, W) in [0, 1]; latents
            (N, C, h, w); or codes (N, T) int64.
        captions: Class and seed of each image, "goldfish, seed 0".
    """

    images: Images
    captions: list[str]

    def grid(self, columns: int | None = None) -> PIL.Image.Image:
        """All images in one, with their captions; by default about as many columns as rows.

        Raises:
            CodaError: If the images are not of output type "pil".
        """
        if not isinstance(self.images, list):
            raise CodaError('a grid is made of PIL images: sample with output_type="pil"')
        return labelled_grid(self.images, self.captions, columns)


class CodaPipeline(DiffusionPipeline):
    """Samples images of given classes.

    Args:
        vae: Decodes latents.
        quantizer: Turns codes into latents; with `vae` it is the tokenizer.
        transformer: Predicts masked codes.
        scheduler: Settings of the sampling.

    Raises:
        CodaError: If the parts do not fit together.
    """

    vae: ContinuousVAE
    quantizer: ResidualQuantizer
    transformer: MaskGitTransformer
    scheduler: MaskGitScheduler
    model_cpu_offload_seq = "transformer->quantizer->vae"
    # Sequential offloading moves single layers, which needs every weight to be used by its own layer's `forward`.
    _exclude_from_cpu_offload = ["quantizer", "transformer"]  # noqa: RUF012  diffusers declares it so
    _callback_tensor_inputs = ("codes", "prefix_latents")

    def __init__(
        self,
        vae: ContinuousVAE,
        quantizer: ResidualQuantizer,
        transformer: MaskGitTransformer,
        scheduler: MaskGitScheduler,
    ) -> None:
        super().__init__()
        if quantizer.layout != transformer.layout:
            raise CodaError(f"the tokenizer has {quantizer.layout}; the generator was trained on {transformer.layout}")
        channels = vae.latent_channels, quantizer.config["latent_channels"], transformer.config["latent_channels"]
        if len(set(channels)) > 1:
            raise CodaError("vae, quantizer and transformer have {}, {} and {} latent channels".format(*channels))
        self.register_modules(vae=vae, quantizer=quantizer, transformer=transformer, scheduler=scheduler)
        self._tokenizer = CodaTokenizer(vae, quantizer)
        self._num_timesteps = 0

    @property
    def tokenizer(self) -> CodaTokenizer:
        """`vae` and `quantizer` as one: images (B, 3, H, W) in [-1, 1] ⇄ codes (B, T)."""
        if self._tokenizer.vae is not self.vae or self._tokenizer.quantizer is not self.quantizer:  # one was replaced
            self._tokenizer = CodaTokenizer(self.vae, self.quantizer)
        return self._tokenizer

    @property
    def classes(self) -> ClassTable:
        """The classes that the transformer knows, by index and name."""
        config = self.transformer.config
        return ClassTable.of_model(config["num_classes"], config.get("class_names"), config.get("class_labels"))

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call, all batches together."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabel | Iterable[ClassLabel],
        num_images_per_class: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | Sequence[int] | None = None,
        generator: Seeds = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
        batch_size: int = 16,
    ) -> CodaPipelineOutput | tuple[Images]:
        """Sample images: all of the first class, then all of the second, ….

        Neither `batch_size` nor the order of the classes changes an image.

        Args:
            class_labels: Classes, each an index (207), a WordNet id ("n02099601") or a name ("golden retriever"); "all"
                for all that the model knows; None for no class, which is sampled without guidance.
            num_images_per_class: Images of each class.
            guidance_scale: Classifier-free guidance as in diffusers, 1 is none; the scheduler's by default.
            num_inference_steps: One number for all levels together, or one per level; the scheduler's by default.
            generator: A seed; image j of a class has seed + j (see `image_seeds`). Or a generator, which is asked for
                such a seed; or one generator or seed per image. By default torch's global generator is asked.
            output_type: "pil", "np" or "pt" (in [0, 1]), "latent" or "codes".
            return_dict: Whether to return a `CodaPipelineOutput` or a tuple.
            callback_on_step_end: Called as (pipeline, step, timestep, tensors) after every step, `step` counting from
                0 to `num_timesteps` - 1 over all batches; {"codes": (B, T)} that it returns replaces the codes.
            callback_on_step_end_tensor_inputs: Tensors for the callback: "codes" (B, T), the codebook's size where a
                cell is still masked; "prefix_latents" (B, C, h, w), the sum of the levels before the present one.
            batch_size: Images per batch.

        Raises:
            CodaError: If a class does not exist or was never seen, or another argument is out of range.
        """
        check_integer("num_images_per_class", num_images_per_class, 1, _MOST_IMAGES)
        if output_type not in OUTPUT_TYPES:
            raise CodaError(f"output type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
        if unknown := [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]:
            raise CodaError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, not {unknown}"
            )
        one = isinstance(class_labels, str) or not isinstance(class_labels, Iterable)
        words: Any = [class_labels] if one else class_labels
        classes, labels = self.classes, list[int | None]()
        for word in words:
            for index in [None] if word is None else classes.find_all(word):
                labels += [index] * num_images_per_class
        generators = generators_per_image(generator, labels)
        captions = [_caption(classes, label, one.initial_seed()) for label, one in zip(labels, generators, strict=True)]
        codes = self.sample_codes(
            labels,
            generators,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        images = self._postprocess(codes, output_type)
        self.maybe_free_model_hooks()
        return CodaPipelineOutput(images, captions) if return_dict else (images,)

    @torch.no_grad()
    def sample_codes(
        self,
        labels: Sequence[int | None],
        generators: Sequence[torch.Generator],
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | Sequence[int] | None = None,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
        batch_size: int = 16,
        callback: StepCallback | None = None,
        callback_tensors: Sequence[str] = ("codes",),
        on_level_end: Hook | None = None,
    ) -> torch.Tensor:
        """Sample codes (N, T), `batch_size` images at a time, with the progress bar. Other arguments: as in a call.

        `labels` are the class of each image, None for no class; `known` is (codes (N, T), keep (N, T) bool), cells that
        are given and stay as they are; `on_level_end` is that of `coda.generator.sample_codes`.
        """
        check_integer("batch_size", batch_size, 1, _MOST_IMAGES)
        if not labels:
            raise CodaError("at least one class is needed; None stands for no class")
        transformer, scheduler = self._loaded("transformer"), self.scheduler
        scheduler.set_timesteps(num_inference_steps, transformer.layout)
        steps = len(scheduler.timesteps)
        self._num_timesteps = math.ceil(len(labels) / batch_size) * steps
        scale = 1.0 if all(label is None for label in labels) else guidance_scale  # both halves would be the same
        sampled: list[torch.Tensor] = []
        with self.progress_bar(total=self._num_timesteps) as bar:
            for first in range(0, len(labels), batch_size):
                batch = slice(first, first + batch_size)

                def on_step(state: SamplingStep, before: int = len(sampled) * steps) -> torch.Tensor | None:
                    bar.update()
                    return self._run_callback(callback, callback_tensors, before, state)

                sampled.append(
                    scheduler.sample(
                        transformer.predictor(labels[batch]),
                        transformer.layout,
                        transformer.value_table,
                        generators[batch],
                        num_inference_steps=num_inference_steps,
                        guidance_scale=scale,
                        known=None if known is None else (known[0][batch], known[1][batch]),
                        on_step=on_step,
                        on_level_end=on_level_end,
                    )
                )
        return torch.cat(sampled)

    def _run_callback(
        self, callback: StepCallback | None, names: Sequence[str], before: int, state: SamplingStep
    ) -> torch.Tensor | None:
        """Call the user's callback, which may return codes."""
        if callback is None:
            return None
        tensors = {"codes": state.codes, "prefix_latents": state.prefix}
        timestep = self.scheduler.timesteps[state.index]
        returned = callback(self, before + state.index, timestep, {name: tensors[name] for name in names})
        codes = (returned or {}).get("codes")
        if codes is not None and codes.shape != state.codes.shape:
            raise CodaError(f"the callback returned codes {tuple(codes.shape)}, expected {tuple(state.codes.shape)}")
        return codes

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalized latents (N, C, h, w) and codes (N, T) of images (N, 3, H, W) in [-1, 1]."""
        latents = self._loaded("vae").encode(images.to(self._execution_device))
        return latents, self._loaded("quantizer").encode(latents)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) in [-1, 1], float32, of codes (N, T).

        One image at a time: convolutions round differently at another batch size, which would change some pixels by
        one gray level, and an image must not depend on what else is in the batch.
        """
        quantizer, rows = self._loaded("quantizer"), codes.to(self._execution_device).split(1)
        latents = [quantizer.decode(row) for row in rows]
        vae = self._loaded("vae")
        return torch.cat([vae.decode(latent).clamp(-1, 1).float() for latent in latents])

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As in diffusers: layers come from the CPU to an accelerator one by one."""
        if torch.device(device or torch.accelerator.current_accelerator() or "cpu").type == "cpu":
            raise CodaError("sequential offloading needs an accelerator: on the CPU there is nothing to move")
        super().enable_sequential_cpu_offload(gpu_id, device)

    def _loaded(self, name: str) -> Any:
        """A component, on the execution device.

        `enable_model_cpu_offload` moves a component when its `forward` is called; ours have other methods besides.
        """
        component = getattr(self, name)
        if hasattr(component, "_hf_hook"):
            component._hf_hook.pre_forward(component)
        return component

    def _postprocess(self, codes: torch.Tensor, output_type: str) -> Images:
        """Codes (N, T) as `output_type`."""
        if output_type == "codes":
            return codes
        if output_type == "latent":
            return self._loaded("quantizer").decode(codes)
        images = self.decode(codes)
        if output_type == "pil":
            return [to_pil(image) for image in images]
        images = images / 2 + 0.5
        return images if output_type == "pt" else images.movedim(1, -1).cpu().numpy()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> CodaPipeline:
        """Load a pipeline whole, or not at all.

        Args:
            pretrained_model_name_or_path: "bundled" (the model that ships with the package), a directory that
                `save_pretrained` wrote, or a hub id.
            **kwargs: As in diffusers: `dtype` or `torch_dtype`, `device_map`, `variant`, `revision`, components to use
                instead, …. No code from a repository is run: `trust_remote_code` and `custom_pipeline` are refused.

        Raises:
            CodaError: If there is no such pipeline, a file is damaged, a weight is missing, the parts do not fit, or
                the transformer was trained on another tokenizer's codes.
        """
        if refused := [name for name in ("trust_remote_code", "custom_pipeline") if kwargs.pop(name, None)]:
            raise CodaError(f"{refused[0]} is refused: a CodaPipeline runs no code from a repository")
        if kwargs.pop("use_safetensors", None) is False:
            raise CodaError("use_safetensors=False is refused: a CodaPipeline is loaded from safetensors only")
        download = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        if not isinstance(dtype, torch.dtype | None):  # one per component
            kwargs["dtype"] = dtype
        folder = pipeline_folder(pretrained_model_name_or_path, **download)
        stored = {name: (package, kind.__name__) for name, (package, kind) in _COMPONENTS.items()}
        check_index(folder, cls.__name__, stored)
        with one_line_errors(folder):
            pipeline = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        loaded = [name for name in _MODELS if name not in kwargs]
        if loaded == [*_MODELS] and "dtype" not in kwargs and stored_as_float32(folder, kwargs.get("variant")):
            pipeline._check_fingerprint(folder)
        if isinstance(dtype, torch.dtype):  # not earlier: a fingerprint is that of float32 weights
            for name in loaded:
                nn.Module.to(getattr(pipeline, name), dtype)
        return pipeline

    def _check_fingerprint(self, source: Path) -> None:
        """Raise a CodaError if the transformer was trained on codes of another tokenizer."""
        trained_on, fingerprint = self.transformer.config.get("tokenizer_fingerprint"), self.tokenizer.fingerprint
        if trained_on not in (None, fingerprint):
            raise CodaError(
                f"{source} was trained on codes of the tokenizer {trained_on}, not of {fingerprint}: "
                "use the tokenizer that made its cache"
            )

    @classmethod
    def from_parts(
        cls, generator: str | Path, tokenizer: str | Path | CodaTokenizer, torch_dtype: torch.dtype | None = None
    ) -> CodaPipeline:
        """Combine a generator and the tokenizer that it was trained on.

        Args:
            generator: Directory that `train_maskgit` wrote, or hub id of one.
            tokenizer: Directory or hub id of a `CodaTokenizer`, or one.
            torch_dtype: Type of the weights; float32 by default.

        Raises:
            CodaError: If one cannot be read, or the generator was trained on another tokenizer's codes.
        """
        folder = local_path(generator) or fetch(str(generator), ("*.json", "*.safetensors"))
        if (folder / "model_index.json").is_file():
            raise CodaError(f"{folder} is a whole pipeline, which has its tokenizer: pass only one of them")
        if not (folder / "config.json").is_file():
            raise CodaError(f"{folder} is not a generator: it has no config.json")
        transformer = MaskGitTransformer.from_pretrained(folder, use_safetensors=True)
        with one_line_errors(folder):
            scheduler = MaskGitScheduler.from_pretrained(str(folder), subfolder="scheduler")
        if not isinstance(tokenizer, CodaTokenizer):
            tokenizer = CodaTokenizer.from_pretrained(tokenizer)
        pipeline = cls(tokenizer.vae, tokenizer.quantizer, transformer, scheduler)
        pipeline._tokenizer = tokenizer
        pipeline._check_fingerprint(folder)
        return pipeline if torch_dtype is None else pipeline.to(torch_dtype)

    def save_pretrained(  # type: ignore[override]  # by keyword, as diffusers itself calls it
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        results: Sequence[EvalResult] = (),
        **kwargs: Any,
    ) -> None:
        """Save all parts and a README.md that describes them.

        Args:
            save_directory: Directory to write.
            push_to_hub: Whether to upload the directory afterwards.
            results: Figures for the model card, such as `Report.to_eval_results` gives.
            **kwargs: As in diffusers: `variant`, `max_shard_size`; `repo_id`, `private`, `token`, … for the hub.
        """
        for name, (package, kind) in _COMPONENTS.items():
            self.register_to_config(**{name: (package, kind.__name__)})
        hub = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs}
        place = kwargs.pop("repo_id", Path(save_directory).name)
        super().save_pretrained(save_directory, **{**kwargs, "safe_serialization": True})
        folder = Path(save_directory)
        (folder / "README.md").write_text(model_card(self, place, results=results), encoding="utf-8")
        if push_to_hub:
            upload(folder, place, **hub)

    def push_to_hub(self, repo_id: str, variant: str | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Upload to the hub, with this pipeline's model card; arguments as in `save_pretrained`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, variant=variant, **kwargs)


def _caption(classes: ClassTable, label: int | None, seed: int) -> str:
    """How an image was made: class and seed."""
    return f"seed {seed}" if label is None else f"{classes[label].name}, seed {seed}"
