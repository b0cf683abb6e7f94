"""Detection without torch: NumPy, Pillow, and onnxruntime or OpenVINO."""
