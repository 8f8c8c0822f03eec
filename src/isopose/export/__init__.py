"""Trained models for other runtimes: ONNX graphs and MONAI bundles."""
