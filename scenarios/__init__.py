"""What clients try, and the record of what happened."""
