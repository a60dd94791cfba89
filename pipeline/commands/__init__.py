"""One file per command of `coda`; its parameters are the flags, its docstring is the help.

The work is done in the other packages, which are imported inside the functions so that help answers at once. A
command returns the line that it ends with.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

# In the order of use: the command's words, and the module and function.
COMMANDS = {
    "train-vae": "train_vae:train_vae",
    "adapt": "adapt:adapt",
    "import-official": "import_official:import_official",
    "export-onnx": "export_onnx:export_onnx",
    "tokenize-dataset": "tokenize_dataset:tokenize_dataset",
    "merge-cache": "merge_cache:merge_cache",
    "cache export": "cache:export_cache",
    "cache import": "cache:import_cache",
    "inspect": "inspect:inspect",
    "train-maskgit": "train_maskgit:train_maskgit",
    "sample": "sample:sample",
    "sweep": "sweep:sweep",
    "edit inpaint": "edit:inpaint",
    "edit outpaint": "edit:outpaint",
    "edit vary": "edit:vary",
    "edit change-class": "edit:change_class",
    "reconstruct": "reconstruct:reconstruct",
    "demo": "demo:demo",
    "benchmark rfid": "benchmark_rfid:rfid",
    "benchmark gfid": "benchmark_gfid:gfid",
    "benchmark judge": "benchmark_judge:judge",
    "benchmark ablation": "benchmark_ablation:ablation",
    "benchmark peers": "benchmark_peers:peers",
    "benchmark speed": "benchmark_speed:speed",
    "benchmark speed-tokenize": "benchmark_speed_tokenize:speed_tokenize",
    "benchmark speed-sample": "benchmark_speed_sample:speed_sample",
    "doctor": "doctor:doctor",
    "completion": "completion:completion",
}
GROUPS = {
    "cache": "coda cache exports and imports code caches for programs that do not use coda.",
    "edit": "coda edit resamples part of an image's codes.",
    "benchmark": "coda benchmark measures what the other commands made, and writes JSON, Markdown and plots.",
}


def load_command(name: str) -> Callable[..., str]:
    """The function of a command by its name, such as "train-vae" or "benchmark rfid"."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(import_module(f".{module}", __name__), function)
