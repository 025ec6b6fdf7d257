"""The HTTP API of `tl label`."""
