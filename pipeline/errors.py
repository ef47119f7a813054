"""The exceptions that a person is meant to read: one sentence with the path or value at fault, and the remedy."""


class PipelineError(Exception):
    """The work cannot go on; a command prints the sentence and exits with 1."""


class UsageError(PipelineError):
    """What was asked cannot be meant (a flag, a manifest, a name); a command prints the sentence and exits with 2."""


class EmptyInputError(UsageError):
    """An input in which nothing is yet: a folder or prefix without videos. Whoever watches it waits."""


class VideoError(Exception):
    """One video cannot be used. It becomes a row in rejects/, and the job goes on.

    reason: one of `pipeline.catalog.inputs.REJECT_REASONS`; message: one sentence for the person who looks at the row.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def first_line(error: BaseException) -> str:
    """What an error says first; of which kind it is where it says nothing.

    >>> first_line(ValueError("no number\\nand more")), first_line(KeyboardInterrupt())
    ('no number', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
