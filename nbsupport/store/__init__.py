"""The run folder: what kernels compute is kept in it, found again, and verified."""

from nbsupport.files import DamagedArtifact
from nbsupport.store.lock import RunInUse, holder
from nbsupport.store.manifest import ParametersDiffer
from nbsupport.store.run import MODELS, MissingInput, Run, existing_run, open_run, require_fresh
from nbsupport.store.stages import NAMES as STAGES
from nbsupport.store.stages import StageState
