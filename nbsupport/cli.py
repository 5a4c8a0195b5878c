"""The command line: run, status, sweep, bench. It checks and prints; the work is done elsewhere."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nbsupport import __version__, presets

STOPPED = 130  # as a shell reports an interrupted program
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
scheduler = click.option("--scheduler", metavar="ADDRESS", help="Run on the dask scheduler at this address.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Decision boundary analysis of adversarial examples."""


@contextlib.contextmanager
def _exit_codes(again: str = "To go on where it stopped, give the same command again.") -> Iterator[None]:
    """Turn what may go wrong into messages and exit codes: 2 before anything starts, 1 after."""
    from nbsupport import files, runner, store
    from nbsupport.runner import sweep

    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted. {again}", err=True)
        sys.exit(STOPPED)
    except (store.RunInUse, sweep.NoCluster) as error:
        raise click.UsageError(str(error)) from None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough: click ends without a word
        raise
    except (files.DamagedArtifact, runner.StageFailed, OSError) as error:
        lines = [str(error) or type(error).__name__]
        if f"[Errno {errno.ENOSPC}]" in lines[0]:
            lines.append("The disk is full: free some space first.")
        if not isinstance(error, files.DamagedArtifact):  # which says itself what to do
            lines.append(again)
        click.echo("\n".join(lines).strip(), err=True)
        sys.exit(1)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """Turn what is wrong with the arguments into a message and exit code 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from None


@main.command()
@click.argument("dataset", default="digits")
@click.option("--preset", default="standard", show_default=True, metavar="|".join(presets.PRESETS))
@click.option("--run-dir", type=click.Path(file_okay=False), help="Run folder [default: runs/DATASET-PRESET]")
@click.option("-p", "named", type=(str, str), multiple=True, metavar="NAME VALUE", help="Set a parameter by name.")
@click.option("--dry-run", is_flag=True, help="Print the settings and what would run.")
@scheduler
def run(named: tuple[tuple[str, str], ...], dry_run: bool, scheduler: str | None, **chosen: Any) -> None:
    """Run all notebooks on DATASET: digits (the default), mnist, cifar10, folder:PATH or npz:PATH.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from nbsupport import runner
    from nbsupport.runner import sweep

    with _exit_codes():
        with _usage():
            if len(dict(named)) < len(named):
                raise ValueError("expected every parameter once, got one of them twice after -p")
            job = runner.plan(overrides=dict(named), **chosen)
        if dry_run:
            click.echo(runner.describe(job))
            return
        with sweep.connect(scheduler) as client:
            runner.run(job, click.echo, execute=sweep.submit(client, job))


@main.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False))
@click.option("--tables", is_flag=True, help="Also print every table in full, the figures' paths and the seconds.")
def status(run_dir: str, tables: bool) -> None:
    """Show how far the run in RUN_DIR has come, also while it goes on."""
    from nbsupport import store
    from nbsupport.runner import report

    with _exit_codes(again=""):
        with _usage():
            opened = store.existing_run(run_dir)
        click.echo(report.status(opened))
        if tables:
            click.echo("\n" + report.tables(opened))


@main.command()
@click.argument("grid", type=FILE)
@scheduler
def sweep(grid: Path, scheduler: str | None) -> None:
    """Run every combination in GRID, a YAML file with dataset, preset and parameters, and combine the tables."""
    from nbsupport.runner import sweep as grids
    from nbsupport.store import manifest

    target = Path("runs", grid.stem).resolve()
    with _exit_codes():
        with _usage():
            if (target / manifest.NAME).exists():
                raise ValueError(f"the tables of this grid would go to {target}, which holds a run; rename {grid}")
            points = grids.read(grid)
        with grids.connect(scheduler) as client:
            points = grids.run(points, click.echo, client=client)
        click.echo("\ncombined tables")
        for path in grids.combine(points, target):
            click.echo(f"  {path}")
    if failed := [f"failed: {point.job.run_dir}" for point in points if point.error]:
        sys.exit("\n".join(failed))


@main.command()
@click.argument("what", type=click.Choice(["attacks", "boundary", "region", "published", "all"]))
@click.option("--images", type=click.IntRange(min=1), help="Images measured on; the default depends on WHAT.")
@click.option("--model", type=FILE, help="A stored model to measure.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the rows here.")
def bench(what: str, images: int | None, model: Path | None, json_path: Path | None) -> None:
    """Time the kernels on this machine, against plain code and, where it is installed, Foolbox.

    "published" searches for OPTMARGIN with the steps of its authors: a quarter of an hour, and no part of "all".
    Without a stored model one is trained for some seconds: on MNIST where $NBSUPPORT_DATA has it, else on digits.
    """
    from nbsupport import bench as loops

    kept = "" if json_path is None else f" Rows are in {json_path} as soon as they are measured."
    with _exit_codes(again=f"The same command begins anew.{kept}"):
        narrator = loops.Narrator(lambda line: click.echo(line, err=True))
        with _usage():
            subject = loops.obtain(loops.most_images(what, images), model, narrator)
        click.echo(loops.run(what, subject, narrator, images=images, keep=json_path).as_text())
