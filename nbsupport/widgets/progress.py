"""How far a run has come, in a notebook."""

from pathlib import Path
from typing import Any

import ipywidgets

from nbsupport.runner import report
from nbsupport.store import existing_run, journal
from nbsupport.widgets.base import ERRORS, Still, StillBox, headless, preformatted, refusal, status

_TOLD = ("stage", "what", "done", "total", "rate", "left", "success", "median_rms")


def progress(run_dir: str | Path) -> ipywidgets.VBox | Still:
    """Return the text of `nbsupport status`, read again from the journal when its button is pressed.

    Of every piece of work it tells the stage, the images done, the rate and the time left, and of an attack the success
    so far and its median distortion. Above it stand a bar and an HTML element of class `nb-status` with `data-state`
    ("ready" or "error") and, of the piece of work reported last, `data-stage`, `data-what`, `data-done`, `data-total`,
    `data-rate` (a second), `data-left` (seconds), `data-success` and `data-median-rms` ([0, 1] units), empty where not
    known. In a headless run it is the text alone.
    """
    if headless():
        return _plain(run_dir)
    shown = ipywidgets.HTML()
    bar = ipywidgets.IntProgress(layout={"width": "100%"}, style={"description_width": "45%"})
    button = ipywidgets.Button(description="refresh", icon="refresh", tooltip="Read the journal again")

    def refresh(_: Any = None) -> None:
        try:
            run = existing_run(run_dir)
            last = max(journal.summary(journal.read(run.dir)), key=lambda work: work.time, default=None)
            known = {**vars(last), "left": last.time_left, **last.extra} if last else {}
            said = (
                "Last report: {stage}, {what}, {done} of {total} {unit}." if last else "Nothing has been reported yet."
            )
            told = {name.replace("_", "-"): known.get(name) for name in _TOLD}
            head = status(said.format(**known), {"state": "ready", **told})
            shown.value = head + preformatted(report.status(run))
        except ERRORS as error:
            shown.value, last = refusal(error), None
        bar.layout.display = "none" if last is None else ""
        if last is not None:
            bar.max, bar.value = max(last.total, 1), last.done
            bar.description = f"{last.what}: {last.done} of {last.total} {last.unit}"

    button.on_click(refresh)
    refresh()
    return StillBox([button, bar, shown], lambda: _plain(run_dir))


def _plain(run_dir: str | Path) -> Still:
    try:
        return Still(report.status(existing_run(run_dir)))
    except ERRORS as error:
        return Still(str(error))
