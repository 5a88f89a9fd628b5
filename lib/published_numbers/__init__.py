"""The study that compares our conventions with published numbers."""
