"""What several rooms share: errors, files written whole, places of outputs, logging."""
