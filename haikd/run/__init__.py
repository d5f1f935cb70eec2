"""What the command does, and what it leaves on disk."""
