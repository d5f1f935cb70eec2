"""Files of records: which files hold a split, and what is in their rows."""
