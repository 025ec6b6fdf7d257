"""HTTP server of model files: predictions of uploaded images, the Open Inference Protocol, metrics, a web page.

Needs `tl.runtime` and the packages of the extra `serve`, and no torch. Read `app` (the routes) first, then `predict`
and `inference_protocol` (the two ways to ask), `models` (what is served, and its reload), `workers` (who computes),
`access` and `limits` (who may ask, and how much), `server` (start and stop).
"""
