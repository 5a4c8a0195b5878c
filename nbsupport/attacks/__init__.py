"""Attacks: pure functions from a model and images to an `Attack`, on one engine (method section 4)."""

from nbsupport.attacks.carlini_wagner import carlini_wagner_l2
from nbsupport.attacks.ddn import ddn_l2
from nbsupport.attacks.engine import Attack, best_of
from nbsupport.attacks.fgsm import fgsm
from nbsupport.attacks.indicators import Indicator, failure_indicators
from nbsupport.attacks.optmargin import draw_views, optmargin
from nbsupport.attacks.pgd import pgd_linf
from nbsupport.attacks.stability import Stability, stability
