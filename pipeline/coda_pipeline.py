"""Class in, pictures out: the transformer samples codes, the tokenizer's decoder makes pictures of them.

N pictures asked for · B of them at a time · T codes per picture · C channels and (h, w) grid of the latent
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
from huggingface_hub import HfApi

from coda.generator import MaskGitScheduler, MaskGitTransformer
from coda.generator.sampling import SamplingStep
from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE, ResidualQuantizer
from coda.tokenizer.images import to_pil

from .classes import ClassTable
from .loading import check_index, check_weights, one_line_errors, pipeline_folder
from .model_card import model_card
from .seeds import Seeds, generators_per_image

OUTPUT_TYPES = ("pil", "np", "pt", "latent", "codes")
Images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
StepCallback = Callable[["CodaPipeline", int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]

# What saved pipelines name: the package rather than the file, so that files can move inside of it.
_COMPONENTS = {
    "vae": ("coda.tokenizer", ContinuousVAE),
    "quantizer": ("coda.tokenizer", ResidualQuantizer),
    "transformer": ("coda.generator", MaskGitTransformer),
    "scheduler": ("coda.generator", MaskGitScheduler),
}
_UPLOAD = ("repo_id", "private", "token", "commit_message", "create_pr")
_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")


@dataclass
class CodaPipelineOutput(BaseOutput):
    """What sampling gives.

    Attributes:
        images: As `output_type` asks: N PIL images; an array (N, H, W, 3) or a tensor (N, 3, H, W) in [0, 1]; latents
            (N, C, h, w); or codes (N, T) int64.
    """

    images: Images


class CodaPipeline(DiffusionPipeline):
    """Samples pictures of given classes.

    Args:
        vae: Makes pictures of latents.
        quantizer: Makes latents of codes; with `vae` it is the tokenizer.
        transformer: Predicts masked codes.
        scheduler: How the codes are filled.

    Raises:
        CodaError: The parts do not fit together.
    """

    vae: ContinuousVAE
    quantizer: ResidualQuantizer
    transformer: MaskGitTransformer
    scheduler: MaskGitScheduler
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
        self._num_timesteps = 0

    @property
    def tokenizer(self) -> CodaTokenizer:
        """`vae` and `quantizer` as one: images (B, 3, H, W) in [-1, 1] ⇄ codes (B, T)."""
        return CodaTokenizer(self.vae, self.quantizer)

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Fingerprint of the tokenizer whose codes the transformer was trained on, whatever precision it is in now."""
        return self.transformer.config.get("tokenizer_fingerprint")

    @property
    def classes(self) -> ClassTable:
        """The classes that the transformer knows, and the words that find them."""
        config = self.transformer.config
        return ClassTable.of_model(config["num_classes"], config.get("class_names"), config.get("class_labels"))

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call, all batches together."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Iterable[int | str] | None,
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
        """Sample pictures: all of the first class, then all of the second, ….

        Neither `batch_size` nor the order of the classes changes a picture.

        Args:
            class_labels: Classes, each an index (207), a WordNet id ("n02099601") or a name ("golden retriever"); None
                for pictures of no class, which are sampled without guidance.
            num_images_per_class: Pictures of each.
            guidance_scale: Classifier-free guidance as diffusers counts it, 1 is none; the scheduler's by default.
            num_inference_steps: One number, shared out over the levels, or one per level; the scheduler's by default.
            generator: A seed, from which the j-th picture of class c always comes out the same; a generator, which
                gives such a seed; or one generator or seed per picture. By default torch's global randomness.
            output_type: "pil", "np" or "pt" (in [0, 1]), "latent" or "codes".
            return_dict: Whether to return a `CodaPipelineOutput` or a tuple.
            callback_on_step_end: Called as (pipeline, step, timestep, tensors) after every step, `step` counting from
                0 to `num_timesteps` - 1 over all batches; {"codes": (B, T)} that it returns replaces the codes.
            callback_on_step_end_tensor_inputs: What it is given: "codes" (B, T), the codebook's size where a cell is
                still masked; "prefix_latents" (B, C, h, w), what the levels before the present one say.
            batch_size: Pictures made at a time.

        Raises:
            CodaError: A class does not exist or was never seen, or another argument is out of range.
        """
        indices = [None] if class_labels is None else self.classes.find_all(class_labels)
        if not indices or num_images_per_class < 1 or batch_size < 1:
            raise CodaError("at least one class, one image per class and a batch size of one are needed")
        if output_type not in OUTPUT_TYPES:
            raise CodaError(f"output type {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise CodaError(
                f"callback_on_step_end_tensor_inputs may name {self._callback_tensor_inputs}, not {unknown}"
            )
        labels = [index for index in indices for _ in range(num_images_per_class)]
        codes = self.sample_codes(
            labels,
            generators_per_image(generator, labels),
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        images = self._finished(codes, output_type)
        self.maybe_free_model_hooks()
        return CodaPipelineOutput(images=images) if return_dict else (images,)

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
    ) -> torch.Tensor:
        """Sample codes (N, T), `batch_size` pictures at a time, with the progress bar.

        Args:
            labels: Class of each picture; None for no class, and then without guidance.
            generators: One per picture.
            guidance_scale: As in a call.
            num_inference_steps: As in a call.
            known: (codes (N, T), keep (N, T) bool): cells that are given and stay as they are.
            batch_size: As in a call.
            callback: As in a call.
            callback_tensors: As in a call.
        """
        transformer, scheduler, layout = self.transformer, self.scheduler, self.transformer.layout
        device = self._execution_device
        scheduler.set_timesteps(num_inference_steps, layout)
        batches = math.ceil(len(labels) / batch_size)
        self._num_timesteps = batches * len(scheduler.timesteps)
        no_class = transformer.config["num_classes"]
        # Without a class both halves of guidance are the same.
        scale = 1.0 if all(label is None for label in labels) else guidance_scale
        sampled: list[torch.Tensor] = []
        with self.progress_bar(total=self._num_timesteps) as bar:
            for first in range(0, len(labels), batch_size):
                part = slice(first, first + batch_size)
                indices = [no_class if label is None else label for label in labels[part]]
                before = len(sampled) * len(scheduler.timesteps)

                def on_step(state: SamplingStep, before: int = before) -> torch.Tensor | None:
                    bar.update()
                    return self._called_back(callback, callback_tensors, before, state)

                sampled.append(
                    scheduler.sample(
                        transformer.predictor(torch.tensor(indices, device=device)),
                        layout,
                        transformer.value_table,
                        generators[part],
                        num_inference_steps=num_inference_steps,
                        guidance_scale=scale,
                        known=None if known is None else (known[0][part], known[1][part]),
                        on_step=on_step,
                    )
                )
        return torch.cat(sampled)

    def _called_back(
        self, callback: StepCallback | None, names: Sequence[str], before: int, state: SamplingStep
    ) -> torch.Tensor | None:
        """Hand a step to the user's callback; the codes that it gives back, if any."""
        if callback is None:
            return None
        tensors = {"codes": state.codes, "prefix_latents": state.prefix}
        timestep = self.scheduler.timesteps[state.index]
        returned = callback(self, before + state.index, timestep, {name: tensors[name] for name in names})
        codes = (returned or {}).get("codes")
        if codes is not None and codes.shape != state.codes.shape:
            raise CodaError(f"the callback returned codes {tuple(codes.shape)}, expected {tuple(state.codes.shape)}")
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H, W) in [-1, 1], float32, of codes (N, T).

        One picture at a time: convolutions round differently at another batch size, by enough to change a grey level
        here and there, and a picture is not to depend on its neighbours.
        """
        tokenizer = self.tokenizer
        return torch.cat([tokenizer.decode(row[None]).float() for row in codes.to(self.quantizer.device)])

    def _finished(self, codes: torch.Tensor, output_type: str) -> Images:
        """Codes (N, T) as what the caller wants of them."""
        if output_type == "codes":
            return codes
        if output_type == "latent":
            return self.quantizer.decode(codes)
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
                `save_pretrained` wrote, or a hub id, of which a snapshot is taken first.
            **kwargs: As in diffusers: `dtype`, `device_map`, `variant`, `revision`, components to use instead, ….
                Code from a repository is never run: `trust_remote_code` and `custom_pipeline` are refused.

        Raises:
            CodaError: There is no such pipeline, a file is damaged, a weight is missing, or the parts do not fit.
        """
        if refused := [name for name in ("trust_remote_code", "custom_pipeline") if kwargs.pop(name, None)]:
            raise CodaError(f"{refused[0]} is refused: a CodaPipeline runs no code from a repository")
        download = {name: kwargs.pop(name) for name in _DOWNLOAD if name in kwargs}
        folder = pipeline_folder(pretrained_model_name_or_path, **download)
        stored = {name: (package, kind.__name__) for name, (package, kind) in _COMPONENTS.items()}
        check_index(folder, cls.__name__, stored)
        with one_line_errors(folder):
            pipeline = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        for name in ("vae", "quantizer", "transformer"):
            if name not in kwargs:
                check_weights(getattr(pipeline, name), folder / name, kwargs.get("variant"))
        return pipeline

    @classmethod
    def from_parts(
        cls, generator: str | Path, tokenizer: str | Path | CodaTokenizer, torch_dtype: torch.dtype | None = None
    ) -> CodaPipeline:
        """Put a generator and the tokenizer that it was trained on together.

        Args:
            generator: Directory that `train_maskgit` wrote.
            tokenizer: Directory or hub id of a `CodaTokenizer`, or one.
            torch_dtype: What to convert the parts to; float32 by default.

        Raises:
            CodaError: One of them cannot be read, or the generator was trained on another tokenizer's codes.
        """
        folder = Path(generator).expanduser()
        if (folder / "model_index.json").is_file():
            raise CodaError(f"{folder} is a whole pipeline with a tokenizer of its own: give only one of them")
        if not (folder / "config.json").is_file():
            raise CodaError(f"{folder} is no generator: it has no config.json")
        with one_line_errors(folder):
            transformer = MaskGitTransformer.from_pretrained(str(folder), use_safetensors=True)
            scheduler = MaskGitScheduler.from_pretrained(str(folder), subfolder="scheduler")
        check_weights(transformer, folder)
        if not isinstance(tokenizer, CodaTokenizer):
            tokenizer = CodaTokenizer.from_pretrained(tokenizer)
        trained_on = transformer.config.get("tokenizer_fingerprint")
        if trained_on is not None and trained_on != tokenizer.fingerprint:
            raise CodaError(
                f"{folder} was trained on codes of the tokenizer {trained_on}, not of {tokenizer.fingerprint}: "
                "give the tokenizer that made its cache"
            )
        pipeline = cls(tokenizer.vae, tokenizer.quantizer, transformer, scheduler)
        return pipeline if torch_dtype is None else pipeline.to(torch_dtype)

    def save_pretrained(  # type: ignore[override]  # by keyword, as diffusers itself calls it
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save all parts, and a README.md that says what they are.

        Args:
            save_directory: Where to.
            push_to_hub: Whether to upload the directory afterwards.
            **kwargs: As in diffusers: `variant`, `max_shard_size`; `repo_id`, `private`, `token`, … for the hub.
        """
        for name, (package, kind) in _COMPONENTS.items():
            self.register_to_config(**{name: (package, kind.__name__)})
        hub = {name: kwargs.pop(name) for name in _UPLOAD if name in kwargs}
        super().save_pretrained(save_directory, **{**kwargs, "safe_serialization": True})
        folder = Path(save_directory)
        place = hub.pop("repo_id", folder.name)
        (folder / "README.md").write_text(model_card(self, place), encoding="utf-8")
        if push_to_hub:
            api = HfApi(token=hub.pop("token", None))
            repository = api.create_repo(place, private=hub.pop("private", None), exist_ok=True).repo_id
            api.upload_folder(repo_id=repository, folder_path=folder, **hub)

    def push_to_hub(self, repo_id: str, variant: str | None = None, **kwargs: Any) -> None:  # type: ignore[override]
        """Upload to the hub, with our own model card; arguments as in `save_pretrained`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, variant=variant, **kwargs)
