"""The load generator behind `sparkpool bench`."""
