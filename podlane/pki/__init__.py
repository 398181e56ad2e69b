"""Keys and certificates of a cluster: the authority, what it signs, and the files they lie in. No store, no network."""
