"""Single attacked images of a run, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nbsupport import plots, stages, store
from nbsupport.stages import FILTERS, MODELS, THRESHOLD, Single, Stored
from nbsupport.widgets.live import LivePanel
from nbsupport.widgets.message import ERRORS, preformatted, shown_refusal, status
from nbsupport.widgets.slice import SlicePanel
from nbsupport.widgets.still import Still, StillBox, headless, png, undisturbed
from nbsupport.widgets.turns import in_turn

_EVERY = -1  # class; a list takes None for nothing chosen
_FIRST = "OPTMARGIN"  # the attack shown first
_LABELS = {"style": {"description_width": "58px"}}
_BUTTON = {"layout": {"width": "110px"}}
_ROW = {"layout": {"flex_flow": "row wrap"}}


def instance_explorer(run_dir: str | Path) -> ipywidgets.VBox | Still:
    """Return controls and panels that show one attacked image after the other, from what the run has stored.

    Model, attack, true class and filter choose the images; slider, buttons and the number of the test image choose one
    of them. Every redraw is from stored results. Two more panels evaluate the model, and only while they are open: a
    2-D slice, and the image moved along the attack's change. In a headless run it is one picture, of the first success.

    Parameters
    ----------
    run_dir
        The run folder. Results that a stage has not stored yet are named, with the command that makes them.

    Notes
    -----
    The line below the controls is an HTML element of class `nb-status`. Its attributes are `data-state` ("ready",
    "none" where no image fulfils the filter, "error"), `data-model`, `data-attack`, `data-class` (the true class asked
    for, empty for all), `data-filter`, `data-count` (the images that fulfil it), and of the image shown `data-index`
    (its position in the test set), `data-y`, `data-success`, `data-rms` (in [0, 1] units), `data-vote`, `data-score`
    and `data-benign-score`, empty where not stored.
    """
    try:
        stored = Stored(store.existing_run(run_dir))
    except ERRORS as error:
        return Still(str(error)) if headless() else shown_refusal(error)
    return _still(stored) if headless() else _Explorer(stored).box


def _still(stored: Stored) -> Still:
    """Return the picture of the first success of the first attack, or of its first image."""
    model, attack = MODELS[0], _first(stored)
    rows = [*stored.select(model, attack, "succeeded").tolist(), 0]
    shown = stored.single(model, attack, rows[0])
    return Still(
        f"{attack} on the {model} model: {_sentence(shown, stored)}", png(figure(stored, model, attack, shown))
    )


def _first(stored: Stored) -> str:
    names = stored.names()
    return _FIRST if _FIRST in names else names[0]


class _Explorer:
    """The controls and panels of `instance_explorer`; `box` holds them all."""

    def __init__(self, stored: Stored) -> None:
        self._stored, self.lock = stored, threading.RLock()
        self._networks: dict[str, nn.Module] = {}
        self._rows = torch.empty(0, dtype=torch.int64)
        self._row: int | None = None
        self._moving = False
        dropdown, button = ipywidgets.Dropdown, ipywidgets.Button
        self._model = dropdown(options=MODELS, description="model", **_LABELS)
        self._attack = dropdown(options=stored.names(), value=_first(stored), description="attack", **_LABELS)
        classes = [("all classes", _EVERY), *((name, y) for y, name in enumerate(stored.classes))]
        self._class = dropdown(options=classes, description="class", **_LABELS)
        filters = [(text, name) for name, text in FILTERS.items()]
        self._filter = dropdown(options=filters, description="filter", layout={"width": "340px"}, **_LABELS)
        self._place = ipywidgets.IntSlider(min=1, max=1, description="image", continuous_update=False, **_LABELS)
        self._index = ipywidgets.BoundedIntText(
            min=0, max=0, description="test image", layout={"width": "160px"}, style={"description_width": "72px"}
        )
        self._previous = button(description="previous", icon="arrow-left", **_BUTTON)
        self._next = button(description="next", icon="arrow-right", **_BUTTON)
        self._status = ipywidgets.HTML()
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self._slice = SlicePanel(stored, self._network, self.lock)
        self._live = LivePanel(stored, self._network, self.lock)
        notes = [ipywidgets.HTML(preformatted(f"Not stored: {kind}. {why}")) for kind, why in stored.absent.items()]
        children = [
            ipywidgets.HBox([self._model, self._attack], **_ROW),
            ipywidgets.HBox([self._class, self._filter], **_ROW),
            ipywidgets.HBox([self._place, self._index], **_ROW),
            ipywidgets.HBox([self._previous, self._next, self._slice.toggle, self._live.toggle], **_ROW),
            self._status,
            *notes,
            self._picture,
            self._slice.box,
            self._live.box,
        ]
        for control in (self._model, self._attack, self._class, self._filter):
            control.observe(self._choose, names="value")
        self._place.observe(self._show, names="value")
        self._index.observe(self._jump, names="value")
        self._previous.on_click(self._step(-1))
        self._next.on_click(self._step(1))
        self._choose()
        self.box = StillBox(children, lambda: _still(stored))

    def _network(self, model: str) -> nn.Module:
        """Return the trained model, read once."""
        if model not in self._networks:
            self._networks[model] = stages.load_model(self._stored.run, model)
        return self._networks[model]

    def _asked(self) -> int | None:
        """Return the true class asked for, None for all."""
        return None if self._class.value == _EVERY else int(self._class.value)

    @in_turn
    def _choose(self, change: Any = None) -> None:
        """Find the images for the controls; with another model or attack, stay at the same image."""
        model, attack = self._model.value, self._attack.value
        self._rows = self._stored.select(model, attack, self._filter.value, self._asked())
        count = len(self._rows)
        stay = change is not None and change.owner in (self._model, self._attack)
        self._moving = True  # the slider's own events would draw intermediate states
        try:
            self._place.max = max(count, 1)
            self._place.value = 1 + (_place_of(self._rows, self._row) if stay else 0)
            self._place.disabled = self._index.disabled = not count
            self._index.max = int(self._stored.examples[model, attack].index.max())
        finally:
            self._moving = False
        self._show()

    @in_turn
    def _jump(self, _: Any) -> None:
        """Go to the test image whose number was typed or, of those that fulfil the filter, the nearest."""
        if self._moving or not len(self._rows):
            return
        index = self._stored.examples[self._model.value, self._attack.value].index[self._rows]
        place = 1 + int((index - self._index.value).abs().argmin())
        if place == self._place.value:
            self._show()  # the number of the nearest image replaces what was typed
        self._place.value = place

    def _step(self, by: int) -> Callable[[Any], None]:
        def step(_: Any) -> None:
            with self.lock:
                self._place.value = min(max(self._place.value + by, 1), self._place.max)

        return step

    @in_turn
    def _show(self, _: Any = None) -> None:
        """Draw the image at the slider's place, and say in the status what is shown."""
        if self._moving:
            return
        place, count = self._place.value, len(self._rows)
        self._previous.disabled, self._next.disabled = place <= 1, place >= count
        model, attack, condition, y = self._model.value, self._attack.value, self._filter.value, self._asked()
        data: dict[str, object] = {"model": model, "attack": attack, "class": "" if y is None else y}
        data |= {"filter": condition, "count": count}
        if not count:
            reason = self._why_none(model, attack, condition)
            self._picture.value = png(plots.nothing_to_show(reason))
            self._status.value = status(f"No image to show: {reason}.", {"state": "none", **data, "index": ""})
            self._slice.choose(None)
            self._live.choose(None)
            return
        self._row = int(self._rows[place - 1])
        shown = self._stored.single(model, attack, self._row)
        self._moving = True
        try:
            self._index.value = shown.index
        finally:
            self._moving = False
        with undisturbed():
            self._picture.value = png(figure(self._stored, model, attack, shown))
        said = f"{place} of {count}: {_sentence(shown, self._stored)}"
        self._status.value = status(said, {"state": "ready", **data, **_numbers(shown)})
        self._slice.choose((model, attack, self._row))
        self._live.choose((model, attack, self._row))

    def _why_none(self, model: str, attack: str, condition: str) -> str:
        needed = {"vote-wrong": "votes", "missed": "detectors"}.get(condition)
        if needed in self._stored.absent:
            return f"{needed} are not stored yet"
        if condition == "missed" and (model, attack) not in self._stored.detectors:
            return f"no detector was trained on {attack}, which has too few successes on the {model} model"
        y = self._asked()
        of = "" if y is None else f" of class {self._stored.classes[y]}"
        return f'no image{of}, attacked by {attack} on the {model} model, fulfils "{FILTERS[condition]}"'


def figure(stored: Stored, model: str, attack: str, shown: Single) -> Figure:
    """Return the explorer's picture of one attacked image."""
    return plots.instance_panels(
        shown.original,
        shown.adversarial,
        name=attack,
        title=f"Test image {shown.index}, {attack} on the {model} model",
        classes=stored.classes,
        radius=stored.settings.radius,
        last=stored.settings.magnitudes[-1],
        threshold=THRESHOLD,
        band=stored.band(model),
        pixel_max=stored.pixel_max,
        absent=dict.fromkeys(stored.absent, "not stored yet"),  # a note has the rest
    )


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
