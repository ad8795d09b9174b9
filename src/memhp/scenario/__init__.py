"""Scenarios: a file says what machine there is, who takes part, what happens, and what should come of it."""

from memhp.scenario.decode import load
from memhp.scenario.model import Scenario
from memhp.scenario.play import Player

__all__ = ["Player", "Scenario", "load"]
