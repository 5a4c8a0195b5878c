"""Region classification: the plurality of the classes of random points around an image."""

from nbsupport.region.hypercube import classify, search_radius
from nbsupport.region.vote import Vote

__all__ = ["Vote", "classify", "search_radius"]
