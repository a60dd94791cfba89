"""The generators of `compare_peers`: ours and others, trained and sampled in the same way."""
