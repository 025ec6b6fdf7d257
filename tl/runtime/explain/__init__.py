"""What a label comes from: class activation maps, occlusion, drawings."""
