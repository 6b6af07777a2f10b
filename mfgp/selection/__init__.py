"""Which calculation comes next, at which level, and what a budget would buy."""
