"""Shared code of the study; see docs/architecture.md for the map."""
