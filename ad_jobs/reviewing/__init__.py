"""Review: a run's pictures looked at in a browser, and what reviewers say of them."""
