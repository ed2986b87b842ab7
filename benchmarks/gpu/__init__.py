"""The detectors on a GPU machine without Ray and DICOM libraries: pack.py here, run.py there, report.py here."""
