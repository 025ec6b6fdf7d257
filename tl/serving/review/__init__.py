"""The local page of `tl review`, over HTTP."""
