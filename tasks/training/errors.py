"""What can go wrong in training that a person can put right."""


class TrainingError(ValueError):
    """Base of the errors below; the message names the config key and the fix. To try the same again
    won't help."""


class BaseModelError(TrainingError):
    """`model.base` names nothing that can be loaded as a captioner."""


class ImageSizeMismatch(TrainingError):
    """The dataset was prepared at another size than the model takes."""


class SettingsMismatch(TrainingError):
    """Two settings that cannot go together, or not with this model, dataset or machine."""


class TrainingDiverged(TrainingError):
    """The loss stopped being a finite number."""


class OutOfMemory(TrainingError):
    """A device could not hold a micro-batch."""


class DiskFull(TrainingError):
    """No room for a checkpoint or for the model; finished checkpoints are kept."""


class TrainingFailed(RuntimeError):
    """The training process ended; the message holds the end of what it said. Training again goes
    on from the last checkpoint."""


def named(error: str, message: str) -> TrainingError:
    """The error of a class that is told by its name."""
    kinds = {kind.__name__: kind for kind in TrainingError.__subclasses__()}
    return kinds.get(error, TrainingError)(message)
