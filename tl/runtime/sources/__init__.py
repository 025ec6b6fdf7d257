"""Where images come from: folders, patterns, lists, archives."""
