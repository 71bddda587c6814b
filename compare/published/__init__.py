"""What others have published and measured: losses fitted on it, and predictions held against it."""
