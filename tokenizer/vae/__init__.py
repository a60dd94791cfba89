"""Continuous VAEs: loading, normalization, LoRA and tiling."""
