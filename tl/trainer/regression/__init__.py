"""Train networks that predict numbers."""
