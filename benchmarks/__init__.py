"""Measures what it is handed, callables and folders: reconstruction, generation, ablation, speed. Knows no pipeline."""

from .ablation import ablation
from .extractors import Features, FigureNames, load_extractor
from .generation import generation_metrics
from .reconstruction import reconstruction_metrics
from .report import Figure, Report, Table
from .speed import speed
from .tokenizing import tokenizing_speed

__all__ = [
    "Features",
    "Figure",
    "FigureNames",
    "Report",
    "Table",
    "ablation",
    "generation_metrics",
    "load_extractor",
    "reconstruction_metrics",
    "speed",
    "tokenizing_speed",
]
