"""Measures what it is handed, callables and folders: reconstruction, generation, ablation, speed. Knows no pipeline."""

from .ablation import ablation
from .extractors import Features, FigureNames, load_extractor
from .generation import generation_metrics
from .quantizing import quantizer_speed
from .reconstruction import reconstruction_metrics
from .report import Figure, Report, Table
from .scale import tokenizing_scale
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
    "quantizer_speed",
    "reconstruction_metrics",
    "speed",
    "tokenizing_scale",
    "tokenizing_speed",
]
