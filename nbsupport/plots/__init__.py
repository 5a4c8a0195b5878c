"""Figures of the suite: arrays in, matplotlib Figure out, in one style, without pyplot's global state.

Lengths come in [0, 1] units; `pixel_max` gives the unit in which they are drawn. A figure is shown by Jupyter when it
ends a cell, is saved by `fig.savefig(path)`, and need not be closed.
"""

from nbsupport.plots.blank import nothing_to_show
from nbsupport.plots.boundary import distance_curves, purity_curves
from nbsupport.plots.claims import claims_overview
from nbsupport.plots.curves import detector_training, training_curves
from nbsupport.plots.detector import error_rates, roc
from nbsupport.plots.distributions import class_counts, distortion_distribution, pixel_values
from nbsupport.plots.evasion import evasion_cost
from nbsupport.plots.explorer import instance_panels
from nbsupport.plots.geometry import triple_cells
from nbsupport.plots.images import attack_grid, montage, rms_examples, variants_side_by_side
from nbsupport.plots.instance import instance_boundary
from nbsupport.plots.live import live_panels
from nbsupport.plots.region import region_accuracy
from nbsupport.plots.schematic import decision_regions, detector_architecture
from nbsupport.plots.slices import hypercube_outline, slice_with_hypercube
from nbsupport.plots.style import EXAMPLES, class_colours, examples_colour
from nbsupport.plots.views import slice_with_views

__all__ = [
    "EXAMPLES",
    "attack_grid",
    "claims_overview",
    "class_colours",
    "class_counts",
    "decision_regions",
    "detector_architecture",
    "detector_training",
    "distance_curves",
    "distortion_distribution",
    "error_rates",
    "evasion_cost",
    "examples_colour",
    "hypercube_outline",
    "instance_boundary",
    "instance_panels",
    "live_panels",
    "montage",
    "nothing_to_show",
    "pixel_values",
    "purity_curves",
    "region_accuracy",
    "rms_examples",
    "roc",
    "slice_with_hypercube",
    "slice_with_views",
    "training_curves",
    "triple_cells",
    "variants_side_by_side",
]
