"""Models opened, scored with, and calibrated."""
