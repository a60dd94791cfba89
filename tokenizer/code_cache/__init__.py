"""Codes of a whole data set on disk: written once, read at random, described in README.md."""

from .format import FORMAT_VERSION, ShardRows
from .merge import merge_caches
from .reader import CodeCache
from .writer import CacheWriter

__all__ = ["FORMAT_VERSION", "CacheWriter", "CodeCache", "ShardRows", "merge_caches"]
