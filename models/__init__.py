"""What detects: PyTorch detectors behind one contract."""
