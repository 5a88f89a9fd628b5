"""Shared code of the study; see README.md for the map."""
