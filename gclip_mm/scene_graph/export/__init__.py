"""Export of scene-graph models to ONNX. ``runtime`` needs neither MMDetection nor PyTorch."""
