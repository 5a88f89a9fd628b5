"""How a network restores photographs and how the result is measured."""
