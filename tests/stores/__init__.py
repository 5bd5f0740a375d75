"""The stores, each by what it alone does."""
