"""Numbers and pictures to self-contained HTML."""
