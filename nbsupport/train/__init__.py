"""Training of a classifier, plain or adversarial, resumable after every epoch."""

from nbsupport.train.adversary import Adversary, linf_adversary
from nbsupport.train.augmentation import AUGMENTATIONS
from nbsupport.train.fitting import COLUMNS, accuracy, fit

__all__ = ["AUGMENTATIONS", "COLUMNS", "Adversary", "accuracy", "fit", "linf_adversary"]
