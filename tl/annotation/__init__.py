"""Label images and correct labels: journals of what people decided, heads that learn meanwhile, images worth a look.

Knows no HTTP and no pages (`tl.serving`).
"""
