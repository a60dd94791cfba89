"""`coda inspect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.arguments import Count, Seed
from ..cli.plain_table import plain_table

if TYPE_CHECKING:
    from torch import nn

Facts = Mapping[str, object]


def inspect(
    path: str,
    *,
    verify: bool = False,
    tokenizer: str | None = None,
    num: Count = 16,
    seed: Seed = 0,
    out: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Look into a code cache, a tokenizer, a generator, a pipeline or a VAE.

    Models are loaded, so that a damaged file or a missing weight shows. Of a cache: usage of the codebook per level,
    balance of the classes, pictures with the same codes, what was left out and why, and a picture of some samples.

    Args:
        path: Directory, file or hub id.
        verify: Also compare the checksums of all codes of a cache.
        tokenizer: Directory or hub id of the tokenizer that made the cache; runs/tokenizer, if it did, where none is
            given.
        num: Samples of the cache in the picture.
        seed: Of their drawing.
        out: The picture, a PNG; runs/inspect.png if not given, where there is none yet.
        overwrite: Replace what is at --out.

    Examples:
        coda inspect runs/cache --verify
        coda inspect runs/cache --tokenizer runs/tokenizer --num 64 --seed 1 --out samples.png
    """
    kind, look = _what(path)
    if look is None:
        from .inspect_cache import inspect_cache

        lines = inspect_cache(path, verify, tokenizer, num, seed, out, overwrite)
    else:
        drawn = {
            "--tokenizer": tokenizer is not None,
            "--num": num != 16,
            "--seed": seed != 0,
            "--out": out is not None,
        }
        _refuse(path, kind, {"--verify": verify, **drawn, "--overwrite": overwrite})
        lines = plain_table((name, value) for name, value in look(path).items() if value is not None)
    return "\n".join([*lines, f"{path} is a whole {kind}" + (", every code verified" if verify else "")])


def _refuse(path: str, kind: str, given: Mapping[str, bool]) -> None:
    """Refuse flags that only a code cache has a use for, each with whether it was given.

    Raises:
        CodaError: One was.
    """
    from coda.tokenizer.foundation.errors import CodaError

    for flag, is_given in given.items():
        if is_given:
            why = "which is verified by loading it" if flag == "--verify" else "of which no picture is made"
            raise CodaError(f"{path} is a {kind}, {why}; {flag} is for code caches")


def _what(path: str) -> tuple[str, Callable[[str], Facts] | None]:
    """What lies at `path`, and the function that looks into it; None for a code cache, which has a file of its own."""
    from coda.tokenizer.foundation.errors import CodaError
    from coda.tokenizer.foundation.reading import read_json

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
        raise CodaError(f"{path} holds an unfinished run ({run.get('kind')}): give its command again to finish it")
    return "continuous VAE", _vae


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
        "normalisation": "to be measured" if vae.is_unnormalized else "known",
    }


def _tokenizer_facts(tokenizer: Any) -> dict[str, object]:
    import torch

    from coda.tokenizer.quantizer.retrieval import retrieval_backend

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
