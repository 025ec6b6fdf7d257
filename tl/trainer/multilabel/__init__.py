"""Train networks that give an image several labels."""
