"""Serve model files over HTTP, and the pages in which people use them."""
