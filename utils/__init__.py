"""Code shared by all folders: errors, files written whole, output places, logging."""
