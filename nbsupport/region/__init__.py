"""Region classification: one label from the classes of random points around an image, as a rule their plurality."""

from nbsupport.region.classifier import COMBINATIONS, classify
from nbsupport.region.counting import SHAPES, unit_rms
from nbsupport.region.radius import search_radius
from nbsupport.region.vote import Vote
