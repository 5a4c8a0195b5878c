"""Attacks: pure functions from a model and images to an `Attack`, on one engine (method section 4)."""

from nbsupport.attacks.carlini_wagner import carlini_wagner_l2
from nbsupport.attacks.ddn import ddn_l2
from nbsupport.attacks.fgsm import fgsm
from nbsupport.attacks.optmargin import optmargin
from nbsupport.attacks.pgd import pgd_linf
from nbsupport.attacks.result import Attack, best_of

__all__ = ["Attack", "best_of", "carlini_wagner_l2", "ddn_l2", "fgsm", "optmargin", "pgd_linf"]
