"""The model that ships with the package, in `model/`, and the recipe that made it, `train.py`."""
