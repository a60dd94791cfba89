"""`coda inspect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.reading import read_json
from coda.tokenizer.foundation.settings import Count, Seed, Settings, setting

from ..cli.arguments import Help
from ..cli.plain_table import plain_table

if TYPE_CHECKING:
    from torch import nn

Facts = Mapping[str, object]


@dataclass(frozen=True)
class CacheOptions(Settings):
    """How a code cache is inspected."""

    verify: bool = setting(False, "Also verify the checksums of all codes of a cache.")
    tokenizer: str | None = setting(
        None, "Tokenizer that made the cache, a directory or hub id; by default runs/tokenizer, if it is the one."
    )
    num: Count = setting(16, "Number of samples of the cache that are decoded.")
    seed: Seed = setting(0, "Seed for the choice of the samples.")
    out: Path | None = setting(
        None, "PNG file for the decoded samples; by default runs/inspect.png, if it does not exist yet."
    )
    overwrite: bool = setting(False, "Replace the file of --out.")


def inspect(
    path: Annotated[str, Help("Directory, file or hub id.")],
    *,
    options: CacheOptions,
) -> str:
    """Describe a code cache, a tokenizer, a generator, a pipeline or a VAE.

    Models are loaded, so that a damaged file or a missing weight shows. For a cache: usage of the codebook per level,
    balance of the classes, images with the same codes, what was left out and why, and an image of some samples.

    Examples:
        coda inspect runs/cache --verify
        coda inspect runs/cache --tokenizer runs/tokenizer --num 64 --seed 1 --out samples.png
    """
    kind, describe = _what(path)
    if describe is None:
        from .inspect_cache import inspect_cache

        lines = inspect_cache(path, options)
    else:
        for field in options.declared():
            if getattr(options, field.name) != field.default:
                raise CodaError(f"--{field.name} is for code caches; {path} is a {kind}")
        lines = plain_table((name, value) for name, value in describe(path).items() if value is not None)
    return "\n".join([*lines, f"{path} is a complete {kind}" + (", every code verified" if options.verify else "")])


def _what(path: str) -> tuple[str, Callable[[str], Facts] | None]:
    """The kind of thing at `path`, and the function that describes it; None for a code cache."""
    folder = Path(path).expanduser()
    if path == "bundled" or (folder / "model_index.json").is_file():
        kind = read_json(folder / "model_index.json").get("_class_name") if path != "bundled" else "CodaPipeline"
        return ("pipeline", _pipeline) if kind == "CodaPipeline" else ("continuous VAE", _vae)
    if (folder / "coda_tokenizer.json").is_file():
        return "tokenizer", _tokenizer
    if any((folder / name).is_file() for name in ("manifest.json", "progress.json")):  # whole or unfinished
        return "code cache", None
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("_class_name") == "MaskGitTransformer":
        return "generator", _generator
    run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {"complete": True}
    if not run.get("complete"):
        raise CodaError(f"{path} is an unfinished run ({run.get('kind')}): run its command again to finish it")
    return "continuous VAE", _vae


def _tokenizer(path: str) -> Facts:
    from coda.tokenizer import CodaTokenizer

    return _tokenizer_facts(CodaTokenizer.from_pretrained(path))


def _generator(path: str) -> Facts:
    from coda.generator import MaskGitTransformer

    transformer = MaskGitTransformer.from_pretrained(path, use_safetensors=True)
    return _generator_facts(transformer)


def _pipeline(path: str) -> Facts:
    from .model import load_whole_pipeline

    pipeline = load_whole_pipeline(path)
    scheduler = pipeline.scheduler.config
    how = ("num_inference_steps", "guidance_scale", "order", "temperature", "mask_schedule")
    return {
        **_tokenizer_facts(pipeline.tokenizer),
        **_generator_facts(pipeline.transformer),
        "sampling": ", ".join(f"{name.replace('_', ' ')} {scheduler[name]}" for name in how),
    }


def _vae(path: str) -> Facts:
    from coda.tokenizer import load_vae

    return _vae_facts(load_vae(path))


def _vae_facts(vae: Any) -> dict[str, object]:
    return {
        "autoencoder": type(vae.autoencoder).__name__,
        "factor": vae.factor,
        "latent channels": vae.latent_channels,
        "VAE parameters": _parameters(vae),
        "normalization": "to be measured" if vae.is_unnormalized else "known",
    }


def _tokenizer_facts(tokenizer: Any) -> dict[str, object]:
    import torch

    from coda.tokenizer.quantizer.retrieval import retrieval_backend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantizer = tokenizer.quantizer
    backend = retrieval_backend(device, quantizer.dtype, quantizer.to_q.out_features, quantizer.config.latent_channels)
    return {
        "image size": "x".join(map(str, tokenizer.size)),
        "layout": tokenizer.layout,
        **_vae_facts(tokenizer.vae),
        "quantizer parameters": _parameters(quantizer),
        "retrieval": f"{backend}, on {device.type}",
        "tokenizer": tokenizer.fingerprint,
    }


def _generator_facts(transformer: Any) -> dict[str, object]:
    config = transformer.config
    seen = config.get("class_labels")
    return {
        "layout": transformer.layout,
        "width, depth, heads": f"{config['hidden_size']}, {config['depth']}, {config['num_heads']}",
        "generator parameters": _parameters(transformer),
        "classes": config["num_classes"] if seen is None else f"{len(seen)} seen, of {config['num_classes']}",
        "trained on": config.get("tokenizer_fingerprint"),
    }


def _parameters(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"
