"""Measures the callables and folders it is given: reconstruction, generation, ablation, speed. Knows no pipeline."""

from typing import TYPE_CHECKING

from coda.tokenizer.foundation.lazy import lazy_package

if TYPE_CHECKING:
    from .ablation import ablation
    from .compare_peers import compare_peers
    from .features.extractors import Features, FigureNames, load_extractor
    from .generation import generation_metrics
    from .judge_generator import judge_generator
    from .reconstruction import reconstruction_metrics
    from .reports.report import Figure, Report, Table
    from .sweep import sweep
    from .timing.speed import speed
    from .timing.tokenizing import tokenizing_speed

__all__ = lazy_package(
    __name__,
    {
        ".ablation": ["ablation"],
        ".compare_peers": ["compare_peers"],
        ".features.extractors": ["Features", "FigureNames", "load_extractor"],
        ".generation": ["generation_metrics"],
        ".judge_generator": ["judge_generator"],
        ".reconstruction": ["reconstruction_metrics"],
        ".reports.report": ["Figure", "Report", "Table"],
        ".sweep": ["sweep"],
        ".timing.speed": ["speed"],
        ".timing.tokenizing": ["tokenizing_speed"],
    },
)
