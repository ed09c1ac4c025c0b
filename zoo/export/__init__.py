"""A detector as a deployable file, checked against PyTorch."""
