"""A line of progress that overwrites itself: live in the terminal, its last state in the executed notebook."""

WIDTH = 110


def show(*parts: object) -> None:
    """Put a line made of `parts` in the place of the one before it."""
    print(f"\r{'  '.join(map(str, parts)):{WIDTH}}", end="", flush=True)


def done(line: object) -> None:
    """Print the final line. It stays in the executed notebook, so two equal runs must print the same."""
    show(line)
    print(flush=True)
