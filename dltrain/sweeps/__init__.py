"""Searches behind `-m`: what there is to try, what comes next, what came of it, and where trials run."""
