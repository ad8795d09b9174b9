"""The model beside real kernels: the same scenario on both, compared step by step."""

from memhp.conform.compare import Difference, differences
from memhp.conform.observation import Observed, observe
from memhp.conform.recording import Recording

__all__ = ["Difference", "Observed", "Recording", "differences", "observe"]
