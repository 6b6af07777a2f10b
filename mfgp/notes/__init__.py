"""What a user should know of a fit: labels that look like a slip, signs that a level does not help."""
