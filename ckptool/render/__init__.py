"""Results as text and as JSON values, one module per command; nothing is decided here."""
