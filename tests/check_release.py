"""What `make release-check` runs on a built wheel: it samples in a clean environment, with the network off.

    python tests/check_release.py dist/coda-0.1.0-py3-none-any.whl

The environment sees the packages of the one that runs this, but not the checkout: links of editable installs are not
followed there. Without a bundled model, it only shows that `coda doctor` runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

REFUSE = """
import socket
def refuse(*args): raise OSError("the network is off")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def check_wheel(wheel: Path, folder: Path) -> str:
    """Install `wheel` into an environment in `folder`, and sample class 207; returns what was done."""
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    unshare = ["unshare", "--map-root-user", "--net"]
    prefix = unshare if _succeeds([*unshare, "true"]) else []

    def run(*words: str) -> str:
        command = [*prefix, str(python), *words]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    site = Path(run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "packages_of_the_project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(REFUSE)
    where = run(
        "-c", "import coda.pipeline.loading as loading; print(loading.__file__, loading.BUNDLED_MODEL.exists())"
    )
    place, bundled = where.split()[-2:]
    assert Path(place).is_relative_to(site), f"not the wheel was imported, but {place}"
    run("-m", "coda.pipeline", "doctor")
    how = "in a network namespace of its own" if prefix else "with sockets refused"
    if bundled == "False":
        return f"{wheel.name} runs {how}; it holds no bundled model, so nothing was sampled"
    run("-m", "coda.pipeline", "sample", "--class", "207", "--num", "1", "--out", "samples")
    (image,) = (folder / "samples").glob("207-*.png")
    return f"{wheel.name} sampled {image.name} {how}"


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(check_wheel(Path(sys.argv[1]).resolve(), Path(name)))
