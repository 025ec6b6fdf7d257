"""Convert image files to network inputs: decoding, geometry, preprocessing. The project's only implementation."""
