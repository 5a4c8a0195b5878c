"""Figures of the suite: arrays in, matplotlib Figure out, in one style, without pyplot's global state.

Lengths come in [0, 1] units; `pixel_max` gives the unit in which they are drawn. A figure is shown by Jupyter when it
ends a cell, is saved by `fig.savefig(path)`, and need not be closed.
"""

from nbsupport.plots.comparison import runs_side_by_side
from nbsupport.plots.curves import (
    accuracy_curve,
    detector_training,
    distance_curves,
    distortion_distribution,
    margins,
    purity_curves,
    training_curves,
    triple_cells,
)
from nbsupport.plots.images import attack_grid, class_counts, montage, pixel_values, rms_examples, variants_side_by_side
from nbsupport.plots.instance import Version, instance_boundary, instance_panels, live_panels
from nbsupport.plots.results import (
    attack_matrix,
    claims_overview,
    error_rates,
    evasion_cost,
    evasion_curves,
    region_accuracy,
    roc,
)
from nbsupport.plots.schematic import decision_regions, detector_architecture
from nbsupport.plots.slices import hypercube_outline, slice_figure
from nbsupport.plots.style import EXAMPLES, class_colours, examples_colour, nothing_to_show
