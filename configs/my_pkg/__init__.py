"""An example of a user's package, outside haikd."""
