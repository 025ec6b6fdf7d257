"""From an image file to the network's input: decoding, geometry, preprocessing. The one implementation there is."""
