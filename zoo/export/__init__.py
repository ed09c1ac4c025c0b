"""Export of detectors to deployable files, checked against PyTorch."""
