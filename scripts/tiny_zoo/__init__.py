"""The tiny models, their data, and the code that makes them."""
