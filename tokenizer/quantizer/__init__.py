"""The residual quantizer: retrieval from one codebook, level by level."""
