"""One document in several formats: HTML, Markdown, terminal."""
