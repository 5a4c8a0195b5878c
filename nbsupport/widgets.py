"""Widgets over stored results: single instances, and how far a run has come. Nothing is computed by a model."""

from __future__ import annotations

import contextlib
import gc
import html
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nbsupport import journal, plots, report, store
from nbsupport.stages import FILTERS, MODELS, THRESHOLD, Single, Stored

DPI = 90
_FIRST = "OPTMARGIN"  # the attack shown first
_ERRORS = (OSError, ValueError, store.DamagedArtifact)  # reading what is missing, damaged, or of another version
_LABELS = {"style": {"description_width": "58px"}}


def instance_explorer(run_dir: str | Path) -> ipywidgets.VBox:
    """Return controls and panels that show one attacked image after the other, from what the run has stored.

    Parameters
    ----------
    run_dir
        The run folder. Results that a stage has not stored yet are named, with the command that makes them.

    Notes
    -----
    The line below the controls is an HTML element of class `nb-status`. Its attributes are `data-state` ("ready",
    "none" where no image fulfils the filter, "error"), `data-model`, `data-attack`, `data-filter`, `data-count` (the
    images that fulfil it), and of the image shown `data-index` (its position in the test set), `data-y`,
    `data-success`, `data-rms` (in [0, 1] units), `data-vote`, `data-score` and `data-benign-score`, empty where not
    stored.
    """
    try:
        return _Explorer(Stored(store.existing_run(run_dir))).box
    except _ERRORS as error:
        return ipywidgets.VBox([_message(error)])


def progress(run_dir: str | Path) -> ipywidgets.VBox:
    """Return the text of `nbsupport status`, read again from the journal when its button is pressed.

    Above it stands an HTML element of class `nb-status` with `data-state` ("ready" or "error") and, of the piece of
    work reported last, `data-stage`, `data-what`, `data-done` and `data-total`.
    """
    shown = ipywidgets.HTML()
    button = ipywidgets.Button(description="refresh", icon="refresh", tooltip="Read the journal again")

    def refresh(_: Any = None) -> None:
        try:
            shown.value = _progress_text(Path(run_dir))
        except _ERRORS as error:
            shown.value = _message(error).value

    button.on_click(refresh)
    refresh()
    return ipywidgets.VBox([button, shown])


def _progress_text(run_dir: Path) -> str:
    run = store.existing_run(run_dir)
    works = journal.summary(journal.read(run.dir))
    data: dict[str, object] = {"state": "ready", "stage": "", "what": "", "done": "", "total": ""}
    said = "Nothing has been reported yet."
    if works:
        last = max(works, key=lambda work: work.time)
        data |= {name: getattr(last, name) for name in ("stage", "what", "done", "total")}
        said = f"Last report: {last.stage}, {last.what}, {last.done} of {last.total} {last.unit}."
    return _status(said, data) + _preformatted(report.status(run))


class _Explorer:
    """The controls and panels of `instance_explorer`; `box` holds them all."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._rows = torch.empty(0, dtype=torch.int64)
        self._row: int | None = None
        self._moving = False
        names = stored.names()
        first = _FIRST if _FIRST in names else names[0]
        self._model = ipywidgets.Dropdown(options=MODELS, description="model", **_LABELS)
        self._attack = ipywidgets.Dropdown(options=names, value=first, description="attack", **_LABELS)
        options = [(text, name) for name, text in FILTERS.items()]
        self._filter = ipywidgets.Dropdown(options=options, description="filter", **_LABELS)
        self._place = ipywidgets.IntSlider(
            min=1, max=1, description="image", continuous_update=False, layout={"width": "420px"}, **_LABELS
        )
        self._previous = ipywidgets.Button(description="previous", icon="arrow-left", layout={"width": "110px"})
        self._next = ipywidgets.Button(description="next", icon="arrow-right", layout={"width": "110px"})
        self._status = ipywidgets.HTML()
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        notes = [ipywidgets.HTML(_preformatted(f"Not stored: {kind}. {why}")) for kind, why in stored.absent.items()]
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HBox([self._model, self._attack, self._filter]),
                ipywidgets.HBox([self._place, self._previous, self._next]),
                self._status,
                *notes,
                self._picture,
            ]
        )
        for control in (self._model, self._attack, self._filter):
            control.observe(self._choose, names="value")
        self._place.observe(self._show, names="value")
        self._previous.on_click(self._step(-1))
        self._next.on_click(self._step(1))
        self._choose()

    def _choose(self, change: Any = None) -> None:
        """Find the images for the model, attack and filter; with another model or attack, stay at the same image."""
        model, attack, condition = self._model.value, self._attack.value, self._filter.value
        self._rows = self._stored.select(model, attack, condition)
        count = len(self._rows)
        stay = 0 if change is None or change.owner is self._filter else _place_of(self._rows, self._row)
        self._moving = True  # the slider's own events would draw intermediate states
        try:
            self._place.max = max(count, 1)
            self._place.value = stay + 1
            self._place.disabled = not count
        finally:
            self._moving = False
        self._show()

    def _step(self, by: int) -> Callable[[Any], None]:
        def step(_: Any) -> None:
            self._place.value = min(max(self._place.value + by, 1), self._place.max)

        return step

    def _show(self, _: Any = None) -> None:
        """Draw the image at the slider's place, and say in the status what is shown."""
        if self._moving:
            return
        place, count = self._place.value, len(self._rows)
        self._previous.disabled, self._next.disabled = place <= 1, place >= count
        model, attack, condition = self._model.value, self._attack.value, self._filter.value
        data: dict[str, object] = {"model": model, "attack": attack, "filter": condition, "count": count}
        if not count:
            reason = self._why_none(model, attack, condition)
            self._picture.value = _png(plots.nothing_to_show(reason))
            self._status.value = _status(f"No image to show: {reason}.", {"state": "none", **data, "index": ""})
            return
        self._row = int(self._rows[place - 1])
        shown = self._stored.single(model, attack, self._row)
        with _undisturbed():
            self._picture.value = _png(self._figure(shown))
        said = f"{place} of {count}: {_sentence(shown, self._stored)}"
        self._status.value = _status(said, {"state": "ready", **data, **_numbers(shown)})

    def _figure(self, shown: Single) -> Figure:
        settings = self._stored.settings
        return plots.instance_panels(
            shown.original,
            shown.adversarial,
            name=self._attack.value,
            title=f"Test image {shown.index}, {self._attack.value} on the {self._model.value} model",
            classes=self._stored.classes,
            radius=settings.radius,
            last=settings.magnitudes[-1],
            threshold=THRESHOLD,
            pixel_max=self._stored.pixel_max,
            absent=dict.fromkeys(self._stored.absent, "not stored yet"),  # a note has the rest
        )

    def _why_none(self, model: str, attack: str, condition: str) -> str:
        needed = {"vote-wrong": "votes", "missed": "detectors"}.get(condition)
        if needed in self._stored.absent:
            return f"{needed} are not stored yet"
        if condition == "missed" and (model, attack) not in self._stored.detectors:
            return f"no detector was trained on {attack}, which has too few successes on the {model} model"
        return f'no image of {attack} on the {model} model fulfils "{FILTERS[condition]}"'


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off garbage collection: a full one, caused by every fourth figure or so, doubles the time of its redraw."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _place_of(rows: Tensor, row: int | None) -> int:
    """Return where `row` stands among `rows`, 0 where it does not."""
    places = rows.tolist()
    return places.index(row) if row in places else 0


def _sentence(shown: Single, stored: Stored) -> str:
    """Return in words what is known of the image."""
    attacked, names = shown.adversarial, stored.classes
    outcome = "succeeded" if shown.success else "failed" if shown.correct else "not tried: misclassified before"
    parts = [f"test image {shown.index}, true class {names[shown.y]}", f"attack {outcome}"]
    parts.append(f"RMS {shown.rms * stored.pixel_max:.4g} (pixels in [0, {stored.pixel_max:g}])")
    if attacked.vote is not None:
        parts.append(f"vote {names[attacked.vote]} ({'right' if attacked.vote == shown.y else 'wrong'})")
    if attacked.score is not None:
        verdict = "detected" if attacked.score >= THRESHOLD else "missed"
        parts.append(f"detector {attacked.score:.3f} ({verdict}; training part: {'yes' if shown.trained_on else 'no'})")
    return "; ".join(parts)


def _numbers(shown: Single) -> dict[str, object]:
    return {
        "index": shown.index,
        "y": shown.y,
        "success": str(shown.success).lower(),
        "rms": f"{shown.rms:.6g}",
        "vote": "" if shown.adversarial.vote is None else shown.adversarial.vote,
        "score": _number(shown.adversarial.score),
        "benign-score": _number(shown.original.score),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _status(text: str, data: dict[str, object]) -> str:
    attributes = "".join(f' data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return f'<span class="nb-status" role="status"{attributes}>{html.escape(text)}</span>'


def _preformatted(text: str) -> str:
    return f'<pre style="white-space: pre-wrap; line-height: 1.3">{html.escape(text)}</pre>'


def _message(error: Exception) -> ipywidgets.HTML:
    """Return what is wrong with a run folder, in place of a widget."""
    return ipywidgets.HTML(_status("This run cannot be shown.", {"state": "error"}) + _preformatted(str(error)))
