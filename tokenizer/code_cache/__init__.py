"""Codes of a whole data set on disk: written once, read at random, described in README.md."""

from .export import export_cache
from .format import FORMAT_VERSION, ShardRows
from .merge import merge_caches
from .npy_folder import import_npy
from .reader import CodeCache
from .stream import ShuffledBatches
from .writer import CacheWriter

__all__ = [
    "FORMAT_VERSION",
    "CacheWriter",
    "CodeCache",
    "ShardRows",
    "ShuffledBatches",
    "export_cache",
    "import_npy",
    "merge_caches",
]
