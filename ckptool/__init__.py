"""Checkpoint surgery and conversion for PyTorch detectors."""
