"""Podlane: what the three daemons share, the lab, and the operator's command."""

__version__ = "0.1.0"
