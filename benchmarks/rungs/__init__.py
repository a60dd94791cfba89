"""The rungs of the ablation: tokenizers that are trained alike or need no training, and their figures."""
