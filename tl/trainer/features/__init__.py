"""Features of a frozen backbone, computed once."""
