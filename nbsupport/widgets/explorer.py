"""Single attacked images of a run, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from nbsupport import plots, store
from nbsupport.widgets import still
from nbsupport.widgets.panels import BUTTON, ROW, Chosen, LivePanel, SlicePanel, Turns
from nbsupport.widgets.still import ERRORS, Still, StillBox, png, status, undisturbed
from nbsupport.widgets.stored import FILTERS, THRESHOLD, Single, Stored, telling

_EVERY = -1  # class; a list takes None for nothing chosen
_FIRST = "OPTMARGIN"  # the attack shown first
_LABELS = {"style": {"description_width": "58px"}}


def instance_explorer(run_dir: str | Path) -> ipywidgets.VBox | Still:
    """Return controls and panels that show one attacked image after the other, from what the run has stored.

    Model, attack, true class and filter choose the images; slider, buttons and the number of the test image choose one
    of them. It opens on the first image on which the attack succeeded and that was probed. Every redraw is from stored
    results. Two more panels evaluate the model, and only while they are open: a 2-D slice, and the image moved along
    the attack's change. In a headless run it is one picture, of the image on which it would open.

    Parameters
    ----------
    run_dir
        The run folder. Results that a stage has not stored yet are named, with the command that makes them; results
        that are out of date are shown, and what has changed since is said.

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
        return Still(str(error)) if still.headless() else ipywidgets.VBox([ipywidgets.HTML(still.refusal(error))])
    return _still(stored) if still.headless() else _Explorer(stored).box


def _opening(stored: Stored) -> Chosen:
    """Return the image that is shown first."""
    model, names = store.MODELS[0], stored.names()
    attack = _FIRST if _FIRST in names else names[0]
    return model, attack, telling(stored.images[model, attack])


def _still(stored: Stored) -> Still:
    """Return the picture of the image on which the explorer opens."""
    model, attack, index = _opening(stored)
    shown = stored.single(model, attack, index)
    said = [f"{attack} on the {model} model: {_sentence(shown, stored)}", *stored.outdated]
    return Still("\n".join(said), png(figure(stored, shown)))


class _Explorer:
    """The controls and panels of `instance_explorer`; `box` holds them all."""

    def __init__(self, stored: Stored) -> None:
        self._stored, turns = stored, Turns()
        self._frame = pd.DataFrame()  # of the images that fulfil the filter
        _, attack, self._index = _opening(stored)  # the position of the image shown last
        options = {
            "model": store.MODELS,
            "attack": stored.names(),
            "class": [("all classes", _EVERY), *((name, y) for y, name in enumerate(stored.classes))],
            "filter": [(entry.text, name) for name, entry in FILTERS.items()],
        }
        self._lists = [ipywidgets.Dropdown(options=options[name], description=name, **_LABELS) for name in options]
        self._lists[1].value, self._lists[3].layout.width = attack, "340px"
        self._place = ipywidgets.IntSlider(min=1, max=1, description="image", continuous_update=False, **_LABELS)
        self._number = ipywidgets.BoundedIntText(
            min=0, max=0, description="test image", layout={"width": "160px"}, style={"description_width": "72px"}
        )
        self._previous = ipywidgets.Button(description="previous", icon="arrow-left", **BUTTON)
        self._next = ipywidgets.Button(description="next", icon="arrow-right", **BUTTON)
        self._status, self._picture = ipywidgets.HTML(), still.picture()
        self._panels = SlicePanel(stored, turns), LivePanel(stored, turns)
        self._choose()
        for control in self._lists:
            turns.on(control, self._choose)
        turns.on(self._place, self._show)
        turns.on(self._number, self._jump)
        turns.on(self._previous, lambda _: self._go(self._place.value - 1))
        turns.on(self._next, lambda _: self._go(self._place.value + 1))
        buttons = [self._previous, self._next, *(panel.toggle for panel in self._panels)]
        rows = [self._lists[:2], self._lists[2:], [self._place, self._number], buttons]
        notes = [f"Not stored: {kind}. {why}" for kind, why in stored.absent.items()] + stored.outdated
        below = [self._status, *(ipywidgets.HTML(still.preformatted(note)) for note in notes), self._picture]
        children = [*(ipywidgets.HBox(row, **ROW) for row in rows), *below, *(panel.box for panel in self._panels)]
        self.box = StillBox(children, lambda: _still(stored))

    def _asked(self) -> tuple[str, str, str, int | None]:
        """Return the model, the attack, the filter, and the true class (None for all) that were chosen."""
        model, attack, y, condition = (control.value for control in self._lists)
        return model, attack, condition, None if y == _EVERY else y

    def _choose(self, change: Any = None) -> None:
        """Find the images for the controls.

        With another model or attack, stay at the same image, or go to a telling one; with another filter or class,
        begin at the first image.
        """
        model, attack, condition, y = self._asked()
        self._frame = self._stored.select(model, attack, condition, y)
        places, place = self._frame["index"].tolist(), 0
        if places and (change is None or change.owner in self._lists[:2]):
            place = places.index(self._index if self._index in places else telling(self._frame))
        self._place.max = max(len(places), 1)
        self._place.disabled = self._number.disabled = not places
        self._number.max = int(self._stored.images[model, attack]["index"].max())
        self._go(1 + place)

    def _jump(self, _: Any) -> None:
        """Go to the test image whose number was typed or, of those that fulfil the filter, the nearest."""
        if not self._frame.empty:
            self._go(1 + int((self._frame["index"] - self._number.value).abs().to_numpy().argmin()))

    def _go(self, place: int) -> None:
        self._place.value = min(max(place, 1), self._place.max)
        self._show()

    @undisturbed()
    def _show(self, _: Any = None) -> None:
        """Draw the image at the slider's place, and say in the status what is shown."""
        place, count = self._place.value, len(self._frame)
        self._previous.disabled, self._next.disabled = place <= 1, place >= count
        model, attack, condition, y = self._asked()
        data: dict[str, object] = {"state": "ready" if count else "none", "model": model, "attack": attack, "class": y}
        data |= {"filter": condition, "count": count, "index": None}
        if count:
            self._number.value = self._index = int(self._frame["index"].iloc[place - 1])
            shown = self._stored.single(model, attack, self._index)
            row, attacked = shown.row, shown.adversarial
            data |= {"index": self._index, "y": row.y, "success": str(row.success).lower(), "vote": attacked.vote}
            data |= {"rms": row.rms / self._stored.pixel_max, "score": attacked.score}
            data["benign-score"] = shown.original.score
            drawn, said = figure(self._stored, shown), f"{place} of {count}: {_sentence(shown, self._stored)}"
        else:
            reason = self._why_none(model, attack, condition, y)
            drawn, said = plots.nothing_to_show(reason), f"No image to show: {reason}."
        self._picture.value, self._status.value = png(drawn), status(said, data)
        for panel in self._panels:
            panel.choose((model, attack, self._index) if count else None)

    def _why_none(self, model: str, attack: str, condition: str, y: int | None) -> str:
        needed = {"vote-wrong": "votes", "missed": "detectors"}.get(condition)
        if needed in self._stored.absent:
            return f"{needed} are not stored yet"
        if condition == "missed" and (model, attack) not in self._stored.results["detector"]:
            return f"no detector was trained on {attack}, which has too few successes on the {model} model"
        of = "" if y is None else f" of class {self._stored.classes[y]}"
        return f'no image{of}, attacked by {attack} on the {model} model, fulfils "{FILTERS[condition].text}"'


def figure(stored: Stored, shown: Single) -> Figure:
    """Return the explorer's picture of one attacked image."""
    row = shown.row
    return plots.instance_panels(
        shown.original,
        shown.adversarial,
        name=row.examples,
        title=f"Test image {row['index']}, {row.examples} on the {row.model} model",
        last=stored.settings.magnitudes[-1],
        threshold=THRESHOLD,
        band=stored.bands.get(row.model),
        absent=dict.fromkeys(stored.absent, "not stored yet"),  # a note has the rest
        **stored.look,
    )


def _sentence(shown: Single, stored: Stored) -> str:
    """Return in words what is known of the image."""
    row, attacked, names = shown.row, shown.adversarial, stored.classes
    outcome = "succeeded" if row.success else "failed" if row.correct else "not tried: misclassified before"
    parts = [f"test image {row['index']}, true class {names[row.y]}", f"attack {outcome}"]
    parts.append(f"RMS {row.rms:.4g} (pixels in [0, {stored.pixel_max:g}])")
    if attacked.vote is not None:
        parts.append(f"vote {names[attacked.vote]} ({'right' if attacked.vote == row.y else 'wrong'})")
    if attacked.score is not None:
        verdict = "detected" if attacked.score >= THRESHOLD else "missed"
        trained_on = "yes" if row.detector_part == "training" else "no"
        parts.append(f"detector {attacked.score:.3f} ({verdict}; training part: {trained_on})")
    return "; ".join(parts)
