"""The steps of a fit: features of the data, one pass over it, what is learned from the sums, and how fast that is."""
