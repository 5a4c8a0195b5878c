"""The explorer's live part: an image between the original and the adversarial one, probed while one looks on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets
from torch import nn

from nbsupport import plots, stages
from nbsupport.stages import Live, Stored
from nbsupport.widgets.background import Background
from nbsupport.widgets.message import preformatted, status
from nbsupport.widgets.still import png, undisturbed
from nbsupport.widgets.turns import in_turn

BEYOND = 1.5  # the largest share of the attack's change
_PLACES = 30  # of the slider
_BUTTON = {"width": "110px"}


class LivePanel:
    """A button, and below it controls that move an image along the change of an attack.

    Moving the slider starts anew: the prediction comes at once, then the vote, then the rays in small groups. The HTML
    element of class `nb-live` has `data-state` ("off", "running", "done", "cancelled", "saved", "error", or "none"
    where the attack changed nothing), `data-index`, `data-share`, `data-rms` ([0, 1] units), `data-label`, `data-vote`,
    `data-rays`, `data-done` and `data-total` (parts of the work).
    """

    def __init__(self, stored: Stored, network: Callable[[str], nn.Module], lock: threading.RLock) -> None:
        self._stored, self._network, self.lock = stored, network, lock
        self._background = Background(lock)
        self._chosen: tuple[str, str, int] | None = None
        self._share = 0.5
        self._last: Live | None = None  # what is known of the image that was asked for last
        self._moving = False
        self.toggle = ipywidgets.ToggleButton(
            description="probe", icon="flask", tooltip="Between original and adversarial image, live", layout=_BUTTON
        )
        self._by = ipywidgets.Dropdown(
            options=[("share of the change", "share"), ("length (RMS)", "rms")], description="move by", value="share"
        )
        self._slider = ipywidgets.FloatSlider(
            description="to", max=BEYOND, step=BEYOND / _PLACES, value=0.5, continuous_update=False,
            readout_format=".3f", layout={"width": "380px"},
        )  # fmt: skip
        self._bar = ipywidgets.IntProgress(layout={"width": "260px"})
        self._cancel = ipywidgets.Button(description="cancel", icon="stop", disabled=True, layout=_BUTTON)
        self._save = ipywidgets.Button(description="save", icon="save", disabled=True, layout=_BUTTON)
        self._status = ipywidgets.HTML(status("", {"state": "off"}, kind="nb-live"))
        self._picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.box = ipywidgets.VBox(
            [
                ipywidgets.HBox([self._by, self._slider], layout={"flex_flow": "row wrap"}),
                ipywidgets.HBox([self._bar, self._cancel, self._save], layout={"flex_flow": "row wrap"}),
                self._status,
                self._picture,
            ],
            layout={"display": "none"},
        )
        self.toggle.observe(self._begin, names="value")
        self._by.observe(self._rescale, names="value")
        self._slider.observe(self._begin, names="value")
        self._cancel.on_click(self._stop)
        self._save.on_click(self._keep)

    @in_turn
    def choose(self, chosen: tuple[str, str, int] | None) -> None:
        """Take the image in a row of (model, attack); None: there is none to show."""
        self._chosen = chosen
        self._rescale()

    @property
    def _length(self) -> float:
        """The length of the attack's change, in the unit of the pixels."""
        if self._chosen is None:
            return 0.0
        model, attack, row = self._chosen
        return float(self._stored.examples[model, attack].result.rms[row]) * self._stored.pixel_max

    @in_turn
    def _rescale(self, change: Any = None) -> None:
        """Give the slider the range of its unit, at the share of the change where it was."""
        unit = self._length if self._by.value == "rms" else 1.0
        self._moving = True  # the slider's own events would start computations
        try:
            end = BEYOND * (unit or 1.0)
            self._slider.min, self._slider.max, self._slider.step = 0.0, end, end / _PLACES
            self._slider.value = self._share * (unit or 1.0)
        finally:
            self._moving = False
        self._begin()

    @in_turn
    def _begin(self, _: Any = None) -> None:
        """Start anew at the slider's place, where the panel is open."""
        if self._moving:
            return
        self._background.cancel()
        on = self.toggle.value and self._chosen is not None
        self.box.layout.display = "" if on else "none"
        self._cancel.disabled = self._save.disabled = True
        self._last = None
        if not on or self._chosen is None:
            self._status.value = status("", {"state": "off"}, kind="nb-live")
            return
        model, attack, row = self._chosen
        if not self._length:
            self._say("The attack changed nothing: there is no way to go.", "none")
            return
        self._share = self._slider.value / (self._length if self._by.value == "rms" else 1.0)
        found = self._stored.examples[model, attack]
        self._cancel.disabled = False
        steps = (
            live  # a generator, so that a model that cannot be read is found out while the steps are taken
            for network in map(self._network, [model])
            for live in stages.look_between(
                network, found.x[row], found.result.x_adv[row], self._share, self._stored.settings
            )
        )
        self._tell("running")
        self._background.start(steps, self._show, self._fail)

    def _show(self, live: Live) -> None:
        self._last = live
        self._bar.max, self._bar.value = live.total, live.done
        self._cancel.disabled, self._save.disabled = live.complete, not live.complete
        vote = live.vote
        with undisturbed():
            self._picture.value = png(
                plots.live_panels(
                    plots.Version(
                        live.image,
                        counts=None if vote is None else vote.counts[0],
                        share=None if vote is None else (float(vote.p_lower[0]), float(vote.p_upper[0])),
                        profile=live.profile,
                    ),
                    live.logits,
                    title=f"share {live.share:.3g}, RMS {live.rms * self._stored.pixel_max:.4g}",
                    classes=self._stored.classes,
                    radius=self._stored.settings.radius,
                    last=self._stored.settings.magnitudes[-1],
                    pixel_max=self._stored.pixel_max,
                )
            )
        self._tell("done" if live.complete else "running")

    def _tell(self, state: str, more: str = "") -> None:
        """Say what is known of the image looked at last."""
        live, names = self._last, self._stored.classes
        if live is None:
            self._say(f"Nothing is known yet ({state}).", state)
            return
        parts = [f"share {live.share:.3g}: the model says {names[live.label]}"]
        if live.vote is not None:
            parts.append(f"the vote {names[int(live.vote.label[0])]}")
        if live.profile is not None:
            parts.append(f"{int(live.profile.reached.sum())} of {len(live.directions)} rays reach a boundary")
        self._say(", ".join(parts) + f" ({state}).{more}", state, live)

    def _say(self, said: str, state: str, live: Live | None = None) -> None:
        data: dict[str, object] = {"state": state}
        if self._chosen is not None:
            model, attack, row = self._chosen
            data |= {"model": model, "attack": attack, "index": int(self._stored.examples[model, attack].index[row])}
        if live is not None:
            data |= {"share": f"{live.share:.6g}", "rms": f"{live.rms:.6g}", "label": live.label}
            data |= {"vote": "" if live.vote is None else int(live.vote.label[0]), "rays": len(live.directions)}
            data |= {"done": live.done, "total": live.total}
        self._status.value = status(said, data, kind="nb-live")

    def _fail(self, error: Exception) -> None:
        self._cancel.disabled = self._save.disabled = True
        self._say("This cannot be computed.", "error")
        self._status.value += preformatted(f"{type(error).__name__}: {error}")

    @in_turn
    def _stop(self, _: Any) -> None:
        self._background.cancel()
        self._cancel.disabled = True
        self._tell("cancelled")

    @in_turn
    def _keep(self, _: Any) -> None:
        """Store what is shown in the run folder."""
        if self._last is None or self._chosen is None:
            return
        model, attack, row = self._chosen
        index = int(self._stored.examples[model, attack].index[row])
        try:
            path = stages.save_live(self._stored.run, model, attack, index, self._last)
        except (OSError, ValueError) as error:
            self._fail(error)
            return
        self._save.disabled = True
        self._tell("saved", f" Stored in {path}")
