"""The sections of a report, each with the data of its charts."""
