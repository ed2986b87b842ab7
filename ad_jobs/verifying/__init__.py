"""What `verify` compares: a run's files, its record, its rows, and a sample scored again. What differs is one text."""
