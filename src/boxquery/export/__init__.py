"""A model as one file that runs without Python or torch: ONNX or OpenVINO."""
