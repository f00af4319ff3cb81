"""Text as every store takes it."""


def stored_text(text: str) -> str:
    """`text` with what a database refuses written out.

    A row that cannot be written would be tried for ever, and with it all that shares its transaction.
    """
    # PostgreSQL has no NUL in a text; half of a surrogate pair (an undecodable file name) has no UTF-8 form.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
