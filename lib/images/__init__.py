"""Image sets: the registry of files, downloads, manifests."""
