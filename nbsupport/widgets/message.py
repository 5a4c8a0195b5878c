"""What widgets say: the line that carries their state, plain text, and what is wrong with a run folder."""

from __future__ import annotations

import html

import ipywidgets

from nbsupport import store

# Reading what is missing, damaged, or of another version.
ERRORS = (OSError, ValueError, store.DamagedArtifact)


def status(text: str, data: dict[str, object], *, kind: str = "nb-status") -> str:
    """Return an HTML element of class `kind` with `text`, and `data` as its data-* attributes."""
    attributes = "".join(f' data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    return f'<span class="{kind}" role="status"{attributes}>{html.escape(text)}</span>'


def preformatted(text: str) -> str:
    """Return `text` as HTML that keeps its lines."""
    return f'<pre style="white-space: pre-wrap; line-height: 1.3">{html.escape(text)}</pre>'


def refusal(error: Exception) -> str:
    """Return as HTML what is wrong with a run folder, in place of what it cannot show."""
    return status("This run cannot be shown.", {"state": "error"}) + preformatted(str(error))


def shown_refusal(error: Exception) -> ipywidgets.VBox:
    """Return `refusal` as a widget."""
    return ipywidgets.VBox([ipywidgets.HTML(refusal(error))])
