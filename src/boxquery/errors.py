"""The one exception a user can cause."""


class UserError(ValueError):
    """Input that cannot be used.

    The text is one line that says what is wrong, where (file, line or key, image id) and what to do. The command line prints it
    after ``error:`` and exits with status 2.
    """
