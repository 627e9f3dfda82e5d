"""The one exception that the command line turns into one line and a non-zero exit code."""


class LifelongError(Exception):
    """Something the user can mend: the message says what came, what is wanted and what to type.

    The message is a single line. Everything that a user can cause (a wrong value, a missing file, a
    folder that cannot be written) raises this; any other exception is a defect of the package.
    """
