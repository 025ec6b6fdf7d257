"""Find and read images: folders, patterns, lists, archives."""
