"""Sets of images that are compared: folders, .npz files, samples of a model."""
