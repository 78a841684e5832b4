"""Validation: really decodes every image, reads every caption, says what it set aside and why.
Nothing is dropped: accepted + quarantined = read, of images and of captions."""
