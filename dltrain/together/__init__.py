"""Many runs in one process as one stacked program: networks of the same shapes, told apart by numbers and seeds."""
