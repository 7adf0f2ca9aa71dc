"""Arrays on the disk: shards that are mapped into memory, and what says what is in them."""
