"""The work of each notebook on a run folder: read what earlier stages stored, call the kernels, store the results."""

from nbsupport.stages.attacks import Examples, attack_models, attack_table, load_examples
from nbsupport.stages.boundary import boundary_table, load_profiles, probe_examples, run_directions
from nbsupport.stages.claims import claims_table
from nbsupport.stages.datasets import dataset_table
from nbsupport.stages.detector import Trial, detect, detector_table, load_detectors, own_scores
from nbsupport.stages.distortions import distorted, run_distortions
from nbsupport.stages.evasion import evasion_table
from nbsupport.stages.galleries import Gallery, gallery, region_accuracy
from nbsupport.stages.geometry import audit_table, geometry_table, measure_geometry
from nbsupport.stages.indicators import attack_warnings
from nbsupport.stages.inputs import MODELS, by_model, evaluation_data, load_model, training_data
from nbsupport.stages.live import RAYS, Live, look_between, save_live
from nbsupport.stages.nearest import nearest_table
from nbsupport.stages.other_regions import other_regions_table
from nbsupport.stages.region import Votes, load_votes, region_table, vote_examples
from nbsupport.stages.slices import THIRDS, ViewSlice, slice_through, slice_with_views
from nbsupport.stages.stability import stability_table
from nbsupport.stages.stored import FILTERS, THRESHOLD, Single, Stored
from nbsupport.stages.training import kept_epochs, train_models
from nbsupport.stages.training_accuracy import accuracy_table
from nbsupport.stages.typical import Instances, instances

__all__ = [
    "FILTERS",
    "MODELS",
    "RAYS",
    "THIRDS",
    "THRESHOLD",
    "Examples",
    "Gallery",
    "Instances",
    "Live",
    "Single",
    "Stored",
    "Trial",
    "ViewSlice",
    "Votes",
    "accuracy_table",
    "attack_models",
    "attack_table",
    "attack_warnings",
    "audit_table",
    "boundary_table",
    "by_model",
    "claims_table",
    "dataset_table",
    "detect",
    "detector_table",
    "distorted",
    "evaluation_data",
    "evasion_table",
    "gallery",
    "geometry_table",
    "instances",
    "kept_epochs",
    "load_detectors",
    "load_examples",
    "load_model",
    "load_profiles",
    "load_votes",
    "look_between",
    "measure_geometry",
    "nearest_table",
    "other_regions_table",
    "own_scores",
    "probe_examples",
    "region_accuracy",
    "region_table",
    "run_directions",
    "run_distortions",
    "save_live",
    "slice_through",
    "slice_with_views",
    "stability_table",
    "train_models",
    "training_data",
    "vote_examples",
]
