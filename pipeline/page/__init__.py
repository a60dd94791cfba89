"""The page of `coda demo`: sample, reconstruct, edit and look inside, in a browser on this machine."""
