"""A run as a report. `build` computes it once; every writer shows the same numbers.

content     the report's numbers
sections    what is said and shown, as paragraphs, tables and plots; the same for every format
svg, plots  the plots, drawn by a few hundred lines of our own: a plotting library would be the largest dependency of all
html, markdown, latex, as_json      the formats
questions   the answers question by question, for the HTML page
"""
