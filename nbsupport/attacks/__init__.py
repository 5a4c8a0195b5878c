"""Attacks: pure functions from a model and images to an `Attack`, on one engine (method section 4)."""

from nbsupport.attacks.engine import Attack, best_of
from nbsupport.attacks.gradient import fgsm, pgd_linf
from nbsupport.attacks.indicators import Indicator, Stability, failure_indicators, stability
from nbsupport.attacks.minimum_norm import carlini_wagner_l2, ddn_l2
from nbsupport.attacks.optmargin import draw_views, optmargin
