"""The run folder: everything a run stores, found again, verified, and resumed where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport import files, presets
from nbsupport.files import DamagedArtifact
from nbsupport.store import kept, manifest, workers
from nbsupport.store.journal import Journal

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from nbsupport.data import ImageSet

Kernel = Callable[..., Any]
Seed = Sequence[object] | None
Frames = Mapping[str, "pd.DataFrame"]
Figures = Mapping[str, "Figure"]

# Which notebook stores what lies in a folder of the run.
MADE_BY = dict.fromkeys(("models", "accuracy"), "02_training")
MADE_BY |= dict.fromkeys(("attacks", "evasion"), "03_attacks")
MADE_BY |= dict.fromkeys(("region", "region_other"), "04_region_classification")
MADE_BY |= dict.fromkeys(("boundary", "geometry", "audit"), "05_boundary_analysis")
MADE_BY |= dict.fromkeys(("detector", "detector_no_purity"), "06_detector")
MADE_BY |= dict.fromkeys(("adaptive", "judged", "mimicked"), "07_adaptive_attacks")


class MissingInput(FileNotFoundError):  # noqa: N818  (the name says what is wrong)
    """A file that another notebook makes is not there; the message says which notebook and how to run it."""


class Run:
    """One run folder with its settings; made by `open_run`.

    Attributes
    ----------
    dir : Path
        The absolute path of the folder.
    settings : presets.Settings
        The parameters of the run.
    journal : Journal
        Where progress is reported.
    """

    def __init__(self, run_dir: Path, settings: presets.Settings) -> None:
        self.dir, self.settings, self.journal = run_dir, settings, Journal(run_dir)
        self._opened = time.monotonic()
        self._read: dict[str, kept.Stored] = {}  # every file is read and verified once
        self._kept: dict[str, None] = {}  # what this process has stored, in order
        self._made_from: dict[str, dict[str, str]] = {"data": {}, "files": {}, "sources": {}}
        self._told: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        from nbsupport import runtime

        return runtime.best_device()

    @property
    def command(self) -> str:
        """The command line that goes on with this run."""
        return manifest.command(self.settings, self.dir)

    def path(self, *parts: str) -> Path:
        """Return the absolute path of a file in the folder; nothing is created."""
        return self.dir.joinpath(*parts)

    # Images and models

    @functools.cached_property
    def train(self) -> ImageSet:
        """The training images, the validation part among them (the last `validation_n`).

        Raises ValueError where fewer than twice `validation_n` are there, or a run has more directions than pixels.
        """
        from nbsupport import data

        s = self.settings
        images = data.load(s.train_data, train=True, root=s.root, limit=s.train_n)
        if len(images) < 2 * s.validation_n:
            raise ValueError(
                f"expected at least {2 * s.validation_n} training images, of which {s.validation_n} are kept "
                f"aside for validation, got {len(images)}; lower that with -p validation_n N"
            )
        if (s.directions or 0) > images.x[0].numel():
            raise ValueError(
                f"expected at most {images.x[0].numel()} directions, one for each pixel and channel, got "
                f"{s.directions}; lower that with -p directions N"
            )
        self._uses_data("training")
        return images

    @functools.cached_property
    def test(self) -> ImageSet:
        """The test images, in stored order.

        Raises ValueError where they cannot be classified by a model of the training images.
        """
        from nbsupport import data

        s = self.settings
        images = data.load(s.test_data, train=False, root=s.root)
        if s.test_data != s.train_data:
            train = data.load(s.train_data, train=True, root=s.root, limit=1)
            if (images.in_shape, images.num_classes) != (train.in_shape, train.num_classes):
                raise ValueError(
                    f"expected test images like the training images, {train.in_shape} of {train.num_classes} classes, "
                    f"got {images.in_shape} of {images.num_classes} classes; choose train_data and test_data that agree"
                )
            images = dataclasses.replace(images, classes=train.classes)  # an npz file knows no names
        self._uses_data("test")
        return images

    def _uses_data(self, part: str) -> None:
        self._made_from["data"][part] = manifest.fingerprint(part, dataclasses.asdict(self.settings))

    def models(self) -> dict[str, nn.Module]:
        """Return the two trained models by name, on this process's device; raises MissingInput and DamagedArtifact."""
        return {name: self.model(name) for name in presets.MODELS}

    def model(self, name: str) -> nn.Module:
        """Return the trained model `name`, "normal" or "pgd"."""
        from nbsupport import models

        path = self._require(f"models/{name}")
        self._made_from["files"][f"models/{name}.safetensors"] = manifest.content(path)
        return models.load(path).to(self.device).eval()

    # Results of kernels

    def keep(
        self,
        name: str,
        kernel: Kernel,
        model: nn.Module,
        x: Tensor,
        *rows: Any,
        index: Tensor | None = None,
        each: Mapping[str, Any] | None = None,
        seed: Seed = None,
        shard: int | None = None,
        **settings: Any,
    ) -> Any:
        """Return `kernel(model, x, *rows, **each, **settings)`, computed in shards of images, each stored when done.

        What is stored is found again, as long as everything it depends on is the same: the model, the contents of all
        tensors, the settings, the kernel's source, torch and the kind of device (see `kept.parts`). Else it is
        computed again, and what changed is said.

        Parameters
        ----------
        name : str
            Where it is stored, such as "attacks/normal/FGSM"; its first part is one of `MADE_BY`.
        kernel : callable
            A function found by its name in a module, or a functools.partial of one, which returns a Record.
        model : nn.Module
        x : Tensor (N, C, H, W)
            Images; with none the result cannot be stored, and is refused.
        *rows, each
            Tensors or records with one row an image, handed to the kernel by position and by name.
        index : Tensor (N,) int64, optional
            Positions in the test set, stored beside the result; None: 0 to N - 1.
        seed : sequence, optional
            What the random numbers are for: a kernel that takes a `generator` is given the one that the run's seed and
            this purpose name, the same for every shard, so that all images share its draws. None: it is given none.
        shard : int, optional
            Images stored at once on a CPU; on a GPU as many times more as a batch holds there. None: a batch, at least
            32.
        **settings
            Handed to the kernel whole; tensors lie on the model's device.

        Returns
        -------
        Record
            What the kernel returns for all N images, on the CPU. See `workers.results` for where it is computed.

        Raises
        ------
        ValueError
            For no images, rows that do not agree with them, and as `kept.parts`.
        """
        import torch

        positions = torch.arange(len(x)) if index is None else index
        named = dict(zip(_names(kernel)[2:], rows, strict=False))
        by_image = {"index": positions, **named, **(each or {})}
        for label, value in by_image.items():
            if len(value) != len(x):
                raise ValueError(f"expected {label} with one row for each of {len(x)} images, got {len(value)}")

        purpose = (self.settings.seed, *seed) if seed is not None and "generator" in _names(kernel) else None
        work = workers.Work(kernel, model, settings, purpose)

        def compute(parts: Sequence[slice]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
            cuts = [{label: _cut(value, part) for label, value in {"x": x, **by_image}.items()} for part in parts]
            shards = [([cut[n] for n in ("x", *named)], {n: cut[n] for n in each or {}}) for cut in cuts]
            beside = ("index", "x", *(label for label in named if isinstance(named[label], torch.Tensor)))
            for cut, result in zip(cuts, workers.results(work, shards), strict=True):
                yield result, {label: cut[label] for label in beside}

        size = self._shard(name, model, tuple(x.shape[1:]), shard)
        made_from = self._parts(kernel, {"model": model, "x": x, **by_image, **settings}, seed)
        report = functools.partial(self.journal.report, _made_by(name), name, total=len(x))
        return self._computed(name, len(x), size, compute, made_from, report)

    def keep_result(self, name: str, function: Kernel, *inputs: Any, seed: Seed = None, **settings: Any) -> Any:
        """Return `function(*inputs, **settings)` as `keep` does, for a result that is one piece: a detector, an audit.

        The result has `tensors` and its class `from_tensors`. Records among `inputs` are moved to this process's
        device. A function that takes `progress` is given one, which reports to the journal.
        """
        return self._pieces([name], function, inputs, seed, settings, split=lambda made: [made])[0]

    def keep_results(
        self, names: Sequence[str], function: Kernel, *inputs: Any, seed: Seed = None, **settings: Any
    ) -> list[Any]:
        """Return the results of `function(*inputs, **settings)`, a sequence, each stored under its own name.

        They are computed together and found again one by one: the detectors of all folds. See `keep_result`.
        """
        return self._pieces(names, function, inputs, seed, settings, split=list)

    def _pieces(
        self,
        names: Sequence[str],
        function: Kernel,
        inputs: Sequence[Any],
        seed: Seed,
        settings: Mapping[str, Any],
        *,
        split: Callable[[Any], list[Any]],
    ) -> list[Any]:
        """Return what `split` makes of `function(*inputs, **settings)`, each stored under its own name."""
        from nbsupport.record import Record

        options = {**settings, **self._generator(function, seed)}
        if "progress" in _names(function):
            first = names[0]
            options["progress"] = functools.partial(self.journal.report, _made_by(first), first, unit="steps")
        described = {**dict(zip(_names(function), inputs, strict=False)), **settings}
        made_from = self._parts(function, described, seed)

        @functools.cache
        def made() -> list[Any]:
            here = [value.to(self.device) if isinstance(value, Record) else value for value in inputs]
            return split(function(*here, **options))

        def report(name: str, done: int, event: str = "progress", **extra: Any) -> None:
            if "progress" not in options or event not in ("started", "progress"):  # these the function reports itself
                self.journal.report(_made_by(name), name, done, 1, "results", event, **extra)

        def compute(place: int, _: Sequence[slice]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
            yield made()[place], {}

        return [
            self._computed(name, 1, 1, functools.partial(compute, place), made_from, functools.partial(report, name))
            for place, name in enumerate(names)
        ]

    def _computed(self, name: str, total: int, shard: int, compute: Any, made_from: Any, report: Kernel) -> Any:
        if name not in self._read or kept.changed(self._read[name][1], made_from):
            self._read[name] = kept.computed(name, self._path(name), total, shard, compute, made_from, report)
        self._kept[name] = None
        return self._restored(name)

    def keep_model(
        self, name: str, fit: Kernel, model: nn.Module, *inputs: Any, seed: Seed = None, **settings: Any
    ) -> pd.DataFrame:
        """Train `model` in place by `fit(model, *inputs, **settings)`, store models/`name`, and return the history.

        `fit` is also given `generator`, `checkpoint` and `progress`, as `train.fit`: it goes on after its last finished
        epoch and, where it was finished, returns at once. What was trained from other initial weights or images, with
        other settings or source, is trained again, and what changed is said.
        """
        from nbsupport import models

        path, stage, what = self._path(f"models/{name}"), MADE_BY["models"], f"{name} model"
        made_from = self._parts(fit, {**dict(zip(_names(fit), (model, *inputs), strict=False)), **settings}, seed)
        checkpoint = path.with_name(f".{name}.{kept.short(made_from)}.checkpoint")
        for stale in {*path.parent.glob(f".{name}.*.checkpoint")} - {checkpoint}:
            stale.unlink()
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            if why := kept.changed(files.read_metadata(path), made_from):
                print(f"out of date, made again: {what} ({why})")
                self.journal.report(stage, what, 0, 1, "batches", event="outdated", why=why)

        def progress(done: int, total: int) -> None:
            if done % 20 == 0 or done == total:
                self.journal.report(stage, what, done, total, "batches")

        if self.settings.weights or self.settings.pgd_weights:
            self._uses_data("weights")
        options = {**settings, "checkpoint": checkpoint, "progress": progress, **self._generator(fit, seed)}
        history: pd.DataFrame = fit(model, *inputs, **options)
        models.save(model, path, made_from=json.dumps(made_from))
        self._kept[f"models/{name}"] = None
        return history

    def _parts(self, function: Kernel, inputs: Mapping[str, Any], seed: Seed) -> dict[str, str]:
        parts = kept.parts(function, inputs, self.device.type)
        if seed is not None:
            parts["seed"] = repr((self.settings.seed, *map(str, seed)))
        own = {name.removeprefix("source "): digest for name, digest in parts.items() if "source nbsupport." in name}
        self._made_from["sources"] |= own
        return parts

    def generator(self, *purpose: object) -> torch.Generator:
        """Return a CPU generator that depends on the run's seed and on what it is for."""
        from nbsupport import runtime

        return runtime.seeded(self.settings.seed, *purpose)

    def _generator(self, function: Kernel, seed: Seed) -> dict[str, torch.Generator]:
        return {"generator": self.generator(*seed)} if seed is not None and "generator" in _names(function) else {}

    def _shard(self, name: str, model: nn.Module, in_shape: tuple[int, ...], asked: int | None) -> int:
        """Return how many images are stored at once, by default a full batch of the model; it is noted in run.json.

        With fewer the engine's slots would not be full: on digits an attack on 16 images at a time takes 1.5 to 1.7
        times as long as on 96. What is `asked` for fits a CPU; on a GPU it grows as a batch does.
        """
        import torch

        from nbsupport import runtime

        rows, on_cpu = (runtime.rows_per_batch(model, in_shape, each) for each in (self.device, torch.device("cpu")))
        size = max(32, rows) if asked is None else asked * max(1, rows // on_cpu)
        sizes = {"rows": rows, f"images_per_shard_{name.split('/')[0]}": size}
        manifest.update(self.dir, lambda contents: contents["batch_sizes"].update(sizes))
        return size

    def load(self, name: str) -> Any:
        """Return what `keep` stored under `name`, such as "attacks/normal/FGSM", in this or an earlier notebook.

        What is out of date is said. Raises MissingInput where it is absent and DamagedArtifact where it is truncated
        or altered.
        """
        self._load(name)
        return self._restored(name)

    def load_all(self, folder: str) -> dict[tuple[str, str], Any]:
        """Return all results in `folder`, such as "boundary", by (model, examples).

        They are those that the notebook which makes them stored when it last finished; raises MissingInput where it has
        not.
        """
        return {(model, name): self.load(f"{folder}/{model}/{name}") for model, name in self.stored(folder)}

    def stored(self, folder: str) -> list[tuple[str, str]]:
        """Return the (model, examples) of all that is stored in `folder`; raises MissingInput as `load_all`."""
        entry = manifest.read(self.dir)["stages"].get(MADE_BY[folder])
        if entry is None or not entry["finished"]:
            raise self._missing(self.path(folder), MADE_BY[folder], "is not complete")
        outputs = [rel.removesuffix(".safetensors").split("/") for rel in entry["outputs"] if manifest.is_artifact(rel)]
        return [(parts[1], parts[2]) for parts in outputs if parts[0] == folder and len(parts) == 3]

    def inputs(self, name: str) -> dict[str, Tensor]:
        """Return what `keep` stored beside the result: `index`, `x` and, for attacks, `y`. Raises as `load`."""
        tensors, result = self._load(name)[0], self._restored(name).tensors()
        return {label: tensor for label, tensor in tensors.items() if label not in result}

    def seconds(self, name: str) -> float:
        """Return the seconds that computing `name` took, over all processes that had a part in it."""
        return float(self._load(name)[1]["seconds"])

    def _load(self, name: str) -> kept.Stored:
        if name not in self._read:
            self._read[name] = files.load_with_metadata(self._require(name))
            self._say_outdated(_made_by(name))
        if name not in self._kept:
            self._made_from["files"][f"{name}.safetensors"] = self._read[name][1]["contents"]
        return self._read[name]

    def _say_outdated(self, stage: str) -> None:
        if stage not in self._told:
            self._told.add(stage)
            state = self.state(stage)
            if state.name == "outdated":
                print(f"out of date: the results of {stage} ({'; '.join(state.faults)}); run that notebook again")

    def _restored(self, name: str) -> Any:
        """Return what is kept as `name` as the class that its header names: one of this package, or loaded already."""
        tensors, metadata = self._read[name]
        module, _, kind = metadata.get("record", "").partition(":")
        if module.startswith("nbsupport."):
            importlib.import_module(module)
        found = getattr(sys.modules.get(module), kind, None)
        if found is None or not hasattr(found, "from_tensors"):
            raise DamagedArtifact(self._path(name), f"it names {module}:{kind}, which is no kind of result")
        return found.from_tensors(tensors)

    def _path(self, name: str) -> Path:
        return self.path(f"{name}.safetensors")

    def _require(self, name: str) -> Path:
        """Return where `name` is stored; raises MissingInput, with the notebook that makes it, where it is absent."""
        if not (path := self._path(name)).exists():
            raise self._missing(path, _made_by(name))
        return path

    def _missing(self, path: Path, made_by: str, why: str = "is missing") -> MissingInput:
        return MissingInput(f"{path} {why}; the notebook {made_by} makes it: run\n  {self.command}")

    # Tables and figures

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Store `frame` as tables/`name`.csv, `inf` as such and what was not measured empty, and return its path."""
        files.write_text(path := self.path("tables", f"{name}.csv"), frame.to_csv(index=False))
        return path

    def read_table(self, name: str, made_by: str) -> pd.DataFrame:
        """Return tables/`name`.csv, which the notebook `made_by` stores; raises MissingInput or DamagedArtifact."""
        import pandas as pd

        path = self.path("tables", f"{name}.csv")
        if not path.exists():
            raise self._missing(path, made_by)
        self._say_outdated(made_by)
        try:
            frame = pd.read_csv(path, engine="python")  # whose floats are exact
        except ValueError as error:
            raise DamagedArtifact(path, f"unreadable: {error}") from None
        self._made_from["files"][f"tables/{name}.csv"] = files.file_digest(path)
        return frame

    def write_figure(self, name: str, figure: Figure) -> list[Path]:
        """Store `figure` as figures/`name`.png and, for papers, as .pdf, and return the paths."""
        paths = [self.path("figures", f"{name}{kind}") for kind in (".png", ".pdf")]
        for path in paths:
            files.write_figure(path, figure)
        return paths

    # Stages

    def warn(self, stage: str, messages: Iterable[str]) -> None:
        """Report warnings of `stage`, which the terminal of a run shows."""
        for message in messages:
            self.journal.append(stage=stage, event="warning", message=message)

    def finish(self, stage: str, *, tables: Frames | None = None, figures: Figures | None = None) -> None:
        """Store the tables and figures of `stage`, and record all that it has stored, what from, and how long it took.

        Raises MissingInput where a kept result is no longer there.
        """
        kept = [name for name in self._kept if _made_by(name) == stage]
        outputs = [self._require(name) for name in kept]
        outputs += [self.write_table(name, frame) for name, frame in (tables or {}).items()]
        for name, figure in (figures or {}).items():
            outputs += self.write_figure(name, figure)
        seconds = round(time.monotonic() - self._opened, 3)
        manifest.finish(self.dir, stage, outputs, self._made_from, seconds=seconds, device=str(self.device))
        self.journal.append(stage=stage, event="finished", seconds=seconds)
        counts = f"{len(kept)} results, {len(tables or {})} tables, {len(figures or {})} figures"
        print(f"stored in {self.dir}: {counts}")

    def state(self, stage: str) -> manifest.StageState:
        """Return whether `stage` is complete, from the checksums of all that it has stored and was made from."""
        return manifest.state(self.dir, stage)

    def begin(self, stage: str) -> list[Path]:
        """Prepare `stage` to run again, so that nothing of an earlier attempt passes for new: see `manifest.begin`."""
        return manifest.begin(self.dir, stage)

    def lock(self, *, patience: float = 0.2) -> contextlib.AbstractContextManager[None]:
        """Hold the run folder for this process; raises RunInUse, which names the process that has it.

        It waits `patience` seconds for one that is about to let go.
        """
        return manifest.held(self.dir, patience=patience)


def _made_by(name: str) -> str:
    return MADE_BY[name.split("/")[0]]


def _names(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _cut(value: Any, part: slice) -> Any:
    return value.take(part) if hasattr(value, "tensors") else value[part]


def open_run(
    run_dir: str | Path, *, dataset: str, preset: str = "standard", overrides: Mapping[str, Any] | None = None
) -> Run:
    """Return the run in `run_dir`, which is created where it does not exist.

    This process computes on as many threads as the one that created it: another number rounds sums differently.

    Where the folder holds a run with other settings they are replaced: what differs is printed and recorded, and the
    stages that it makes out of date are named.

    Raises
    ------
    ValueError
        As `presets.settings`, and where the folder holds results but no run.json.
    ParametersDiffer
        Where the folder holds a run of another data set.
    RunInUse
        Where settings differ and another process runs in the folder.
    """
    import torch

    settings = presets.settings(dataset, preset, overrides)
    run = Run(Path(run_dir).expanduser().resolve(), settings)
    if run.path(manifest.NAME).exists():
        _adopt(run)
        torch.set_num_threads(manifest.read(run.dir).get("threads", torch.get_num_threads()))
    else:
        require_fresh(run.dir)
        run.dir.mkdir(parents=True, exist_ok=True)
        manifest.create(run.dir, settings, device=str(run.device), threads=torch.get_num_threads())
    return run


def require_fresh(run_dir: Path) -> None:
    """Raise ValueError where `run_dir` holds results of a run whose run.json is gone: whose they are is unknown."""
    found = [name for name in (*MADE_BY, "tables", "figures") if run_dir.joinpath(name).is_dir()]
    if found and not (run_dir / manifest.NAME).exists():
        raise ValueError(
            f"{run_dir} holds results ({', '.join(found)}) but no {manifest.NAME}, which says how they were made; "
            "restore that file, or choose another run folder: nothing was changed"
        )


def _adopt(run: Run) -> None:
    """Make the settings of `run` those of its folder, and say what that changes."""
    before, after = manifest.read(run.dir)["parameters"], dataclasses.asdict(run.settings)
    differing = manifest.differences(before, after)
    if not differing:
        return
    if any(before.get(name) != after[name] for name in ("dataset", "preset", "train_data", "test_data")):
        raise manifest.ParametersDiffer(run.dir, differing)
    if user := manifest.holder(run.dir):
        raise manifest.RunInUse(f"{run.dir} is in use by {user} with other settings; wait for it, or stop it")
    states = {stage: run.state(stage).name for stage in manifest.STAGES}
    manifest.update(run.dir, lambda contents: contents.update(parameters=after))
    print(f"{run.dir} was made with other settings; they are changed:", *differing, sep="\n  ")
    stale = [stage for stage, name in states.items() if name == "complete" and run.state(stage).name != "complete"]
    if stale:
        print(f"out of date by this: {', '.join(stale)}; run them again:\n  {run.command}")


def existing_run(run_dir: str | Path) -> Run:
    """Return the run in `run_dir` with the parameters stored there.

    Raises MissingInput where there is none and DamagedArtifact where parameters are lacking.
    """
    folder = Path(run_dir).expanduser().resolve()
    if not (folder / manifest.NAME).exists():
        raise MissingInput(
            f"{folder} is not a run folder: it holds no {manifest.NAME}; make one:\n"
            f"  {shlex.join(['python', '-m', 'nbsupport', 'run', presets.DATASETS[0], '--run-dir', str(folder)])}"
        )
    stored = manifest.read(folder)["parameters"]
    fields = presets.Settings.__dataclass_fields__
    lacking = [name for name, entry in fields.items() if entry.default is dataclasses.MISSING and name not in stored]
    if lacking:
        why = f"made by another version of nbsupport: it lacks the parameters {', '.join(lacking)}"
        raise DamagedArtifact(folder / manifest.NAME, why, "choose another run folder, or delete this one")
    return Run(folder, presets.Settings(**{name: value for name, value in stored.items() if name in fields}))
