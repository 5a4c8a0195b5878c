"""A grid of runs: every combination once, failures marked, tables combined; here and on a dask cluster."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import one_thread
from kernels_for_keep import Weighted, whose
from tiny_notebooks import STORE, FakeKernel, write, write_all

from nbsupport import runner, runtime, store
from nbsupport.runner import Job, StageFailed, sweep
from nbsupport.runner.sweep import NoCluster, Point
from nbsupport.store import STAGES, RunInUse, journal, manifest, workers

GRID = """
dataset: [digits]
preset: smoke
parameters:
  n: [5, 6]
  radius: [0.1, 0.2]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path / "notebooks")


def read(folder: Path, text: str) -> list[Point]:
    path = folder.parent / "grid.yaml"
    path.write_text(text)
    return sweep.read(path, folder=folder)


def test_a_grid_is_the_product_of_its_lists(folder: Path) -> None:
    points = read(folder, GRID)
    assert [(point.values["n"], point.values["radius"]) for point in points] == [(5, 0.1), (5, 0.2), (6, 0.1), (6, 0.2)]
    assert all(point.values["dataset"] == "digits" for point in points)
    assert all(point.job.settings.preset == "smoke" for point in points)
    assert len({point.job.run_dir for point in points}) == 4


def test_a_grid_has_the_defaults_of_a_run(folder: Path) -> None:
    [point] = read(folder, "dataset: digits")
    assert point.job.run_dir.name == "digits-standard"
    assert dict(point.values) == {"dataset": "digits", "preset": "standard"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "grid.yaml is not YAML"),
        ("- digits", "expected a mapping with dataset, preset and parameters in .*grid.yaml, got list"),
        ("datasets: [digits]", "expected a key of .* did you mean 'dataset'"),
        ("parameters: [n]", "expected a mapping from names to lists under parameters, got list"),
        ("parameters: {n: []}", "expected a value or a list of values for n, got an empty list"),
        ("parameters: {n: &a [*b, *b], b: &b [1]}", "grid.yaml is not YAML"),
        ("null: 1", "expected a key of .*grid.yaml to be one of dataset, preset, parameters, got None"),
        ("parameters: {null: 1}", "expected parameter to be one of .* got 'None'"),
        ("parameters: {n: [[1]]}", "expected a value or a list of values for n, got a list or mapping inside"),
        ("dataset: {a: 1}", "expected a value or a list of values for dataset"),
        ("parameters: {radios: 1}", "did you mean 'radius'"),
        ("parameters: {n: [many]}", "expected n as int, got 'many'"),
        ("preset: [smok]", "did you mean 'smoke'"),
        ("parameters: {n: [5, '5']}", "got the same run twice: .*digits-standard-"),
    ],
)
def test_what_is_no_grid_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, text)


def test_a_file_that_is_not_text_is_refused(folder: Path) -> None:
    (folder.parent / "grid.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not YAML"):
        sweep.read(folder.parent / "grid.yaml", folder=folder)


def run(points: list[Point], monkeypatch: pytest.MonkeyPatch, fail_n: int | None = None) -> list[Point]:
    fake = FakeKernel()

    def execute(job: Job, stage: str) -> None:
        if job.settings.n == fail_n and stage == "02_training":
            raise StageFailed(stage, "ValueError: no", "", "copy")
        fake(job, stage)

    monkeypatch.setattr(runner, "execute_stage", execute)
    return sweep.run(points, lambda line: None)


def test_tables_are_combined_with_the_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = run(read(folder, GRID), monkeypatch)
    assert [point.error for point in points] == [None] * 4
    paths = sweep.combine(points, tmp_path / "runs" / "grid")
    assert {path.name for path in paths} >= {"03_attacks.csv", "runs.csv"}
    table = pd.read_csv(tmp_path / "runs" / "grid" / "03_attacks.csv")
    assert list(table.columns) == ["dataset", "preset", "parameter_n", "radius", "n", "share"]  # the table has an n
    assert list(table["parameter_n"]) == list(table["n"]) == [5, 5, 6, 6]
    assert list(table["radius"]) == [0.1, 0.2, 0.1, 0.2]


def test_a_failed_run_is_marked_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    points = run(read(folder, GRID), monkeypatch, fail_n=5)
    assert [point.error is None for point in points] == [False, False, True, True]
    sweep.combine(points, tmp_path / "combined")
    runs = pd.read_csv(tmp_path / "combined" / "runs.csv")
    assert list(runs["n"]) == [5, 5, 6, 6]
    assert runs["error"].str.contains("ValueError: no").tolist()[:2] == [True, True]
    assert runs["error"].isna().tolist()[2:] == [True, True]
    assert set(pd.read_csv(tmp_path / "combined" / "01_datasets.csv")["parameter_n"]) == {6}


def test_a_run_in_use_is_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = read(folder, "preset: smoke")
    with points[0].job.open().lock():
        [point] = run(points, monkeypatch)
    assert point.error is not None
    assert "is in use by process" in point.error


def test_a_run_whose_folder_cannot_be_written_is_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, fake = read(folder, "preset: smoke\nparameters: {n: [5, 6]}"), FakeKernel()

    def execute(job: Job, stage: str) -> None:
        if job.settings.n == 5:
            raise PermissionError(13, "Permission denied", "a.csv")
        fake(job, stage)

    monkeypatch.setattr(runner, "execute_stage", execute)
    errors = [point.error for point in sweep.run(points, lambda line: None)]
    assert errors == ["[Errno 13] Permission denied: 'a.csv'", None]


# On a dask cluster, mostly one that lives in this process


def test_dask_is_asked_for_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(NoCluster, match=r'--scheduler needs dask: pip install "nbsupport\[cluster\]"'),
        sweep.connect("tcp://localhost:1"),
    ):
        pass


def test_without_dask_runs_go_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    lines: list[str] = []
    with sweep.local(9, lines.append) as client:
        assert client is None
    assert lines == [
        'runs go one after another in this process: pip install "nbsupport[cluster]" lets them run side by side'
    ]


@pytest.mark.parametrize(
    ("runs", "cores", "memory", "device", "told"),
    [
        (1, 8, 64, "cpu", "one after another in this process: nothing would run beside them"),
        (9, 1, 64, "cpu", "one after another in this process: nothing would run beside them"),
        (9, 8, 2, "cpu", "one after another in this process: nothing would run beside them"),
        (9, 8, 64, "cuda", "one after another in this process: they share this machine's GPU"),
        (9, 8, 64, "cpu", "side by side on 8 workers of this machine, each with 8.0 GB of memory"),
        (9, 8, 18, "cpu", "side by side on 4 workers of this machine, each with 4.5 GB of memory"),
        (3, 8, 18, "cpu", "side by side on 3 workers of this machine, each with 6.0 GB of memory"),
    ],
)
def test_the_workers_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, runs: int, cores: int, memory: int, device: str, told: str
) -> None:
    dask, distributed = (pytest.importorskip(name, reason="no extra `cluster`") for name in ("dask", "distributed"))
    asked, lines = list[dict[str, Any]](), list[str]()
    monkeypatch.setattr(dask.system, "CPU_COUNT", cores)
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", memory * 2**30)
    monkeypatch.setattr(runtime, "best_device", lambda: SimpleNamespace(type=device))

    def cluster(**options: Any) -> Any:
        asked.append(options)
        return contextlib.nullcontext(SimpleNamespace(adapt=asked[-1].update))

    monkeypatch.setattr(distributed, "LocalCluster", cluster)
    monkeypatch.setattr(distributed, "Client", lambda cluster, **options: contextlib.nullcontext("client"))
    with sweep.local(runs, lines.append) as client:
        assert client == ("client" if asked else None)
    assert lines == [f"runs go {told}"]
    for options in asked:
        assert options["n_workers"] * options["memory_limit"] <= memory * 2**30
        assert options["threads_per_worker"] == 1
        assert options["minimum"] == options["n_workers"], "one that is gone is replaced"


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return runner.plan("digits", "smoke", {}, folder=write_all(tmp_path / "notebooks"))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            local = distributed.LocalCluster(**options)
        except AssertionError:  # dask gives its thread ten seconds to start, which a busy machine may exceed
            local = distributed.LocalCluster(**options)
        with local, sweep.connect(local.scheduler_address) as client:
            yield client


@pytest.mark.slow
@pytest.mark.parametrize("greeting", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, greeting: bytes | None) -> None:
    """One address is none; at the others a server accepts, and says nothing, or something else."""
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr(sweep, "_PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as accepted:
                accepted.sendall(greeting or b"")
                accepted.recv(2**16)

        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if greeting:
            threading.Thread(target=serve, daemon=True).start()
        why = {None: "unknown address scheme", b"": "no word in 1 seconds"}.get(greeting, "no word|another kind")
        if greeting is None:
            address = "nonsense://here"
        with (
            pytest.raises(NoCluster, match=f"no dask scheduler answers at {address}: .*({why})"),
            sweep.connect(address),
        ):
            pass


@pytest.mark.slow
def test_a_scheduler_that_dies_is_named_as_the_error_of_every_run(planned: Job) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as scheduler:
        try:
            assert scheduler.stderr is not None
            address = next(found[0] for line in scheduler.stderr if (found := re.findall("tcp://[^ ]+:[0-9]+", line)))

            def told(text: str) -> None:
                if "stage 1/7" in text:  # it waits for a worker
                    scheduler.kill()

            with sweep.connect(address, told) as client:
                [point] = sweep.run([Point(planned, {})], told, client=client)
        finally:
            scheduler.kill()
    assert point.error == "the dask scheduler is gone"
    with planned.open().lock():
        pass  # nobody holds it


@pytest.mark.slow
def test_the_stages_run_there_in_order(planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, lines = FakeKernel(), list[str]()
    monkeypatch.setattr(runner, "execute_stage", lambda job, stage, **options: fake(job, stage))
    for _ in range(2):
        with sweep.submit(client, [planned]) as (execute,):
            runner.run(planned, lines.append, execute=execute)
    assert fake.calls == list(STAGES)  # the second time all is complete
    assert "stage 7/7 07_adaptive_attacks: complete and verified, reused" in lines


@pytest.mark.slow
def test_a_failing_stage_stops_its_run_and_no_other(
    planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = runner.plan("digits", "smoke", {"n": 7}, folder=tmp_path / "notebooks")
    fake = FakeKernel()

    def execute(given: Job, stage: str, **options: object) -> None:
        if given.settings.n != 7 and stage == "02_training":
            raise StageFailed(stage, "ValueError: no", "", "copy")
        fake(given, stage)

    monkeypatch.setattr(runner, "execute_stage", execute)
    lines: list[str] = []
    first, second = sweep.run([Point(planned, {}), Point(other, {})], lines.append, client=client)
    assert all(line.startswith(("\nrun ", "[1/2] ", "[2/2] ", "\n[2/2] ")) for line in lines)
    assert "[2/2] stage 7/7 07_adaptive_attacks: What does it ask?" in lines
    assert first.error is not None
    assert "stage 02_training failed: ValueError: no" in first.error
    assert second.error is None
    assert fake.calls.count("03_attacks") == 1
    assert all(other.open().state(stage).name == "complete" for stage in STAGES)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_marked(planned: Job, client: Any) -> None:
    with planned.open().lock():
        with pytest.raises(RunInUse, match="is in use by process"), sweep.submit(client, [planned]) as (execute,):
            runner.run(planned, lambda line: None, execute=execute)
        [point] = sweep.run([Point(planned, {})], lambda line: None, client=client)
    assert point.error is not None


@pytest.fixture
def seen_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `tmp_path`, with modules of the tests that worker processes find too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))


@contextlib.contextmanager
def worker_processes(count: int) -> Iterator[Any]:
    """Yield a client of a cluster of so many processes, which run real kernels."""
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with (
        warnings.catch_warnings(action="ignore"),
        distributed.LocalCluster(n_workers=count, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.usefixtures("seen_there")
@pytest.mark.parametrize("dies", [False, True])
def test_shards_are_shared_by_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    """Equal to what one process computes, also where a worker dies in a shard; only what is missing is asked for."""
    run = store.open_run(tmp_path / "run", dataset="digits", preset="smoke")
    x, rows = torch.ones(5, 1, 2, 2), torch.arange(5.0)
    given: dict[str, Any] = {"factor": torch.tensor(3.0), "seed": ("whose",), "shard": 2}
    with one_thread():
        here = run.keep("attacks/normal/here", whose, Weighted(), x, rows, **given).value
    with worker_processes(2) as client, one_thread():
        monkeypatch.setenv(workers.ADDRESS, client.scheduler.address)
        given["mark"] = str(tmp_path / "mark") if dies else ""
        there = run.keep("attacks/normal/there", whose, Weighted(), x, rows, **given).value
        processes = set(client.run(os.getpid).values())
    assert torch.equal(here[:, 1:], there[:, 1:])
    assert here[:, 1:3].tolist() == [[1, 3 * row] for row in range(5)]
    assert set(here[:, 0].tolist()) == {os.getpid()}
    assert os.getpid() not in set(there[:, 0].tolist())
    assert dies or set(there[:, 0].tolist()) <= processes
    assert not dies or Path(given["mark"]).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("seen_there")
def test_a_run_with_workers_to_spare_lets_all_compute_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sweep, runner):
        monkeypatch.setattr(module, "STAGES", ("03_attacks",))
    cell = KEEP.replace("sums", "whose") + "print('kernel', os.getpid(), *kept.value[:, 0].int().tolist())"
    folder = write_all(tmp_path / "notebooks")
    write(folder / "03_attacks.ipynb", [cell, STORE.format(stage="03_attacks")])
    job = runner.plan("digits", "smoke", {}, folder=folder)
    for count, shared in ((1, False), (2, True)):
        with worker_processes(count) as client, sweep.submit(client, [job]) as (execute,):
            runner.run(job, lambda line: None, execute=execute)
            processes = set(client.run(os.getpid).values())
        [told] = re.findall("kernel ([0-9 ]+)", (job.run_dir / "notebooks" / "03_attacks.ipynb").read_text())
        kernel, *computed = map(int, told.split())
        assert set(computed) <= (processes if shared else {kernel})
        shutil.rmtree(job.run_dir)


KEEP = """
import os, signal, torch
from pathlib import Path
from kernels_for_keep import Weighted, sums
from nbsupport import store
run = store.open_run(run_dir, dataset=dataset, preset=preset, overrides=overrides)
kept = run.keep("attacks/normal/a", sums, Weighted(), torch.ones(4, 1, 2, 2), torch.arange(4), shard=2)
"""
KILL = """
os.makedirs({there!r}, exist_ok=True)
if run.settings.n == 5 and not Path({there!r}, "killed").exists():
    Path({there!r}, "killed").touch()
    os.kill(os.getppid(), signal.SIGKILL)
    os.read(os.pipe()[0], 1)
if run.settings.n == 6 and not Path({there!r}, "mended").exists():
    raise ValueError("made to fail")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("seen_there")
def test_a_killed_worker_and_a_failed_cell_cost_what_depends_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two worker processes: the kernel of one run kills its worker once, and a cell of another raises."""
    there, stages = str(tmp_path / "marks"), ("03_attacks", "04_region_classification")
    for module in (sweep, runner):
        monkeypatch.setattr(module, "STAGES", stages)
    folder = write_all(tmp_path / "notebooks")
    write(folder / "03_attacks.ipynb", [KEEP, KILL.format(there=there), STORE.format(stage="03_attacks")])
    write(folder / "04_region_classification.ipynb", [STORE.format(stage="04_region_classification")])
    points = read(folder, "preset: smoke\nparameters: {n: [5, 6]}")
    with worker_processes(2) as client:
        first, second = sweep.run(points, lambda line: None, client=client)
    assert first.error is None
    entries = journal.read(first.job.run_dir)
    assert Counter(entry["event"] for entry in entries if entry["stage"] == "03_attacks")["begun"] == 2
    assert {entry["pid"] for entry in entries if entry["event"] == "started"} != {
        entry["pid"] for entry in entries if entry["event"] == "reused"
    }, "the second worker goes on with what the first had kept"
    assert second.error is not None
    assert second.error.startswith("stage 03_attacks failed: ValueError: made to fail")
    assert second.job.open().state("04_region_classification").name == "missing"
    sweep.combine([first, second], tmp_path / "combined")
    assert (tmp_path / "combined" / "04_region_classification.csv").read_text().splitlines()[1:] == ["digits,smoke,5,5"]

    Path(there, "mended").touch()
    fake = FakeKernel()
    monkeypatch.setattr(runner, "execute_stage", fake)
    assert [point.error for point in sweep.run(points, lambda line: None)] == [None, None]
    assert fake.calls == list(stages), "of the second run alone"


@pytest.mark.slow
def test_what_is_interrupted_stops_on_the_worker_and_lets_the_folder_go(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cell = f"import os; os.write(os.open({str(tmp_path / 'pipe')!r}, os.O_WRONLY), b'x'); os.read(os.pipe()[0], 1)"
    write_all(tmp_path / "notebooks", {"01_datasets": [cell]})
    code = """
import signal, sys
from pathlib import Path
from nbsupport import cli
from nbsupport.runner import notebooks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
notebooks.FOLDER = Path("notebooks").absolute()
Path("grid.yaml").write_text("preset: smoke")
cli.main(["sweep", "grid.yaml", "--scheduler", sys.argv[1]])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parents[2])}
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", code, stack.enter_context(worker_processes(1)).scheduler.address]
        options = {"cwd": tmp_path, "env": environment, "stderr": subprocess.PIPE, "text": True}
        child = stack.enter_context(subprocess.Popen(command, **options))
        stack.callback(child.kill)
        pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, pipe)
        assert select.select([pipe], [], [], 300)[0], "the kernel did not start"
        assert os.read(pipe, 1) == b"x"
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=300)
        assert child.returncode == 130
        assert told.strip() == "Interrupted. To go on where it stopped, give the same command again."
        assert manifest.holder(tmp_path / "runs" / "digits-smoke") is None
        assert os.read(pipe, 1) == b"", "the kernel is gone"
