"""Whether a dataset as a whole is fit to train on."""

from configs.schema import ChecksConfig
from tasks.data.checks.sorting import Sorting
from tasks.data.report.facts import Counts

# What an image leaves by that is not its own fault; it doesn't count against the share.
_BLAMELESS = {"missing", "duplicate_image", "near_duplicate", "leak"}
_EXAMPLES = 3


class DatasetRejected(ValueError):
    """The data as a whole is not fit to train on; names the rule, the count and examples."""


def verdict(read: Counts, sorting: Sorting, config: ChecksConfig) -> str | None:
    """Why the dataset is rejected (the rule, the count, examples, the fix), or None."""
    images_aside, accepted = sorting.images_aside, sorting.accepted
    found = sorting.quarantined + sorting.noted

    def told(rule: str) -> str:
        examples = sorting.examples[rule][:_EXAMPLES]
        count = images_aside[rule] or found[rule]
        names = [example.image_id for example in examples] + ["…"] * (count > len(examples))
        return f"{rule}: {count} ({', '.join(names)})"

    for rule, count in found.items():
        if count and getattr(config.actions, rule, None) == "reject":
            return (
                f"{told(rule)}, and data.checks.actions.{rule} is reject. Repair the source, or "
                "set it to quarantine."
            )
    missing = images_aside["missing"]
    if missing > config.max_missing_share * read.images:
        return (
            f"max_missing_share: {told('missing')} of {read.images} images, more than the "
            f"{config.max_missing_share:.0%} allowed. Correct data.source, or raise "
            "data.checks.max_missing_share."
        )
    worst = [rule for rule, _ in images_aside.most_common()]
    bad = [rule for rule in worst if rule not in _BLAMELESS]
    count, present = sum(images_aside[rule] for rule in bad), read.images - missing
    if count > config.max_quarantined_share * present:
        return (
            f"max_quarantined_share: {count} of the {present} images that are there are unusable, "
            f"more than the {config.max_quarantined_share:.0%} allowed. "
            f"{'; '.join(map(told, bad))}. Repair the source, or raise "
            "data.checks.max_quarantined_share."
        )
    if accepted.images < config.min_images:
        why = f" {'; '.join(map(told, worst))}." if worst else ""
        return (
            f"min_images: {accepted.images} of {read.images} images are usable, at least "
            f"{config.min_images} are needed.{why} Add images, or lower data.checks.min_images."
        )
    return None
