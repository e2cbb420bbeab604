"""Reports as tables and sentences that a person reads."""
