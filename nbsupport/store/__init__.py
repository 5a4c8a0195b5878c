"""The run folder: what kernels compute is kept in it, found again, and verified."""

from nbsupport.files import DamagedArtifact
from nbsupport.presets import MODELS
from nbsupport.store.manifest import STAGES, ParametersDiffer, RunInUse, StageState, holder
from nbsupport.store.run import MissingInput, Run, existing_run, open_run, require_fresh
