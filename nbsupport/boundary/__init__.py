"""Distances from images to the decision boundary along many directions, and what the boundary looks like there."""

from nbsupport.boundary.audit import Audit, audit
from nbsupport.boundary.normals import Normals, normals
from nbsupport.boundary.orthogonal import directions
from nbsupport.boundary.plane import Slice, plane
from nbsupport.boundary.profile import Profile, purity
from nbsupport.boundary.rays import probe
from nbsupport.boundary.reentry import Reentry, reentry
from nbsupport.boundary.triple import triple_points

__all__ = [
    "Audit",
    "Normals",
    "Profile",
    "Reentry",
    "Slice",
    "audit",
    "directions",
    "normals",
    "plane",
    "probe",
    "purity",
    "reentry",
    "triple_points",
]
