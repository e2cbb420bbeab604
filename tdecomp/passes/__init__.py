"""What reads the data: matrices one at a time, residuals, coordinates, sketches."""
