"""What a model says of the test images, beside what people and the champion say, to be looked at.
`cards` chooses the images, `page` shows them as one HTML file, `markdown` in Prefect's UI."""
