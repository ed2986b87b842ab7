"""Numbers to a self-contained HTML page."""
