"""One generator of rows a source format, in one registry: what differs between formats ends here.
A reader yields every image that its source names, a damaged one too: judging is the checks' job."""
