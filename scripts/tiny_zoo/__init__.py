"""The tiny models, their data, and what makes them."""
