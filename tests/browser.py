"""A JupyterLab of its own and a headless Chromium that looks at it, for the tests marked `ui`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OFF = "gpu quic background-networking component-update sync dev-shm-usage"
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in OFF.split())]
ANNOUNCEMENTS = "@jupyterlab/apputils-extension:announcements"  # asks for news on the network
# Until then, "run all" only asks which kernel to take.
READY = """() => {
  const widget = window.jupyterapp?.shell?.currentWidget, kernel = widget?.sessionContext?.session?.kernel;
  return !!(widget?.sessionContext?.isReady && widget.context?.isReady
            && kernel?.connectionStatus === 'connected' && kernel.status === 'idle');
}"""
SECONDS = 60


def executable(playwright: Any) -> str:
    """Return the browser to start: $CHROMIUM, one that is installed, or playwright's own; skips where there is none."""
    own = playwright.chromium.executable_path
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None) or own
    if not Path(found).is_file():
        pytest.skip(f"no browser at {found}: install {NAMES[0]}, or name one in $CHROMIUM")
    return str(found)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless Chromium; skips where playwright or a browser is absent."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[ui]'")
    with sync_api.sync_playwright() as playwright:
        path = executable(playwright)
        try:
            browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        except sync_api.Error as error:  # playwright's own may lack libraries of the system
            pytest.skip(f"the browser at {path} does not start: {error.message.strip().splitlines()[0]}")
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def jupyter_lab(root: Path, home: Path) -> Iterator[str]:
    """Yield the address of a JupyterLab that serves the folder `root`, with a token and settings of its own."""
    folder = home / "config" / "labconfig"
    folder.mkdir(parents=True)
    (folder / "page_config.json").write_text(json.dumps({"disabledExtensions": {ANNOUNCEMENTS: True}}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment |= {f"JUPYTER_{name}": str(home / place) for name, place in places.items()}
    environment |= {f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("SETTINGS", "WORKSPACES")}
    environment |= {"IPYTHONDIR": str(home / "ipython")}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.{name}" for name in (f"port={port}", "port_retries=0", f"token={token}", "ip=127.0.0.1")]
    with (home / "lab.log").open("w+") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={root}"], env=environment, stdout=log, stderr=log, cwd=root
        )
        try:
            _wait_for(server, f"http://127.0.0.1:{port}/api/status?token={token}", log)
            yield f"http://127.0.0.1:{port}/doc/tree/{{}}?token={token}&reset"
        finally:
            server.terminate()  # Jupyter ends its kernels on SIGTERM
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Any) -> None:
    """Wait until the server answers; fails with its log where it ends or takes too long."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                log.seek(0)
                pytest.fail(f"JupyterLab does not answer:\n{log.read()[-3000:]}")
            time.sleep(0.1)  # the only way to wait for another process to listen
