"""Packages whose names are loaded on first use (PEP 562), so that settings and commands import without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_package(package: str, modules: Mapping[str, Sequence[str]]) -> list[str]:
    """Make the public names of a package load on first use.

    Args:
        package: `__name__` of the package.
        modules: Public names by the module that defines them, relative (".adapt") or absolute ("diffusers").

    Returns:
        `__all__` of the package.
    """
    home = {name: module for module, names in modules.items() for name in names}

    class LazyPackage(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in home:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = getattr(import_module(home[name], package), name)
            self.__dict__[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # Importing the submodule `adapt` must not hide the function `adapt`.
            if not (name in home and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*self.__dict__, *home})

    sys.modules[package].__class__ = LazyPackage
    return sorted(home)
