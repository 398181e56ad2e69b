"""Podlane on a host of its own: what is installed there, how it joins a cluster, and how it is upgraded."""
