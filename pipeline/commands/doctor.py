"""`coda doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from ..cli.plain_table import plain_table

if TYPE_CHECKING:
    import torch

# What each extra is for, by its name in pyproject.toml.
_USES = {
    "xformers": "memory-efficient attention on a GPU",
    "fidelity": "Fréchet distance, KID, precision and recall",
    "plots": "curves of trainings, plots of benchmarks",
    "page": "the page of coda demo",
    "lpips": "the perceptual loss of the paper (--perceptual lpips)",
    "onnx": "coda export-onnx",
    "demo": "the photographs of make demo",
}


def doctor() -> str:
    """Show versions, devices and what is missing, and what to type to get it.

    Examples:
        coda doctor
    """
    optional = list(_optional_packages())
    missing = ", ".join(name for name, version, _, _ in optional if version is None) or "none"
    rows = [
        (name, version or "missing", use if version else f"{use}: {command}")
        for name, version, use, command in optional
    ]
    return "\n".join(
        [
            *plain_table(_versions()),
            "",
            *plain_table(_machine()),
            "",
            "Optional:",
            *plain_table(rows),
            "",
            f"Everything that is needed is here; optional packages that are missing: {missing}",
        ]
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "coda", metadata.version("coda")
    for name, extra, _ in _requirements():
        if extra is None:
            yield name, metadata.version(name)


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    from coda.tokenizer.foundation.device import resolve_device
    from coda.tokenizer.foundation.errors import CodaError
    from coda.tokenizer.quantizer.retrieval import retrieval_backend

    from ..loading import bundled_model

    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    else:
        built = "a build of torch for CUDA" if torch.version.cuda else "a CPU build of torch"
        yield "GPU", f"none that torch can use ({built}): everything runs on the CPU, large models slowly"
    device = resolve_device("auto")
    yield "--device auto", device.type
    yield "--dtype bfloat16", _bfloat16(device)
    yield "attention", ", ".join(_attention_backends())
    try:
        yield "retrieval", f"{retrieval_backend(device, torch.float32)} (CODA_RETRIEVAL names another)"
    except CodaError as error:
        yield "retrieval", str(error)
    try:
        yield "bundled model", str(bundled_model())
    except CodaError as error:
        yield "bundled model", str(error)


def _bfloat16(device: torch.device) -> str:
    """Whether bfloat16 trains faster here."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "the default of trainings" if native else "emulated by this GPU: slower than float32"
    if device.type == "mps":
        return "not tried on MPS"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16"):
        return "trainings are several times faster with it on this CPU, which has AMX (the default is float32)"
    return "emulated by this CPU: much slower than float32"


def _attention_backends() -> Iterator[str]:
    """Names for `transformer.set_attention_backend`."""
    yield "native (torch)"
    try:
        import_module("xformers.ops")
        yield "xformers"
    except ImportError:
        yield "no xformers"
    except Exception as error:  # it was built for another torch
        yield f"xformers is installed but does not load ({type(error).__name__})"


def _optional_packages() -> Iterator[tuple[str, str | None, str, str]]:
    """Name, version (None if it is missing), use, and the command that installs it."""
    for name, extra, requirement in _requirements():
        if extra in _USES:
            yield name, _version(name), _USES[extra], f"pip install '{requirement}'"
    yield "torchvision", _version("torchvision"), "nothing here; some of the above bring it", "no need to install it"
    yield "triton", _version("triton"), "fused retrieval on a GPU", "builds of torch for CUDA bring it"


def _requirements() -> Iterator[tuple[str, str | None, str]]:
    """Name, extra and specification of every package that the installed coda asks for."""
    for line in metadata.requires("coda") or []:
        specification, _, marker = (part.strip() for part in line.partition(";"))
        extra = marker.partition("extra ==")[2].strip(" '\"") or None
        name = specification.split("[")[0]
        for sign in "<>=!~ ":
            name = name.split(sign)[0]
        yield name, extra, specification


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
