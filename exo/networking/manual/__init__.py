"""Discovery from a JSON file that people write."""
