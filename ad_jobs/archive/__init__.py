"""What lies in an archive: sources, manifests, and fetching."""
