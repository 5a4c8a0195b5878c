"""The work of each notebook on a run folder: read what earlier stages stored, call the kernels, store the results."""

from nbsupport.stages.attacks import Examples, attack_models, attack_table, load_examples
from nbsupport.stages.boundary import boundary_table, load_profiles, probe_examples, run_directions
from nbsupport.stages.claims import claims_table
from nbsupport.stages.detector import Trial, detect, detector_table
from nbsupport.stages.inputs import MODELS, evaluation_data, load_model, training_data
from nbsupport.stages.region import Votes, load_votes, region_table, vote_examples
from nbsupport.stages.training import train_models

__all__ = [
    "MODELS",
    "Examples",
    "Trial",
    "Votes",
    "attack_models",
    "attack_table",
    "boundary_table",
    "claims_table",
    "detect",
    "detector_table",
    "evaluation_data",
    "load_examples",
    "load_model",
    "load_profiles",
    "load_votes",
    "probe_examples",
    "region_table",
    "run_directions",
    "train_models",
    "training_data",
    "vote_examples",
]
