"""One notebook executed in a fresh kernel of the running interpreter."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class NotebookFailed(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """A cell raised, or the kernel died; `error` is one line, `traceback` the last lines before it."""

    def __init__(self, error: str, traceback: str) -> None:
        super().__init__(error, traceback)
        self.error, self.traceback = error, traceback

    def __str__(self) -> str:
        return self.error


def execute(source: Path, target: Path, parameters: Mapping[str, Any], *, cwd: Path) -> None:
    """Run the notebook `source` with `parameters` in the folder `cwd` and store the executed copy in `target`.

    While it runs, the copy so far lies beside `target` as `.NAME.running.ipynb` and the kernel's own output as
    `.NAME.log`; `target` appears when it ends, also when a cell failed. Raises NotebookFailed.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    running = target.with_name(f".{target.stem}.running.ipynb")
    log_path = target.with_name(f".{target.stem}.log")
    try:
        with log_path.open("wb") as log, _quiet():
            papermill.execute_notebook(
                str(source),
                str(running),
                parameters=dict(parameters),
                progress_bar=False,
                autosave_cell_every=2,
                start_timeout=120,
                kernel_manager_class=_kernel_manager(log, cwd),
            )
    except papermill.PapermillExecutionError as error:
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise NotebookFailed(f"{error.ename}: {error.evalue}", traceback) from None
    except (DeadKernelError, RuntimeError) as error:
        why = f"the kernel died, out of memory perhaps ({type(error).__name__}: {error})"
        raise NotebookFailed(why, log_path.read_text(errors="replace")) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            running.unlink(missing_ok=True)
        raise
    finally:
        log_path.unlink(missing_ok=True)
        if running.exists():
            running.replace(target)


def _kernel_manager(log: BinaryIO, cwd: Path) -> type:
    """Return a class of kernels of this interpreter, whichever kernels are installed under its name.

    They start in `cwd`, find this package also where it is not installed, and write to `log` what would otherwise
    disturb the terminal. They end within a second of this process, however that ends (ipykernel looks for its
    parent), and talk to it encrypted.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    package_root = str(Path(__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            environment = {**os.environ, "PYTHONPATH": search_path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
            self.transport_encryption = "auto"
            await super().start_kernel(**{**options, "cwd": str(cwd), "env": environment, "stdout": log, "stderr": log})

    return OwnKernel


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep Jupyter's log and deprecation warnings from the user of the command line."""
    loggers = [logging.getLogger(name) for name in ("papermill", "traitlets", "nbclient", "asyncio")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
