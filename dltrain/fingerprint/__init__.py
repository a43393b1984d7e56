"""What happened at every step of a run, in a few bytes: enough to find the first step at which two runs part."""
