"""Attacks that know the defence, and what each defence says of their images (method section 9)."""

from nbsupport.adaptive.attacks import mimic, past_detector, through_views, through_vote
from nbsupport.adaptive.defences import Judged, judge
