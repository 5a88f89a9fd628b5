"""A line of progress that overwrites itself: live in the terminal, its last state in the executed notebook."""

WIDTH = 110


def show(*parts: object) -> None:
    """Put a line made of `parts` in the place of the one before it."""
    print(f"\r{'  '.join(map(str, parts)):{WIDTH}}", end="", flush=True)


def done(line: object) -> None:
    """The line that stays; nothing in it may differ between two equal runs."""
    show(line)
    print(flush=True)
