"""The house: which room may import which, and what its files may be called."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["tokenizer", "generator", "benchmarks", "pipeline"]  # each may import those before it
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all that a file imports, at whatever depth of nesting."""
    names = []
    package = ["coda", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names.append(".".join([*base, *([node.module] if node.module else [])]))
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    for name in imported_modules(path):
        parts = name.split(".")
        assert parts[0] not in LAYERS, f"{name}: a bare name would load every class twice; import coda.{name}"
        if parts[0] == "coda" and len(parts) > 1:
            assert LAYERS.index(parts[1]) <= layer, f"{name} is imported upward"


def test_the_generator_knows_no_vae() -> None:
    for path in sorted((ROOT / "generator").rglob("*.py")):
        for name in imported_modules(path):
            assert "vae" not in name.lower() and "autoencoder" not in name.lower(), f"{path.name} imports {name}"
            assert name != "coda.tokenizer.tokenizer", f"{path.name} imports {name}"


def test_file_names_say_what_is_in_them() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
    assert not [path for path in SOURCES if path.stem in vague]


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in SOURCES}
    assert not {name: n for name, n in lengths.items() if n > 500}


def test_importing_the_pipeline_is_quick_and_light() -> None:
    code = "import sys, coda.pipeline; print([m for m in ('torch', 'diffusers', 'numpy', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", LAYERS)
def test_packages_offer_what_they_name(name: str) -> None:
    package = importlib.import_module(f"coda.{name}")
    assert not [word for word in package.__all__ if not hasattr(package, word)]
