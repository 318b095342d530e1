"""Export of scene-graph models to ONNX. ``runtime`` runs them and does not need MMDetection."""
