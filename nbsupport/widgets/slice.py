"""The explorer's 2-D slice, computed by the model when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets
from torch import nn

from nbsupport import plots, stages
from nbsupport.stages import Stored, ViewSlice
from nbsupport.widgets.message import ERRORS, preformatted, status
from nbsupport.widgets.still import png, undisturbed
from nbsupport.widgets.turns import in_turn

_SECOND = {
    "view": "a view of OPTMARGIN, nearest to the true class",
    "gradient": "the gradient, steepest way out of the class",
    "random": "a random direction",
}
_KEPT = 64  # slices


class SlicePanel:
    """A button, and below it the slice through the image that `choose` named last.

    The HTML element of class `nb-slice` has `data-state` ("off", "ready", "error"), `data-index`, `data-third`,
    `data-views` and `data-wrong`, the number of views of another class than the true one.
    """

    def __init__(self, stored: Stored, network: Callable[[str], nn.Module], lock: threading.RLock) -> None:
        self._stored, self._network, self.lock = stored, network, lock
        self._kept: dict[tuple[Any, ...], ViewSlice] = {}
        self._chosen: tuple[str, str, int] | None = None
        self.toggle = ipywidgets.ToggleButton(
            description="slice", icon="map", tooltip="Class regions in a plane, by the model", layout={"width": "110px"}
        )
        self._third = ipywidgets.Dropdown(
            options=[(text, name) for name, text in _SECOND.items()],
            description="second direction",
            layout={"width": "500px"},
            style={"description_width": "110px"},
        )
        self._status = ipywidgets.HTML(status("", {"state": "off"}, kind="nb-slice"))
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.box = ipywidgets.VBox([self._third, self._status, self._picture], layout={"display": "none"})
        self.toggle.observe(self._draw, names="value")
        self._third.observe(self._draw, names="value")

    @in_turn
    def choose(self, chosen: tuple[str, str, int] | None) -> None:
        """Take the image in a row of (model, attack); None: there is none to show."""
        self._chosen = chosen
        self._draw()

    @in_turn
    def _draw(self, _: Any = None) -> None:
        on = self.toggle.value and self._chosen is not None
        self.box.layout.display = "" if on else "none"
        if not on or self._chosen is None:
            self._status.value = status("", {"state": "off"}, kind="nb-slice")
            return
        model, attack, row = self._chosen
        found, third = self._stored.examples[model, attack], self._third.value
        data: dict[str, object] = {"index": int(found.index[row]), "third": third}
        try:
            seen = self._slice(model, attack, row, third)
        except (*ERRORS, RuntimeError) as error:  # the model's own, such as too little memory
            self._picture.layout.display = "none"
            said = status("The slice cannot be drawn.", {"state": "error", **data}, kind="nb-slice")
            self._status.value = said + preformatted(str(error))
            return
        with undisturbed():
            self._picture.value = png(
                plots.slice_figure(
                    seen.slice,
                    radius=self._stored.settings.radius,
                    classes=self._stored.classes,
                    around=list(seen.slice.points)[-1:],
                    views=seen.views,
                    view_labels=seen.labels,
                    axes=("change by the attack", _SECOND[third].split(",")[0]),
                    pixel_max=self._stored.pixel_max,
                )
            )
        self._picture.layout.display = ""
        wrong = int((seen.labels != found.y[row]).sum())
        said = (
            f"{wrong} of the {len(seen.labels)} views around the adversarial image are of another class than the true "
            "one. A view is drawn where it lies when projected onto the plane; its mark tells its own class."
        )
        data |= {"views": len(seen.labels), "wrong": wrong}
        self._status.value = status(said, {"state": "ready", **data}, kind="nb-slice")

    def _slice(self, *key: Any) -> ViewSlice:
        if key not in self._kept:
            model, attack, row, third = key
            found = self._stored.examples[model, attack]
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = stages.slice_with_views(
                self._network(model), found, row, self._stored.settings, third=third
            )
        return self._kept[key]
