"""What two or more detectors share."""
