"""How far a run has come, in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets

from nbsupport import store
from nbsupport.runner import report
from nbsupport.store import journal
from nbsupport.widgets.still import ERRORS, Still, StillBox, headless, preformatted, refusal, status


def progress(run_dir: str | Path) -> ipywidgets.VBox | Still:
    """Return the text of `nbsupport status`, read again from the journal when its button is pressed.

    Of every piece of work it tells the stage, the images done, the rate and the time left, and of an attack the success
    so far and its median distortion. Above it stand a bar and an HTML element of class `nb-status` with `data-state`
    ("ready" or "error") and, of the piece of work reported last, `data-stage`, `data-what`, `data-done`, `data-total`,
    `data-rate` (a second), `data-left` (seconds), `data-success` and `data-median-rms` ([0, 1] units), empty where not
    known. In a headless run it is the text alone.
    """
    if headless():
        return Still(_plain(run_dir))
    shown = ipywidgets.HTML()
    bar = ipywidgets.IntProgress(description="no report", layout={"width": "100%"}, style={"description_width": "45%"})
    button = ipywidgets.Button(description="refresh", icon="refresh", tooltip="Read the journal again")

    def refresh(_: Any = None) -> None:
        last = None  # the piece of work that was reported last
        try:
            run = store.existing_run(run_dir)
            last = max(journal.summary(journal.read(run.dir)), key=lambda work: work.time, default=None)
            shown.value = _told(last) + preformatted(report.status(run))
        except ERRORS as error:
            shown.value, last = refusal(error), None
        bar.layout.display = "none" if last is None else ""
        if last is not None:
            bar.max, bar.value = max(last.total, 1), last.done
            bar.description = f"{last.what}: {last.done} of {last.total} {last.unit}"

    button.on_click(refresh)
    refresh()
    return StillBox([button, bar, shown], lambda: Still(_plain(run_dir)))


def _plain(run_dir: str | Path) -> str:
    try:
        return report.status(store.existing_run(run_dir))
    except ERRORS as error:
        return str(error)


def _told(last: journal.Progress | None) -> str:
    extra = getattr(last, "extra", {})
    known = {name: getattr(last, name, None) for name in ("stage", "what", "done", "total", "rate")}
    known |= {"left": getattr(last, "time_left", None), "success": extra.get("success")}
    known["median-rms"] = extra.get("median_rms")
    said = "Nothing has been reported yet."
    if last is not None:
        said = f"Last report: {last.stage}, {last.what}, {last.done} of {last.total} {last.unit}."
    return status(said, {"state": "ready", **known})
