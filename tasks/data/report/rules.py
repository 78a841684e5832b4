"""The checks' rules in plain words, for people who never saw the code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A rule's name for people, what a finding means, and what becomes of it if it is kept."""

    title: str
    meaning: str
    kept: str = "Kept as it is."


_TO_RGB = "Kept: preparation turns it into ordinary RGB."

RULES = {
    "missing": Rule(
        "No such image",
        "The captions name an image that is not where the source says. If many are missing, the "
        "images folder may be the wrong one or only partly downloaded.",
    ),
    "unreadable": Rule(
        "Can't be read",
        "The file is there, but could not be fetched: often a permission or the network.",
    ),
    "changed": Rule(
        "Changed meanwhile",
        "The file is no longer what it was when it was ingested. Ingest again to take the new one.",
    ),
    "malformed_row": Rule(
        "Malformed row",
        "A row of the caption file does not have the columns or fields that its format needs.",
    ),
    "outside_folder": Rule(
        "Outside the folder",
        "The captions name a file that lies outside the dataset's folder; such paths are not "
        "followed.",
    ),
    "empty_file": Rule("Empty file", "The file has no bytes in it, as after a broken download."),
    "not_an_image": Rule(
        "Not an image", "The bytes are no JPEG, PNG, WebP or GIF, whatever the file is called."
    ),
    "truncated": Rule(
        "Cut short", "The image ends before it is complete, as when a download breaks off."
    ),
    "damaged": Rule("Damaged", "It is an image by its first bytes, but can't be decoded."),
    "too_many_pixels": Rule(
        "Too many pixels",
        "The image says it is larger than the limit, so it was not decompressed. A tiny file that "
        "claims to be huge is a decompression bomb.",
    ),
    "too_small": Rule("Too small", "A side is shorter than the limit, so there is little to see."),
    "extreme_aspect_ratio": Rule(
        "Very long or tall", "A banner or strip, which squashed to a square shows hardly anything."
    ),
    "animated": Rule(
        "Animated", "The file holds several frames.", "Kept: preparation takes the first frame."
    ),
    "wrong_extension": Rule(
        "Extension that lies",
        "The name says one format and the bytes are another.",
        "Kept: the bytes decide, not the name.",
    ),
    "rotated_by_exif": Rule(
        "Rotated by EXIF",
        "The camera stored the picture lying down with a note to turn it.",
        "Kept: preparation turns it upright.",
    ),
    "grey": Rule("Grey", "The picture has no colours.", _TO_RGB),
    "palette": Rule("Palette", "The colours are stored as a table of few.", _TO_RGB),
    "transparent": Rule(
        "Transparent",
        "Parts of the picture are see-through.",
        "Kept: preparation puts it on white.",
    ),
    "cmyk": Rule("Print colours (CMYK)", "The colours are stored for printing.", _TO_RGB),
    "sixteen_bit": Rule("16 bits a channel", "More shades are stored than are needed.", _TO_RGB),
    "caption_empty": Rule("Empty caption", "There is nothing but whitespace in it."),
    "caption_too_short": Rule("Caption too short", "It has fewer words than the limit."),
    "caption_too_long": Rule("Caption too long", "It has more words than the limit."),
    "caption_duplicate": Rule(
        "Caption given twice",
        "The same image has this caption already, but for case or spaces.",
    ),
    "caption_too_common": Rule(
        "Caption on very many images",
        "A caption that fits so many images says little about any, and a model learns to say it "
        "always.",
    ),
    "caption_control_characters": Rule(
        "Control characters", "The caption holds characters that nobody can see."
    ),
    "caption_mixed_scripts": Rule(
        "Mixed scripts",
        "A caption mixes alphabets, as look-alike letters or a wrong encoding do.",
    ),
    "caption_markup": Rule(
        "Markup", "The caption holds HTML or the like, as left over from a web page."
    ),
    "caption_url": Rule("Web address", "The caption holds a URL, which no picture shows."),
    "duplicate_image": Rule(
        "Exact copy",
        "Byte for byte the same image as an earlier one; its captions went to that one.",
    ),
    "near_duplicate": Rule(
        "Near-duplicate",
        "Nearly the same image as another: resized, re-encoded, slightly cropped or relit.",
        "Kept: near-duplicates stay together in one split.",
    ),
    "leak": Rule(
        "Leak between splits",
        "The same or nearly the same image is in another split. A model that trained on what it is "
        "tested on looks better than it is.",
    ),
    "uncaptioned": Rule(
        "Without a caption",
        "An image of the folder that no caption names. It is not counted as read.",
        "Left where it is: there is nothing to learn from it yet.",
    ),
}


def rule_of(name: str) -> Rule:
    """The rule; one that has no words here yet shows its name."""
    return RULES.get(name) or Rule(name.replace("_", " ").capitalize(), "")


def counts_captions(name: str) -> bool:
    """Whether a rule counts captions; the others count images."""
    return name.startswith("caption_")
