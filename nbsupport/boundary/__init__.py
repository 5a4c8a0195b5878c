"""Distances from images to the decision boundary along many directions, and what the boundary looks like there."""

from nbsupport.boundary.audit import Audit, audit
from nbsupport.boundary.directions import directions
from nbsupport.boundary.geometry import Geometry, Normals, Reentry, geometry, normals, reentry, triple_points
from nbsupport.boundary.plane import Slice, plane
from nbsupport.boundary.probe import probe
from nbsupport.boundary.profile import Profile, purity
