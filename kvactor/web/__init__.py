"""Everything that knows HTTP. Nothing outside this package does."""
