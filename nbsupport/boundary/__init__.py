"""Distances from images to the decision boundary along many directions, and the classes found there."""

from nbsupport.boundary.orthogonal import directions
from nbsupport.boundary.profile import Profile, purity
from nbsupport.boundary.rays import probe

__all__ = ["Profile", "directions", "probe", "purity"]
