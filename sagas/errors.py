"""What a saga can refuse."""

from core.errors import Conflict, NotFound


class SagaNotFound(NotFound):
    """There is no such saga."""


class StepNotFound(NotFound):
    """The saga has no such step."""


class DefinitionNotFound(NotFound):
    """There is no definition of that name and version."""


class TooDeep(Conflict):
    """A saga can be in no more others, each a step of the next."""


class TaskNotFound(NotFound):
    """There is no such task, and never was."""


class SagaOver(Conflict):
    """The saga is over; `saga_status` says how."""


class TooManySignals(Conflict):
    """The saga keeps as many signals as it may, of which no step waits for one."""


class PivotPassed(Conflict):
    """A step after which there is no way back has been carried out, or may have been."""


class NotPaused(Conflict):
    """The saga, or the schedule, is not paused."""


class NotStuck(Conflict):
    """The step does not wait for a human; `saga_status` or `step_status` says what is."""


class LeaseLost(Conflict):
    """This lease of the task is over: it was answered, taken back, or somebody else has it, or will."""
