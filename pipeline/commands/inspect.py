"""`coda inspect`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Facts = Mapping[str, object]


def inspect(path: str, *, verify: bool = False) -> str:
    """Look into a code cache, a tokenizer, a generator, a pipeline or a VAE.

    Models are loaded, so that a damaged file or a missing weight shows.

    Args:
        path: Directory, file or hub id.
        verify: Also read every code of a cache and compare its checksums.

    Examples:
        coda inspect runs/cache --verify
    """
    from coda.tokenizer.errors import CodaError

    kind, look = _what(path)
    if verify and kind != "code cache":
        raise CodaError(f"{path} is a {kind}, which is verified by loading it; --verify is for code caches")
    facts = look(path, verify) if kind == "code cache" else look(path)
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {value}" for name, value in facts.items() if value is not None]
    return "\n".join([*lines, f"{path} is a whole {kind}" + (", every code verified" if verify else "")])


def _what(path: str) -> tuple[str, Callable[..., Facts]]:
    """What lies at `path`, and the function that looks into it."""
    from coda.tokenizer.errors import CodaError

    folder = Path(path).expanduser()
    if path == "bundled" or (folder / "model_index.json").is_file():
        kind = _json(folder / "model_index.json").get("_class_name") if path != "bundled" else "CodaPipeline"
        return ("pipeline", _pipeline) if kind == "CodaPipeline" else ("continuous VAE", _vae)
    if (folder / "coda_tokenizer.json").is_file():
        return "tokenizer", _tokenizer
    if (folder / "manifest.json").is_file():
        return "code cache", _cache
    if (folder / "config.json").is_file() and _json(folder / "config.json").get("_class_name") == "MaskGitTransformer":
        return "generator", _generator
    if (folder / "run.json").is_file() and not _json(folder / "run.json").get("complete"):
        run = _json(folder / "run.json")
        raise CodaError(f"{path} holds an unfinished run ({run.get('kind')}): give its command again to finish it")
    return "continuous VAE", _vae


def _json(path: Path) -> dict[str, Any]:
    from coda.tokenizer.errors import CodaError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CodaError(f"{path} is no readable JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _cache(path: str, verify: bool) -> Facts:
    from coda.tokenizer.code_cache import CodeCache

    cache = CodeCache(path)
    if verify:
        cache.verify()
    seen = cache.labels[cache.labels >= 0].unique()
    return {
        "pictures": f"{cache.num_images:,}, in {len(cache) // max(cache.num_images, 1)} variants",
        "left out": f"{len(cache.manifest['skipped']):,} broken",
        "classes": f"{len(seen)} seen, of {cache.num_classes}",
        "layout": cache.layout,
        "tokenizer": cache.tokenizer_fingerprint,
    }


def _tokenizer(path: str) -> Facts:
    from coda.tokenizer import CodaTokenizer

    return _tokenizer_facts(CodaTokenizer.from_pretrained(path))


def _generator(path: str) -> Facts:
    from coda.generator import MaskGitTransformer

    from ..loading import check_weights

    transformer = MaskGitTransformer.from_pretrained(path, use_safetensors=True)
    check_weights(transformer, Path(path))
    return _generator_facts(transformer)


def _pipeline(path: str) -> Facts:
    from .model import load_whole_pipeline

    pipeline = load_whole_pipeline(path)
    scheduler = pipeline.scheduler.config
    how = ("num_inference_steps", "guidance_scale", "order", "temperature", "mask_law")
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
        "normalisation": "to be measured" if vae.needs_statistics else "known",
    }


def _tokenizer_facts(tokenizer: Any) -> dict[str, object]:
    import torch

    from coda.tokenizer.retrieval import retrieval_backend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantizer = tokenizer.quantizer
    width = max(quantizer.to_q.out_features, quantizer.config.latent_channels)
    return {
        "image size": "x".join(map(str, tokenizer.size)),
        "layout": tokenizer.layout,
        **_vae_facts(tokenizer.vae),
        "quantizer parameters": _parameters(quantizer),
        "retrieval": f"{retrieval_backend(device, quantizer.dtype, width)}, on {device.type}",
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
