"""Widgets over a run folder: single instances, and how far a run has come.

They stand in a notebook with a live kernel. Where nobody can use them, as in a headless run, a picture and text stand
in their place, and no widget is made.
"""

from nbsupport.widgets.explorer import instance_explorer, stills
from nbsupport.widgets.progress import progress
