"""What can go wrong in training that a person can put right."""


class TrainingError(ValueError):
    """Base of the errors below; the message names the config key and the fix."""


class BaseModelError(TrainingError):
    """`model.base` names nothing that can be loaded as a BLIP captioner."""


class ImageSizeMismatch(TrainingError):
    """The dataset was prepared at another size than the model takes."""


class SettingsMismatch(TrainingError):
    """Two settings that cannot go together, or not with this model or dataset."""


class TrainingDiverged(TrainingError):
    """The loss stopped being a finite number."""


class TrainingFailed(RuntimeError):
    """The training process ended with an error; the message holds the end of what it said."""
