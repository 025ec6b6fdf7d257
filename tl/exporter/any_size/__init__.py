"""Model files whose graph takes images of any size: resizing, cropping and padding as nodes before the network.

`graph` writes the nodes, `convert` verifies and publishes the file.
"""
