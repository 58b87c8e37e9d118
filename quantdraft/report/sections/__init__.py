"""The sections of a report: from the record to text, tables and charts."""
