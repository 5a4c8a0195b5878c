"""The explorer's two panels that evaluate the model, each while it is open and without holding up the kernel."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from nbsupport import plots
from nbsupport.widgets.live import THIRDS, Live, ViewSlice, look_between, save_live, slice_with_views
from nbsupport.widgets.still import ERRORS, picture, png, preformatted, status, undisturbed
from nbsupport.widgets.stored import Stored

BEYOND = 1.5  # the largest share of the attack's change
BUTTON: dict[str, Any] = {"layout": {"width": "110px"}}
ROW: dict[str, Any] = {"layout": {"flex_flow": "row wrap"}}
PAUSE = 0.01  # seconds between two steps, for messages such as the click on a button
_PLACES = 30  # of the slider
_KEPT = 64  # slices
Chosen = tuple[str, str, int]  # model, attack, and the image's position in the test set


class Turns:
    """One answer at a time to the events of widgets, under `lock`, and none to the events that an answer causes.

    JupyterLab sends the events of widgets to a subshell of the kernel, which is a thread beside the one of the cells.
    """

    def __init__(self) -> None:
        self.lock, self._answering = threading.RLock(), False

    def on(self, control: ipywidgets.Widget, method: Callable[[Any], None]) -> None:
        """Let `method` answer the clicks on `control`, where it is a button, or the changes of its value."""

        def answer(event: Any) -> None:
            with self.lock:
                if not self._answering:  # intermediate states, set by an answer, are not shown
                    self._answering = True
                    try:
                        method(event)
                    finally:
                        self._answering = False

        if isinstance(control, ipywidgets.Button):
            control.on_click(answer)
        else:
            control.observe(answer, names="value")


class Background:
    """One computation at a time, on the event loop of the kernel: there is no thread that could outlive it.

    Between its steps the kernel answers, so that it can be watched and cancelled. `lock` is held while a state is
    shown, and not while a step is taken.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self._turn = 0
        self._task: asyncio.Task[None] | None = None  # the loop itself keeps no task alive

    def start(self, steps: Iterator[Any], show: Callable[[Any], None], fail: Callable[[Exception], None]) -> None:
        """Take `steps` one by one and `show` each; call `fail` where one raises. An earlier computation is cancelled.

        Without a running event loop, as in a script, all steps are taken before it returns.
        """
        self.cancel()
        work = self._run(steps, show, fail, self._turn)
        try:
            self._task = asyncio.get_running_loop().create_task(work)
        except RuntimeError:
            asyncio.run(work)

    def cancel(self) -> None:
        """Take no further step; the one that is being taken ends first, and is not shown."""
        with self.lock:
            self._turn += 1  # a number, and no Task.cancel: the click may come on another thread of the kernel

    async def _run(
        self, steps: Iterator[Any], show: Callable[[Any], None], fail: Callable[[Exception], None], turn: int
    ) -> None:
        def tell(say: Callable[[Any], None], what: Any) -> None:
            with self.lock:
                if turn == self._turn:
                    say(what)

        try:
            while turn == self._turn and (state := next(steps, None)) is not None:
                tell(show, state)
                await asyncio.sleep(PAUSE)
        except Exception as error:  # whatever it is: nobody reads the exception of a task
            tell(fail, error)


class Panel:
    """A button, and below it a box about the image that `choose` named last, open while the button is down.

    The HTML element of the class `kind` tells its state: `data-state` ("off" while it is closed) and, of the image,
    `data-model`, `data-attack` and `data-index`.
    """

    def __init__(self, stored: Stored, kind: str, **button: str) -> None:
        self._stored, self._kind = stored, kind
        self._chosen: Chosen | None = None
        self.toggle = ipywidgets.ToggleButton(**button, **BUTTON)
        self._status, self._picture = ipywidgets.HTML(), picture()
        self.box = ipywidgets.VBox()

    def choose(self, chosen: Chosen | None) -> None:
        """Take an image; None: there is none to show."""
        self._chosen = chosen
        self._begin()

    def _begin(self, _: Any = None) -> None:
        """Begin anew, where the panel is open."""
        chosen = self._chosen if self.toggle.value else None
        self.box.layout.display = "none" if chosen is None else ""
        if chosen is None:
            self._say("", "off")
        else:
            self._draw(*chosen)

    def _draw(self, model: str, attack: str, index: int) -> None:
        raise NotImplementedError

    def _say(self, said: str, state: str, **data: object) -> None:
        image = {} if state == "off" else dict(zip(("model", "attack", "index"), self._chosen or (), strict=False))
        self._status.value = status(said, {"state": state, **image, **data}, kind=self._kind)

    def _paint(self, figure: Figure) -> None:
        self._picture.value, self._picture.layout.display = png(figure), ""

    def _fail(self, said: str, error: Exception, **data: object) -> None:
        self._say(said, "error", **data)
        self._status.value += preformatted(f"{type(error).__name__}: {error}")
        self._picture.layout.display = "none"


class SlicePanel(Panel):
    """The 2-D slice through the image, computed by the model when it is asked for.

    The element of class `nb-slice` also has the states "ready" and "error", `data-third`, `data-views` and
    `data-wrong`, the number of views of another class than the true one.
    """

    def __init__(self, stored: Stored, turns: Turns) -> None:
        tooltip = "Class regions in a plane, by the model"
        super().__init__(stored, "nb-slice", description="slice", icon="map", tooltip=tooltip)
        look = {"layout": {"width": "500px"}, "style": {"description_width": "110px"}}
        options = [(text, name) for name, text in THIRDS.items()]
        self._third = ipywidgets.Dropdown(options=options, description="second direction", **look)
        self.box.children = [self._third, self._status, self._picture]
        self._slice = functools.lru_cache(_KEPT)(self._computed)
        for control in (self.toggle, self._third):
            turns.on(control, self._begin)

    @undisturbed()
    def _draw(self, model: str, attack: str, index: int) -> None:
        third, y = self._third.value, int(self._stored.row(model, attack, index).y)
        try:
            seen = self._slice(model, attack, index, y, third)
        except (*ERRORS, RuntimeError) as error:  # the model's own, such as too little memory
            self._fail("The slice cannot be drawn.", error, third=third)
            return
        drawn: dict[str, Any] = {
            "views": seen.views,
            "view_labels": seen.labels,
            "around": list(seen.slice.points)[-1:],
        }
        axes = "change by the attack", THIRDS[third].split(",")[0]
        self._paint(plots.slice_figure(seen.slice, axes=axes, **drawn, **self._stored.look))
        wrong = int((seen.labels != y).sum())
        said = (
            f"{wrong} of the {len(seen.labels)} views around the adversarial image are of another class than the true "
            "one. A view is drawn where it lies when projected onto the plane; its mark tells its own class."
        )
        self._say(said, "ready", third=third, views=len(seen.labels), wrong=wrong)

    def _computed(self, model: str, attack: str, index: int, y: int, third: str) -> ViewSlice:
        return slice_with_views(*self._stored.given(model, attack, index), y, attack, third=third)


class LivePanel(Panel):
    """Controls that move an image along the change of an attack, and probe it while one looks on.

    Moving the slider starts anew: the prediction comes at once, then the vote, then the rays in small groups. The
    element of class `nb-live` also has the states "running", "done", "cancelled", "saved", "error", and "none" where
    the attack changed nothing, and `data-share`, `data-rms` ([0, 1] units), `data-label`, `data-vote`, `data-rays`,
    `data-done` and `data-total` (parts of the work).
    """

    def __init__(self, stored: Stored, turns: Turns) -> None:
        tooltip = "Between original and adversarial image, live"
        super().__init__(stored, "nb-live", description="probe", icon="flask", tooltip=tooltip)
        self._background = Background(turns.lock)
        self._share = 0.5
        self._last: Live | None = None  # what is known of the image that was asked for last
        units = [("share of the change", "share"), ("length (RMS)", "rms")]
        self._by = ipywidgets.Dropdown(options=units, description="move by")
        self._slider = ipywidgets.FloatSlider(
            description="to", continuous_update=False, readout_format=".3f", layout={"width": "380px"}
        )
        self._bar = ipywidgets.IntProgress(layout={"width": "260px"})
        self._cancel = ipywidgets.Button(description="cancel", icon="stop", **BUTTON)
        self._save = ipywidgets.Button(description="save", icon="save", **BUTTON)
        rows = [self._by, self._slider], [self._bar, self._cancel, self._save]
        self.box.children = [*(ipywidgets.HBox(row, **ROW) for row in rows), self._status, self._picture]
        for control in (self.toggle, self._by):
            turns.on(control, self._begin)
        turns.on(self._slider, self._slide)
        turns.on(self._cancel, self._stop)
        turns.on(self._save, self._keep)

    @property
    def _unit(self) -> float:
        """What the slider shows for the whole of the attack's change: 1, or its length; 0 where there is no change."""
        rms = 0.0 if self._chosen is None else float(self._stored.row(*self._chosen).rms)
        return rms if self._by.value == "rms" else float(rms > 0)

    def _slide(self, _: Any) -> None:
        self._share = self._slider.value / (self._unit or 1.0)
        self._begin()

    def _begin(self, _: Any = None) -> None:
        self._background.cancel()
        self._cancel.disabled = self._save.disabled = True
        self._last = None
        super()._begin()

    def _draw(self, model: str, attack: str, index: int) -> None:
        unit = self._unit
        if not unit:
            self._say("The attack changed nothing: there is no way to go.", "none")
            return
        self._slider.max, self._slider.step = BEYOND * unit, BEYOND * unit / _PLACES
        self._slider.value = self._share * unit
        self._cancel.disabled = False
        self._tell("running")
        fail = functools.partial(self._fail, "This cannot be computed.")
        self._background.start(self._steps(model, attack, index), self._show, fail)

    def _steps(self, model: str, attack: str, index: int) -> Iterator[Live]:
        yield from look_between(*self._stored.given(model, attack, index), self._share)

    @undisturbed()
    def _show(self, live: Live) -> None:
        self._last = live
        self._bar.max, self._bar.value = live.total, live.done
        self._cancel.disabled, self._save.disabled = live.complete, not live.complete
        look = {"last": self._stored.settings.magnitudes[-1], **self._stored.look}
        title = f"share {live.share:.3g}, RMS {live.rms * self._stored.pixel_max:.4g}"
        self._paint(plots.live_panels(live.version, live.logits, title=title, **look))
        self._tell("done" if live.complete else "running")

    def _tell(self, state: str, more: str = "") -> None:
        """Say what is known of the image looked at last."""
        live, names = self._last, self._stored.classes
        if live is None:
            self._say(f"Nothing is known yet ({state}).", state)
            return
        seen = live.version
        parts = [f"share {live.share:.3g}: the model says {names[int(live.logits.argmax())]}"]
        if seen.vote is not None:
            parts.append(f"the vote {names[seen.vote]}")
        if seen.profile is not None:
            parts.append(f"{int(seen.profile.reached.sum())} of {len(live.directions)} rays reach a boundary")
        known = {"share": live.share, "rms": live.rms, "label": seen.label, "vote": seen.vote}
        known |= {"rays": len(live.directions), "done": live.done, "total": live.total}
        self._say(", ".join(parts) + f" ({state}).{more}", state, **known)

    def _fail(self, said: str, error: Exception, **data: object) -> None:
        self._cancel.disabled = self._save.disabled = True
        super()._fail(said, error, **data)

    def _stop(self, _: Any) -> None:
        self._background.cancel()
        self._cancel.disabled = True
        self._tell("cancelled")

    def _keep(self, _: Any) -> None:
        """Store what is shown in the run folder."""
        if self._last is None or self._chosen is None:
            return
        try:
            path = save_live(self._stored.run, *self._chosen, self._last)
        except (OSError, ValueError) as error:
            self._fail("This cannot be stored.", error)
            return
        self._save.disabled = True
        self._tell("saved", f" Stored in {path}")
