"""The report: what a study found, section by section, and how it is written down."""
