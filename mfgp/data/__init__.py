"""Labelled structures: how they are read, what their labels are, which of them tell of each other, what they cost."""
