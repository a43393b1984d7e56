"""Learning problems, one a file. Each owns its networks and says what they minimise."""
