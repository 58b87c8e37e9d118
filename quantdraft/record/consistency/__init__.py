"""What must hold between the fields of a record, checked where one is read: `problems`."""
