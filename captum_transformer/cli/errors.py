"""What the user of the command line can put right."""


class UserError(Exception):
    """Something about the arguments or the files; the message is all that is shown of it."""
