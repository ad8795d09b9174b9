"""Studies: what becomes of a machine's memory under a workload, over seeds and parameters."""

from memhp.scenario.workloads import WORKLOADS, Workload, fill

__all__ = ["WORKLOADS", "Workload", "fill"]
