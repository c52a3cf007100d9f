"""From a bundle on disk to the answers of its graph: all that a server needs, in numpy and ONNX Runtime alone."""
