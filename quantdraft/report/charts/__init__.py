"""Charts as Vega-Lite specifications, made with Altair: one serves the page and the SVG file.

Each function takes what it draws, typed, and returns a `Chart` block: its specification, its title
and description, and its numbers as a table; None where nothing was measured. Altair is imported
inside the functions, so that a report for the terminal does not wait for it.
"""
