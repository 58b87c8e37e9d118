"""Models and traffic become measurements."""
