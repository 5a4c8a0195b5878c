"""Single attacked images of a run, one after the other."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from nbsupport import plots, store
from nbsupport.widgets import base, single
from nbsupport.widgets.single import FILTERS, THIRDS, Single, Stored

BEYOND = 1.5  # the largest share of the attack's change
_PLACES = 30  # of the slider
_KEPT = 64  # slices
_EVERY = -1  # class; a list takes None for nothing chosen
_FIRST = "OPTMARGIN"  # the attack shown first
_BUTTON: dict[str, Any] = {"layout": {"width": "110px"}}
_LABELS = {"style": {"description_width": "58px"}}
Chosen = tuple[str, str, int]  # model, attack, and the image's position in the test set
# What a panel shows: state, text, what draws the picture, further data, and what stores it.
Shown = tuple[str, str, Callable[[], Figure], dict[str, Any], Callable[[], Path] | None]


def instance_explorer(run_dir: str | Path) -> ipywidgets.VBox | base.Still:
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
    except base.ERRORS as error:
        return base.Still(str(error)) if base.headless() else ipywidgets.VBox([ipywidgets.HTML(base.refusal(error))])
    return _still(stored) if base.headless() else _Explorer(stored).box


def _opening(stored: Stored) -> Chosen:
    """Return the image that is shown first."""
    model, attack = store.MODELS[0], _FIRST if _FIRST in stored.names else stored.names[0]
    return model, attack, single.telling(stored.images[model, attack])


def stills(run_dir: str | Path, count: int) -> list[tuple[str, base.Still]]:
    """Return a name, MODEL-ATTACK-INDEX, and the picture of `count` images, or as many as were attacked with success.

    Models and attacks take turns, each with the image that the explorer would show first, then in the order of the
    test set. Raises as `store.existing_run`, and MissingInput where the run has stored no attack.
    """
    stored = Stored(store.existing_run(run_dir))
    found = []
    for (model, attack), frame in stored.images.items():
        if attack in stored.names or attack == "mimic":
            first, successes = single.telling(frame), frame["index"][frame.success.fillna(False)].tolist()
            found.append([(model, attack, index) for index in sorted(successes, key=lambda index: index != first)])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*found))
    chosen = itertools.islice(filter(None, turns), count)
    return [("-".join(map(str, each)), _still(stored, each)) for each in chosen]


def _still(stored: Stored, chosen: Chosen | None = None) -> base.Still:
    """Return the picture of the image `chosen`, by default the one on which the explorer opens."""
    shown = stored.single(*(chosen or _opening(stored)))
    said = [f"{shown.row.examples} on the {shown.row.model} model: {_sentence(shown, stored)}", *stored.outdated]
    return base.Still("\n".join(said), base.png(figure(stored, shown)))


class _Explorer:
    """The controls and panels of `instance_explorer`; `box` holds them all."""

    def __init__(self, stored: Stored) -> None:
        self._stored, turns = stored, base.Turns()
        _, attack, self._index = _opening(stored)  # the position of the image shown last
        classes = [("all classes", _EVERY), *((name, y) for y, name in enumerate(stored.classes))]
        filters = [(text, name) for name, (text, _) in FILTERS.items()]
        options = {"model": store.MODELS, "attack": stored.names, "class": classes, "filter": filters}
        self._lists = [ipywidgets.Dropdown(options=options[name], description=name, **_LABELS) for name in options]
        self._lists[1].value, self._lists[3].layout.width = attack, "340px"
        self._place = ipywidgets.IntSlider(min=1, max=1, description="image", continuous_update=False, **_LABELS)
        look = {"layout": {"width": "160px"}, "style": {"description_width": "72px"}}
        self._number = ipywidgets.BoundedIntText(min=0, max=0, description="test image", **look)
        self._previous = ipywidgets.Button(description="previous", icon="arrow-left", **_BUTTON)
        self._next = ipywidgets.Button(description="next", icon="arrow-right", **_BUTTON)
        self._status, self._picture = ipywidgets.HTML(), base.picture()
        self._panels = SlicePanel(stored, turns), LivePanel(stored, turns)
        self._choose()
        turns.on(self._choose, *self._lists)
        turns.on(self._show, self._place)
        turns.on(self._jump, self._number)
        turns.on(lambda _: self._go(self._place.value - 1), self._previous)
        turns.on(lambda _: self._go(self._place.value + 1), self._next)
        buttons = [self._previous, self._next, *(panel.toggle for panel in self._panels)]
        notes = [f"Not stored: {kind}. {why}" for kind, why in stored.absent.items()] + stored.outdated
        above = base.rows(self._lists[:2], self._lists[2:], [self._place, self._number], buttons)
        below = [self._status, *(ipywidgets.HTML(base.preformatted(note)) for note in notes), self._picture]
        self.box = base.StillBox([*above, *below, *(panel.box for panel in self._panels)], lambda: _still(stored))

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
        self._frame = self._stored.select(model, attack, condition, y)  # the images that fulfil the filter
        places, place = self._frame["index"].tolist(), 0
        if places and (change is None or change.owner in self._lists[:2]):
            place = places.index(self._index if self._index in places else single.telling(self._frame))
        self._place.max = max(len(places), 1)
        self._place.disabled = self._number.disabled = not places
        self._number.max = int(self._stored.images[model, attack]["index"].max())
        self._go(1 + place)

    def _jump(self, _: Any) -> None:
        """Go to the test image whose number was typed or, of those that fulfil the filter, the nearest."""
        if not self._frame.empty:
            self._go(1 + int((self._frame["index"] - self._number.value).abs().to_numpy().argmin()))

    def _go(self, place: int) -> None:
        self._place.value = place  # a slider stops at its ends
        self._show()

    @base.undisturbed()
    def _show(self, _: Any = None) -> None:
        """Draw the image at the slider's place, and say in the status what is shown."""
        place, count = self._place.value, len(self._frame)
        self._previous.disabled, self._next.disabled = place <= 1, place >= count
        model, attack, condition, y = self._asked()
        data: dict[str, object] = {"state": "ready" if count else "none", "model": model, "attack": attack, "class": y}
        data |= {"filter": condition, "count": count, "index": None}
        if count:
            self._number.value = self._index = int(self._frame["index"].iloc[place - 1])
            row, before, after = shown = self._stored.single(model, attack, self._index)
            data |= {"index": self._index, "y": row.y, "success": str(row.success).lower(), "vote": after.vote}
            data |= {"rms": row.rms / self._stored.pixel_max, "score": after.score, "benign-score": before.score}
            drawn, said = figure(self._stored, shown), f"{place} of {count}: {_sentence(shown, self._stored)}"
        else:
            reason = self._why_none(model, attack, condition, y)
            drawn, said = plots.nothing_to_show(reason), f"No image to show: {reason}."
        self._picture.value, self._status.value = base.png(drawn), base.status(said, data)
        for panel in self._panels:
            panel.choose((model, attack, self._index) if count else None)

    def _why_none(self, model: str, attack: str, condition: str, y: int | None) -> str:
        needed = {"vote-wrong": "votes", "missed": "detectors"}.get(condition)
        if needed in self._stored.absent:
            return f"{needed} are not stored yet"
        if condition == "missed" and self._stored.images[model, attack].detector_score.isna().all():
            return f"no detector judges {attack}, since there are too few successes on the {model} model"
        if condition == "missed" and self._stored.images[model, attack].detector_threshold.isna().all():
            return f"there are too few benign images on the {model} model for a threshold at 5 % false positives"
        of = "" if y is None else f" of class {self._stored.classes[y]}"
        return f'no image{of}, attacked by {attack} on the {model} model, fulfils "{FILTERS[condition][0]}"'


def figure(stored: Stored, shown: Single) -> Figure:
    """Return the explorer's picture of one attacked image."""
    row, absent = shown.row, dict.fromkeys(stored.absent, "not stored yet")  # a note has the rest
    threshold = None if math.isnan(row.detector_threshold) else float(row.detector_threshold)
    look = {"threshold": threshold, "band": stored.bands.get(row.model), "absent": absent, **stored.look}
    look["true"] = int(row.y)
    title, last = f"Test image {row['index']}, {row.examples} on the {row.model} model", stored.settings.magnitudes[-1]
    return plots.instance_panels(*shown[1:], name=row.examples, title=title, last=last, **look)


def _sentence(shown: Single, stored: Stored) -> str:
    """Return in words what is known of the image."""
    row, attacked, names = shown.row, shown.adversarial, stored.classes
    outcome = "succeeded" if row.success else "failed" if row.correct else "not tried: misclassified before"
    parts = [f"test image {row['index']}, true class {names[row.y]}", f"attack {outcome}"]
    parts.append(f"RMS {row.rms:.4g} (pixels in [0, {stored.pixel_max:g}])")
    if attacked.vote is not None:
        parts.append(f"vote {names[attacked.vote]} ({'right' if attacked.vote == row.y else 'wrong'})")
    if attacked.score is not None:
        verdict = "detected" if attacked.score >= row.detector_threshold else "missed"
        said = (
            "no threshold" if math.isnan(row.detector_threshold) else f"{verdict} from {row.detector_threshold:.3f} on"
        )
        parts.append(f"detector {attacked.score:.3f} ({said}; held out in fold {row.detector_part})")
    return "; ".join(parts)


class Panel:
    """A button, and below it a box about the image that `choose` named last, open while the button is down.

    While it is open, what `_steps` yields is shown, and it starts anew where a control in `renew` changes. The HTML
    element of the class `kind` tells its state: `data-state` ("off" while it is closed, "running", "error") and, of the
    image, `data-model`, `data-attack` and `data-index`.
    """

    _steps: Callable[[Chosen], Iterator[Shown]]

    def __init__(self, stored: Stored, turns: base.Turns, kind: str, renew: Any, rows: Any, **button: str) -> None:
        self._stored, self._kind, self._background = stored, kind, base.Background(turns.lock)
        self.toggle = ipywidgets.ToggleButton(**button, **_BUTTON)
        self._status, self._picture = ipywidgets.HTML(), base.picture()
        self.box = ipywidgets.VBox([*rows, self._status, self._picture])
        turns.on(self._begin, self.toggle, renew)

    def choose(self, chosen: Chosen | None) -> None:
        """Take an image; None: there is none to show."""
        self._chosen = chosen
        self._begin()

    def _begin(self, _: Any = None) -> None:
        """Begin anew, where the panel is open."""
        self._background.cancel()
        chosen = self._chosen if self.toggle.value else None
        self.box.layout.display = "none" if chosen is None else ""
        self._data: dict[str, Any] = dict(zip(("model", "attack", "index"), chosen or (), strict=False))
        self._known = "Nothing is known yet."
        self._store: Callable[[], Path] | None = None
        self._tell("off" if chosen is None else "running")
        if chosen is not None:
            self._background.start(self._steps(chosen), self._show, self._fail)

    @base.undisturbed()
    def _show(self, shown: Shown) -> None:
        state, self._known, draw, data, self._store = shown
        self._picture.value, self._picture.layout.display = base.png(draw()), ""
        self._data |= data
        self._tell(state)

    def _tell(self, state: str, more: str = "") -> None:
        """Say what is known so far."""
        said = f"{state.capitalize()}: {self._known}{more}"
        self._status.value = base.status(said, {"state": state, **self._data}, kind=self._kind)

    def _fail(self, error: Exception, said: str = "") -> None:
        self._known, self._picture.layout.display = said or f"The {self.toggle.description} cannot be drawn.", "none"
        self._tell("error")
        self._status.value += base.preformatted(f"{type(error).__name__}: {error}")


class SlicePanel(Panel):
    """The 2-D slice through the image, computed by the model when it is asked for.

    The element of class `nb-slice` also has the state "ready", `data-third`, `data-views` and `data-wrong`, the number
    of views of another class than the true one.
    """

    def __init__(self, stored: Stored, turns: base.Turns) -> None:
        look = {"layout": {"width": "500px"}, "style": {"description_width": "110px"}}
        options = [(text, name) for name, text in THIRDS.items()]
        self._third = ipywidgets.Dropdown(options=options, description="second direction", **look)
        self._slice = functools.lru_cache(_KEPT)(self._computed)
        button = {"description": "slice", "icon": "map", "tooltip": "Class regions in a plane, by the model"}
        super().__init__(stored, turns, "nb-slice", self._third, [self._third], **button)

    def _computed(self, model: str, attack: str, index: int, third: str) -> tuple[single.ViewSlice, int]:
        y = int(self._stored.row(model, attack, index).y)
        return single.slice_with_views(*self._stored.given(model, attack, index), y, attack, third=third), y

    def _steps(self, chosen: Chosen) -> Iterator[Shown]:
        self._data["third"] = third = self._third.value
        seen, y = self._slice(*chosen, third)
        count, wrong = len(seen.labels), int((seen.labels != y).sum())
        known = f"{wrong} of the {count} views around the adversarial image are of another class than the true one."
        note = "A view is drawn where it lies when projected onto the plane; its mark tells its own class."
        look = {"views": seen.views, "view_labels": seen.labels, **self._stored.look}
        look |= {"axes": ("change by the attack", THIRDS[third].split(",")[0])}
        look |= {"true": y, "around": list(seen.slice.points)[-1:]}
        draw = functools.partial(plots.slice_figure, seen.slice, **look)
        yield "ready", f"{known} {note}", draw, {"views": count, "wrong": wrong}, None


class LivePanel(Panel):
    """Controls that move an image along the change of an attack, and probe it while one looks on.

    Moving the slider starts anew: the prediction comes at once, then the vote, then the rays in small groups. The
    element of class `nb-live` also has the states "done", "cancelled", "saved", and "none" where the attack changed
    nothing, and `data-share`, `data-rms` ([0, 1] units), `data-label`, `data-vote`, `data-rays`, `data-done` and
    `data-total` (parts of the work).
    """

    def __init__(self, stored: Stored, turns: base.Turns) -> None:
        self._share, self._unit = 0.5, 1.0  # the unit is what the slider shows for the whole of the attack's change
        units = {"share of the change": "share", "length (RMS)": "rms"}
        self._by = ipywidgets.Dropdown(options=units, description="move by")
        look = {"readout_format": ".3f", "layout": {"width": "380px"}}
        self._slider = ipywidgets.FloatSlider(description="to", continuous_update=False, **look)
        self._bar = ipywidgets.IntProgress(layout={"width": "260px"})
        self._cancel = ipywidgets.Button(description="cancel", icon="stop", **_BUTTON)
        self._save = ipywidgets.Button(description="save", icon="save", **_BUTTON)
        rows = base.rows([self._by, self._slider], [self._bar, self._cancel, self._save])
        button = {"description": "probe", "icon": "flask", "tooltip": "Between original and adversarial image, live"}
        super().__init__(stored, turns, "nb-live", self._by, rows, **button)
        turns.on(self._slide, self._slider)
        turns.on(self._stop, self._cancel)
        turns.on(self._keep, self._save)

    def _slide(self, _: Any) -> None:
        self._share = self._slider.value / self._unit
        self._begin()

    def _steps(self, chosen: Chosen) -> Iterator[Shown]:
        rms = float(self._stored.row(*chosen).rms)
        if not rms:
            said = "The attack changed nothing: there is no way to go."
            return iter([("none", said, functools.partial(plots.nothing_to_show, said), {}, None)])
        self._unit = rms if self._by.value == "rms" else 1.0
        self._slider.max, self._slider.step = BEYOND * self._unit, BEYOND * self._unit / _PLACES
        self._slider.value = self._share * self._unit
        return self._looks(chosen)

    def _looks(self, chosen: Chosen) -> Iterator[Shown]:
        names, look = self._stored.classes, {"last": self._stored.settings.magnitudes[-1], **self._stored.look}
        look["true"] = int(self._stored.row(*chosen).y)
        for live in single.look_between(*self._stored.given(*chosen), self._share):
            seen, rays = live.version, len(live.directions)
            known = f"At share {live.share:.3g} the model says {names[int(live.logits.argmax())]}"
            if seen.vote is not None:
                known += f", the vote {names[seen.vote]}"
            if seen.profile is not None:
                known += f", {int(seen.profile.reached.sum())} of {rays} rays reach a boundary"
            data = {"share": live.share, "rms": live.rms, "label": seen.label, "vote": seen.vote, "rays": rays}
            data |= {"done": live.done, "total": live.total}
            title = f"share {live.share:.3g}, RMS {live.rms * self._stored.pixel_max:.4g}"
            draw = functools.partial(plots.live_panels, seen, live.logits, title=title, **look)
            keep = functools.partial(single.save_live, self._stored.run, *chosen, live)
            yield "running" if live.done < live.total else "done", known + ".", draw, data, keep

    def _tell(self, state: str, more: str = "") -> None:
        self._cancel.disabled, self._save.disabled = state != "running", state != "done"
        self._bar.max, self._bar.value = self._data.get("total", 1), self._data.get("done", 0)
        super()._tell(state, more)

    def _stop(self, _: Any) -> None:
        self._background.cancel()
        self._tell("cancelled")

    def _keep(self, _: Any) -> None:
        """Store what is shown in the run folder."""
        try:
            if self._store is not None:
                self._tell("saved", f" Stored in {self._store()}")
        except (OSError, ValueError) as error:
            self._fail(error, "This cannot be stored.")
