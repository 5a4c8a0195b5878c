"""What widgets say, and what stands in place of a widget, or beside it, where no kernel is alive."""

from __future__ import annotations

import base64
import contextlib
import gc
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import IPython
import ipywidgets
from IPython.display import display
from matplotlib.figure import Figure

from nbsupport.store import DamagedArtifact

DPI = 90
# Reading what is missing, damaged, or of another version.
ERRORS = (OSError, ValueError, DamagedArtifact)


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
        show: Any = display
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
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def picture() -> ipywidgets.Image:
    """Return the place for a PNG, as wide as it is where there is room."""
    return ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})


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
