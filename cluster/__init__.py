"""Where it runs: Ray sessions and object storage."""
