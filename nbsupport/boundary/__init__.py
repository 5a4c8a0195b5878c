"""Distances from images to the decision boundary along many directions, and what the boundary looks like there."""

from nbsupport.boundary.geometry import Geometry, Slice, geometry, normals, plane, reentry, triple_points
from nbsupport.boundary.probe import Audit, Trace, audit, probe, trace
from nbsupport.boundary.profile import Profile, directions, purity
