"""Measures the callables and folders it is given: reconstruction, generation, ablation, speed. Knows no pipeline."""

from typing import TYPE_CHECKING

from coda.tokenizer.foundation.lazy import lazy_package

if TYPE_CHECKING:
    from .ablation import ablation
    from .extractors import Features, FigureNames, load_extractor
    from .generation import generation_metrics
    from .quantizing import quantizer_speed
    from .reconstruction import reconstruction_metrics
    from .report import Figure, Report, Table
    from .speed import speed
    from .tokenizing import tokenizing_speed

__all__ = lazy_package(
    __name__,
    {
        ".ablation": ["ablation"],
        ".extractors": ["Features", "FigureNames", "load_extractor"],
        ".generation": ["generation_metrics"],
        ".quantizing": ["quantizer_speed"],
        ".reconstruction": ["reconstruction_metrics"],
        ".report": ["Figure", "Report", "Table"],
        ".speed": ["speed"],
        ".tokenizing": ["tokenizing_speed"],
    },
)
