"""What widgets are made of: what they say, a still beside them or in their place, and answers to what a reader does."""

import asyncio
import base64
import contextlib
import functools
import gc
import html
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import IPython.display
import ipywidgets
from matplotlib.figure import Figure

from nbsupport import store

PAUSE = 0.01  # seconds between two steps of a computation, for messages such as the click on a button
Answer = Callable[[Any], None]
# Reading what is missing, damaged, or of another version.
ERRORS = (OSError, ValueError, store.DamagedArtifact)


def status(text: str, data: Mapping[str, object], *, kind: str = "nb-status") -> str:
    """Return an HTML element of class `kind` with `text`, and `data` as its data-* attributes; None is empty."""
    told = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in data.items()}
    known = {name: "" if value is None else str(value) for name, value in told.items()}
    attributes = "".join(f' data-{name}="{html.escape(value)}"' for name, value in known.items())
    return f'<span class="{kind}" role="status"{attributes}>{html.escape(text)}</span>'


def preformatted(text: str) -> str:
    """Return `text` as HTML that keeps its lines."""
    return f'<pre style="white-space: pre-wrap; line-height: 1.3">{html.escape(text)}</pre>'


def refusal(error: Exception) -> str:
    """Return as HTML what is wrong with a run folder, in place of what it cannot show."""
    return status("This run cannot be shown.", {"state": "error"}) + preformatted(str(error))


class Still:
    """A picture, where there is one, and text; shown in a notebook without any widget."""

    def __init__(self, text: str, picture: bytes | None = None) -> None:
        self.text, self.picture = text, picture

    def __repr__(self) -> str:
        return self.text

    def _repr_png_(self) -> bytes | None:
        return self.picture

    def as_html(self) -> str:
        """Return it as HTML, folded up."""
        encoded = base64.b64encode(self.picture or b"").decode()
        said = preformatted(self.text)
        shown = f'<img alt="{html.escape(self.text)}" src="data:image/png;base64,{encoded}"/>' if encoded else ""
        return f"<details><summary>As first shown, for readers without a kernel</summary>{said}{shown}</details>"


class StillBox(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A box that leaves a `Still` beside itself in the notebook, which a reader without a kernel can open.

    `still` makes it, when the box is displayed.
    """

    def __init__(self, children: Sequence[ipywidgets.Widget], still: Callable[[], Still]) -> None:
        super().__init__(children)
        self._still = still

    def _ipython_display_(self) -> None:
        show: Any = IPython.display.display
        show(self._repr_mimebundle_(), raw=True)
        still = self._still()
        show({"text/html": still.as_html(), "text/plain": still.text}, raw=True)


def headless() -> bool:
    """Return whether a kernel runs for a program such as papermill: for one that cannot answer a question.

    Every request to execute a cell says whether the sender can; JupyterLab, Jupyter Notebook and editors can.
    """
    kernel: Any = getattr(IPython.get_ipython(), "kernel", None)
    return kernel is not None and not kernel.get_parent("shell").get("content", {}).get("allow_stdin", True)


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG for a notebook's width."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def picture() -> ipywidgets.Image:
    """Return the place for a PNG, as wide as it is where there is room."""
    return ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})


def rows(*controls: Sequence[ipywidgets.Widget]) -> list[ipywidgets.HBox]:
    """Return rows of controls, which wrap where there is little room."""
    return [ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in controls]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off garbage collection: a full one, caused by every fourth figure or so, doubles the time of its redraw."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Turns:
    """One answer at a time to the events of widgets, under `lock`, and none to the events that an answer causes.

    JupyterLab sends the events of widgets to a subshell of the kernel, which is a thread beside the one of the cells.
    """

    def __init__(self) -> None:
        self.lock, self._answers = threading.RLock(), threading.Lock()

    def on(self, method: Answer, *controls: ipywidgets.Widget) -> None:
        """Let `method` answer the clicks on each of the `controls` that is a button, or the changes of its value."""

        def answer(event: Any) -> None:
            with self.lock:
                if self._answers.acquire(blocking=False):  # intermediate states, set by an answer, are not shown
                    try:
                        method(event)
                    finally:
                        self._answers.release()

        for control in controls:
            changed = functools.partial(control.observe, names="value")
            getattr(control, "on_click", changed)(answer)


class Background:
    """One computation at a time, on the event loop of the kernel: there is no thread that could outlive it.

    Between its steps the kernel answers, so that it can be watched and cancelled. `lock` is held while a state is
    shown, and not while a step is taken.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock, self._turn = lock, 0
        self._task: asyncio.Task[None] | None = None  # the loop itself keeps no task alive

    def start(self, steps: Iterator[Any], show: Answer, fail: Answer) -> None:
        """Take `steps` one by one and `show` each; `fail` gets what one raises. An earlier computation is cancelled.

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

    async def _run(self, steps: Iterator[Any], show: Answer, fail: Answer, turn: int) -> None:
        def tell(say: Answer, what: Any) -> None:
            with self.lock:
                if turn == self._turn:
                    say(what)

        try:
            while turn == self._turn and (state := next(steps, None)) is not None:
                tell(show, state)
                await asyncio.sleep(PAUSE)
        except Exception as error:  # whatever it is: nobody reads the exception of a task
            tell(fail, error)
