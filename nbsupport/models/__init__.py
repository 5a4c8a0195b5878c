"""Classifiers: the architectures of the papers, a user's own factory, and models whose boundary is known exactly."""

from nbsupport.models.analytic import Ball, HalfSpace, Wedge
from nbsupport.models.registry import NAMES, Spec, build, load, save
