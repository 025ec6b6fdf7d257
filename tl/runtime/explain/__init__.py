"""Explain predictions: class activation maps, occlusion, drawings."""
