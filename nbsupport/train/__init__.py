"""Training of a classifier, plain or adversarial, resumable after every epoch."""

from nbsupport.train.adversary import AUGMENTATIONS, Adversary, linf_adversary
from nbsupport.train.fit import COLUMNS, accuracy, fit
