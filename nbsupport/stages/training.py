"""Stage 02: the normal and the PGD-trained model."""

from __future__ import annotations

import pandas as pd

from nbsupport import models, runtime, train
from nbsupport.stages.inputs import MODELS, training_data
from nbsupport.store import Run

STAGE = "02_training"
