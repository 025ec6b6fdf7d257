"""Files of labeling tools: Label Studio, CVAT, VIA, labelme, Roboflow."""
