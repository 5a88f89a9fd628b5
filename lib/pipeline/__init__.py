"""DVC and papermill: running stages, kept networks, other machines."""
