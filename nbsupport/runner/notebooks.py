"""The notebooks of a run: what each asks and takes, and how one is executed in a fresh kernel."""

import asyncio
import contextlib
import json
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, BinaryIO

from nbsupport import checks, files
from nbsupport.runner.watch import Watch

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


class StageFailed(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """A stage ended without its outputs: a cell raised, the kernel died, or nothing was recorded.

    `error` is one line, `traceback` the last lines that the kernel gave, `copy` the executed notebook.
    """

    def __init__(self, stage: str, error: str, traceback: str, copy: str) -> None:
        super().__init__(stage, error, traceback, copy)
        self.stage, self.error, self.traceback, self.copy = stage, error, traceback, copy

    def __str__(self) -> str:
        last = [line for line in self.traceback.splitlines() if line.strip()][-12:]
        quoted = "".join(f"    {line}\n" for line in last)
        return f"stage {self.stage} failed: {self.error}\n{quoted}executed notebook: {self.copy}"


def require(folder: Path, stages: Sequence[str], parameters: Mapping[str, Any]) -> None:
    """Raise unless `folder` has the notebook of every stage, and each takes all of `parameters`.

    Raises FileNotFoundError where a notebook is absent and ValueError where one has no cell tagged `parameters`
    or does not define one of the names there.
    """
    if absent := [stage for stage in stages if not (folder / f"{stage}.ipynb").is_file()]:
        raise FileNotFoundError(
            f"no notebooks {', '.join(absent)} in {folder}: they belong to the source tree and are not installed with "
            "the package; run from a checkout, or install it with `pip install --editable`"
        )
    import papermill

    for stage in stages:
        defined = papermill.inspect_notebook(str(folder / f"{stage}.ipynb"))
        if not defined:
            raise ValueError(f"the notebook {stage} has no cell tagged `parameters`")
        for name in parameters:
            checks.choice(name, defined, name=f"a parameter of the notebook {stage}")


def question(notebook: Path) -> str:
    """Return the first sentence of `notebook` that ends with a question mark, else its title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").strip()
    sentences = [" ".join(sentence.split()) for sentence in re.split(r"\n\n|(?<=[.!?])\s+", prose)]
    title = prose.partition("\n")[0] or notebook.stem
    return next((sentence for sentence in sentences if sentence.endswith("?")), title).lstrip("#>*_ ")


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> None:
    """Run the notebook `source` with `parameters` in the folder `cwd` and store the executed copy in `target`.

    While it runs, the copy so far lies beside `target` as `.NAME.running.ipynb` and the kernel's own output as
    `.NAME.log`; `target` appears when it ends, also when a cell failed. What `environment` sets, the kernel has beside
    the variables of this process. Raises StageFailed, also where `watch` gives the kernel up, and CancelledError where
    that was cancelled.
    """
    import papermill

    watch = watch or Watch()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    running = target.with_name(f".{target.stem}.running.ipynb")
    log_path = target.with_name(f".{target.stem}.log")
    try:
        with log_path.open("wb") as log, warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as stack:
            for logger in map(logging.getLogger, ("papermill", "traitlets", "nbclient", "asyncio")):
                stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)  # Jupyter's log is not for the user of the command line
            options = {
                "kernel_manager_class": _kernel_manager(log, cwd, environment or {}, watch),
                "progress_bar": False,
            }
            options |= {"autosave_cell_every": 2, "start_timeout": 120, "parameters": dict(parameters)}
            papermill.execute_notebook(str(source), str(running), **options)
    except papermill.PapermillExecutionError as error:
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise StageFailed(source.stem, f"{error.ename}: {error.evalue}", traceback, str(target)) from None
    except RuntimeError as error:  # nbclient's DeadKernelError is one
        if watch.cancelled():
            raise CancelledError from None
        why = watch.why or f"the kernel died, out of memory perhaps ({type(error).__name__}: {error})"
        raise StageFailed(source.stem, why, log_path.read_text(errors="replace"), str(target)) from None
    except OSError as error:
        if error.errno in files.FULL:
            running.unlink(missing_ok=True)
        raise
    finally:
        log_path.unlink(missing_ok=True)
        if running.exists():
            running.replace(target)


def _kernel_manager(log: BinaryIO, cwd: Path, given: Mapping[str, str], watch: Watch) -> type:
    """Return a class of kernels of this interpreter, whichever kernels are installed under its name.

    They start in `cwd` with the `given` environment, find this package also where it is not installed, and write to
    `log` what would otherwise disturb the terminal. They end within a second of this process, however that ends
    (ipykernel looks for its parent), or when `watch` gives them up, and talk to it encrypted.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    package_root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": search_path, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **given}

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            environment = {**os.environ, **own}
            self.transport_encryption = "auto"
            await super().start_kernel(**{**options, "cwd": str(cwd), "env": environment, "stdout": log, "stderr": log})

        watched: Any = None

        def client(self, **options: Any) -> Any:
            self.watched = super().client(**options)
            return self.watched

        async def _async_is_alive(self) -> bool:  # asked by nbclient about once a second while a cell runs
            alive = await super()._async_is_alive()
            process: Any = self.provisioner
            heart = self.watched.hb_channel if self.watched else None
            if alive and heart and watch.gives_up(process.pid, beats=heart.is_beating()):
                await process.kill()
                with contextlib.suppress(TimeoutError):  # a driver may keep it
                    await asyncio.wait_for(process.wait(), 10)
                return False
            return alive

        is_alive = _async_is_alive

    return OwnKernel
