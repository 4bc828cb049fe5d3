"""The top floor: declarative studies, the command line, reports."""
