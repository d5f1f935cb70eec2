"""A teacher that runs on a server, and how it is asked."""
