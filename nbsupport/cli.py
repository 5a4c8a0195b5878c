"""The command line: run, status, export, html, compare, sweep, bench. It checks and prints; others do the work."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nbsupport import __version__, files, presets, runner, store
from nbsupport.runner import report
from nbsupport.runner import sweep as grids

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
existing = click.argument("run_dir", type=click.Path(exists=True, file_okay=False))
to = click.option("--to", type=FOLDER, help="Folder to write to [default: one in RUN_DIR, named as the command]")
scheduler = click.option("--scheduler", metavar="ADDRESS", help="Run on the dask scheduler at this address.")


class Commands(click.Group):
    """Commands that turn what may go wrong into messages and exit codes: 2 before anything starts, 1 after."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; it says in `ctx.meta["again"]` what the user can do who wants to go on."""
        try:
            return super().invoke(ctx)
        except (store.RunInUse, grids.NoCluster) as error:
            raise click.UsageError(str(error)) from None
        except BrokenPipeError:  # the reader, such as `head`, has seen enough: click ends without a word
            raise
        except KeyboardInterrupt:
            text, code = "\nInterrupted. ", 130  # as a shell reports an interrupted program
        except (files.DamagedArtifact, runner.StageFailed, OSError) as error:
            text, code = f"{str(error) or type(error).__name__}\n", 1
            text += _room(text)
            if isinstance(error, files.DamagedArtifact):  # which says itself what to do
                ctx.meta["again"] = ""
        text += ctx.meta.get("again", "To go on where it stopped, give the same command again.")
        click.echo(text.rstrip(), err=True)
        sys.exit(code)


def _room(text: str) -> str:
    """Return what to do where `text` says that nothing more can be written, else nothing."""
    return "".join(f"{remedy}\n" for number, remedy in files.FULL.items() if f"[Errno {number}]" in text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Decision boundary analysis of adversarial examples."""


def _checked(check: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Return what `check` returns; what is wrong with the arguments becomes a message and exit code 2."""
    try:
        return check(*given, **named)
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None


@main.command()
@click.argument("dataset", default="digits")
@click.option("--preset", default="standard", show_default=True, metavar="|".join(presets.PRESETS))
@click.option("--run-dir", type=click.Path(file_okay=False), help="Run folder [default: runs/DATASET-PRESET]")
@click.option("-p", "named", type=(str, str), multiple=True, metavar="NAME VALUE", help="Set a parameter by name.")
@click.option("--dry-run", is_flag=True, help="Print the settings, what would run, and about how long.")
@scheduler
def run(named: tuple[tuple[str, str], ...], dry_run: bool, scheduler: str | None, **chosen: Any) -> None:
    """Run all notebooks on DATASET: digits (the default), mnist, cifar10, folder:PATH or npz:PATH.

    A run that was stopped goes on where it was when the same command is given again.
    """
    if len(dict(named)) < len(named):
        raise click.UsageError("expected every parameter once, got one of them twice after -p")
    job = _checked(runner.plan, overrides=dict(named), **chosen)
    if dry_run:
        from nbsupport.bench import estimate  # which loads torch

        click.echo(runner.describe(job))
        click.echo(estimate.as_text(job.settings, runner.unfinished(job)))
        return
    with grids.connect(scheduler, click.echo) as client, grids.submit(client, [job]) as (execute,):
        runner.run(job, click.echo, execute=execute)


@main.command()
@existing
@click.option("--tables", is_flag=True, help="Also print every table in full, the figures' paths and the seconds.")
@click.pass_context
def status(ctx: click.Context, run_dir: str, tables: bool) -> None:
    """Show how far the run in RUN_DIR has come, also while it goes on."""
    ctx.meta["again"] = ""  # nothing stopped, nothing goes on
    opened = _checked(store.existing_run, run_dir)
    click.echo(report.status(opened))
    if tables:
        try:
            click.echo("\n" + report.tables(opened))
        except ValueError as error:  # published.csv, which a person wrote
            raise click.UsageError(str(error)) from None


def _write(ctx: click.Context, write: Callable[..., Any], run_dir: str, to: Path | None) -> None:
    """Let `write` store what it makes of the run in `to`, by default a folder of the run named as the command."""
    ctx.meta["again"] = "The same command begins anew."
    opened = _checked(store.existing_run, run_dir)
    _checked(write, opened, to or opened.path(str(ctx.info_name)), click.echo)


@main.command()
@existing
@to
@click.pass_context
def export(ctx: click.Context, run_dir: str, to: Path | None) -> None:
    """Write the tables of RUN_DIR as LaTeX, its adversarial examples as npz and PNG, and a BibTeX file."""
    from nbsupport.runner.export import export as write

    _write(ctx, write, run_dir, to)


@main.command()
@existing
@to
@click.pass_context
def html(ctx: click.Context, run_dir: str, to: Path | None) -> None:
    """Write RUN_DIR as HTML pages for any web server: chapters, tables, figures and the explorer's pictures."""
    from nbsupport.pages import write

    _write(ctx, write, run_dir, to)


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--to",
    type=FOLDER,
    default=Path("runs", "compared"),
    show_default=True,
    help="Folder to write to.",
)
@click.pass_context
def compare(ctx: click.Context, runs: tuple[str, ...], to: Path) -> None:
    """Put finished runs side by side: a table and a figure of their numbers, differences and verdicts."""
    from nbsupport.runner.compare import compare as write

    ctx.meta["again"] = "The same command begins anew."
    _checked(write, [_checked(store.existing_run, each) for each in runs], to, click.echo)


@main.command()
@click.argument("grid", type=FILE)
@scheduler
def sweep(grid: Path, scheduler: str | None) -> None:
    """Run every combination in GRID, a YAML file with dataset, preset and parameters, and combine the tables.

    Where dask is installed (the extra `cluster`), runs go side by side, by default on the cores of this machine.
    """
    target = Path("runs", grid.stem).resolve()
    if (target / store.manifest.NAME).exists():
        raise click.UsageError(f"the tables of this grid would go to {target}, which holds a run; rename {grid}")
    points = _checked(grids.read, grid)
    cluster = grids.connect(scheduler, click.echo) if scheduler else grids.local(len(points), click.echo)
    with cluster as client:
        points = grids.run(points, click.echo, client=client)
    click.echo("\n  ".join(["\ncombined tables", *map(str, grids.combine(points, target))]))
    if len(done := [str(point.job.run_dir) for point in points if not point.error]) > 1:
        click.echo(f"side by side: {shlex.join(['nbsupport', 'compare', *done])}")
    if failed := [point for point in points if point.error]:
        errors = [str(point.error) for point in failed]
        lines = [f"failed: {point.job.run_dir}: {point.error}".splitlines()[0] for point in failed]
        sys.exit("\n".join([*lines, _room("".join(errors)) + "The same command runs only what is missing."]))


@main.command()
@click.argument("what", type=click.Choice(["attacks", "boundary", "region", "published", "all"]))
@click.option("--images", type=click.IntRange(min=1), help="Images measured on; the default depends on WHAT.")
@click.option("--model", type=FILE, help="A stored model to measure.")
@click.option("--json", "keep", type=click.Path(dir_okay=False, path_type=Path), help="Also write the rows here.")
@click.pass_context
def bench(ctx: click.Context, what: str, images: int | None, model: Path | None, keep: Path | None) -> None:
    """Time the kernels on this machine, against plain code and, where it is installed, Foolbox.

    "published" searches for OPTMARGIN with the steps of its authors: a quarter of an hour, and no part of "all".
    Without a stored model one is trained for some seconds: on MNIST where $NBSUPPORT_DATA has it, else on digits.
    """
    from nbsupport import bench as loops  # which loads torch

    kept = f" Rows are in {keep} as soon as they are measured." if keep else ""
    ctx.meta["again"] = f"The same command begins anew.{kept}"
    narrator = loops.Narrator(lambda line: click.echo(line, err=True))
    subject = _checked(loops.obtain, loops.most_images(what, images), model, narrator)
    click.echo(loops.run(what, subject, narrator, images=images, keep=keep).as_text())
