"""What a scan will take before anything is spent: objects by their headers, a timed sample, time, disk and price."""
