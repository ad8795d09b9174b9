"""The figures of memhp, measured side by side with what else one could use: ``python -m bench [GROUP...]``."""
